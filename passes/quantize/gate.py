"""Is int8 faster here? Regions of a graph, cut out and timed as small models of their own."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
import onnx_ir as ir

from burnish.errors import BurnishError
from burnish.model import copy_model
from burnish.passes.base import Arrays, Context, is_op

Region = Sequence[ir.Node]
"""Nodes of one graph, in order, that are int8 together or not at all."""


def speedups(
    model: ir.Model,
    regions: Sequence[Region],
    rewrite: Callable[[ir.Model], None],
    context: Context,
) -> list[float | None]:
    """Time in float divided by time after `rewrite`, for each region; equal regions are timed once.

    Inputs are real arrays from `context.probe`. None: this region could not be timed (nobody can run
    models here, it lies inside another node's body, or it does not run alone, which is said).
    What was measured goes to `context.measured`.
    """
    if context.probe is None or context.compare_speed is None or not regions:
        return [None] * len(regions)
    cuts = [cut_out(model, region) for region in regions]
    names = sorted({_name(value) for cut in cuts if cut for value in cut.graph.inputs})
    known: dict[Hashable, float | None] = {}
    arrays = context.probe(model, names)
    found: list[float | None] = []
    for region, cut in zip(regions, cuts, strict=True):
        if cut is None or any(_name(value) not in arrays for value in cut.graph.inputs):
            found.append(None)
            continue
        key = structure(cut, arrays)
        if key not in known:
            known[key] = _time(region[0], cut, rewrite, arrays, context)
        found.append(known[key])
    return found


def _time(
    node: ir.Node,
    cut: ir.Model,
    rewrite: Callable[[ir.Model], None],
    arrays: Arrays,
    context: Context,
) -> float | None:
    feeds = {_name(value): arrays[_name(value)] for value in cut.graph.inputs}
    for value in cut.graph.inputs:
        array = feeds[_name(value)]
        value.dtype = value.dtype or ir.DataType.from_numpy(array.dtype)
        value.shape = ir.Shape([None] * array.ndim) if value.shape is None else value.shape
    quantized = copy_model(cut)
    rewrite(quantized)
    if context.compare_speed is None:
        return None
    try:
        speed = context.compare_speed(cut, quantized, feeds).value
    except BurnishError as error:
        context.miss(node, f"not measured: {error.what}")
        return None
    shapes = " ".join(str(list(array.shape)) for array in feeds.values())
    context.measured.append(f"{node.op_type} {shapes}: int8 {speed:.2f} × as fast as float")
    return speed


def _name(value: ir.Value) -> str:
    return value.name or ""


def cut_out(model: ir.Model, region: Region) -> ir.Model | None:
    """The region as a model: its inputs are what it reads from outside, its outputs what is read outside.

    None when the region is not in the main graph.
    """
    graph = model.graph
    inside = set(region)
    if any(node.graph is not graph for node in region):
        return None
    inputs: list[ir.Value] = []
    constants: list[ir.Value] = []
    makers: list[ir.Node] = []
    for value in dict.fromkeys(v for node in region for v in node.inputs if v is not None):
        producer = value.producer()
        if producer is not None and is_op(producer, "Constant"):
            makers.append(producer)
        elif value.is_initializer() and not value.is_graph_input():
            constants.append(value)
        elif producer not in inside:
            inputs.append(value)
    outputs = [v for node in region for v in node.outputs if _seen_outside(v, inside)]
    view = ir.GraphView(
        inputs, outputs, nodes=[*makers, *region], initializers=constants,
        opset_imports=graph.opset_imports, name="region",
    )  # fmt: skip
    return ir.Model(view.clone(), ir_version=model.ir_version)


def _seen_outside(value: ir.Value, inside: set[ir.Node]) -> bool:
    return value.is_graph_output() or any(user not in inside for user in value.consumers())


def structure(region: ir.Model, arrays: Arrays) -> Hashable:
    """What a region's speed depends on: ops, attributes, wiring and shapes, but no names or weights."""
    number: dict[ir.Value, Hashable] = {}
    for value in region.graph.inputs:
        number[value] = ("input", arrays[str(value.name)].shape)
    for constant in region.graph.initializers.values():
        number[constant] = ("constant", _content(constant))
    nodes = []
    for index, node in enumerate(region.graph):
        attributes = sorted(f"{a.name}={a.value}" for a in node.attributes.values() if a.value is not None)
        inputs = tuple(number.get(v) if v is not None else None for v in node.inputs)
        nodes.append((node.domain, node.op_type, tuple(attributes), inputs))
        number |= {value: ("node", index, slot) for slot, value in enumerate(node.outputs)}
    outputs = tuple(number[value] for value in region.graph.outputs)
    return tuple(nodes), outputs


def _content(constant: ir.Value) -> Hashable:
    """The shape of a weight; of a small integer constant (a shape, axes) also the numbers."""
    tensor = constant.const_value
    if tensor is None:
        return ()
    shape = tuple(int(size) for size in tensor.shape.numpy())
    if tensor.dtype.is_integer() and tensor.size <= 64:
        return shape, tuple(np.ravel(tensor.numpy()).tolist())
    return shape
