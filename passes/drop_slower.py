"""fused(x)  ->  its standard ops, where those were measured faster

A fused op is not always the faster one: onnxruntime 1.31 needs 0.27 ms for SkipLayerNormalization on
[1, 128, 384] on a 2-core CPU, and 0.05 ms for Add and LayerNormalization.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator
from typing import ClassVar, Final, final

import onnx_ir as ir

from burnish.errors import BurnishError
from burnish.model import copy_model
from burnish.passes.base import Arrays, Context, Numerics, Pass
from burnish.passes.fusion.unfuse import SIMPLE, Draft, Inverse, is_used, type_of
from burnish.passes.fusion.unfuse_attention import ATTENTION
from burnish.passes.matching import Scope, is_fixed, scopes

INVERSES: Final = {**SIMPLE, **ATTENTION}


@final
@dataclasses.dataclass(frozen=True)
class DropSlower(Pass):
    """Write fused ops in standard ops again where that was measured faster on the target.

    Each distinct (op, shapes, types, attributes) is timed once, alone, on the values of one typical
    input. Fused ops in bodies and functions are not measured, and stay.
    """

    name: ClassVar[str] = "drop-slower"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING
    margin: float = 1.05
    """How many times faster the standard ops must be."""

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many fused ops were written in standard ops."""
        found = [(node, scope) for node, scope in _fused(model) if _can_be_measured(node, scope, context)]
        if not found or context.probe is None or context.compare_speed is None:
            return 0
        names = {v.name: None for node, _ in found for v in _moving(node) if v.name is not None}
        bench = _Bench(model, context, context.probe(model, list(names)))
        return sum(_drop(node, scope, bench, self.margin) for node, scope in found)


def _fused(model: ir.Model) -> Iterator[tuple[ir.Node, Scope]]:
    for scope in scopes(model):
        for node in list(scope.graph):
            if (node.domain, node.op_type) in INVERSES:
                yield node, scope


def _inverse(node: ir.Node) -> Inverse:
    return INVERSES[node.domain, node.op_type]


def _can_be_measured(node: ir.Node, scope: Scope, context: Context) -> bool:
    why = None
    if context.probe is None or context.compare_speed is None:
        why = "not measured: nothing can run the model here"
    elif scope.in_function or scope.graph is not scope.root:
        why = "not measured: it is in a body or function"
    if why is not None:
        context.miss(node, why)
    return why is None


def _moving(node: ir.Node) -> list[ir.Value]:
    """The inputs that are computed, in order, each once."""
    return list(dict.fromkeys(v for v in node.inputs if v is not None and not _is_constant(v)))


def _is_constant(value: ir.Value) -> bool:
    return not value.is_graph_input() and is_fixed(value)


def _drop(node: ir.Node, scope: Scope, bench: _Bench, margin: float) -> bool:
    bench.annotate(node)
    why = _inverse(node).refuse(node, scope.opset)
    if why is not None:
        bench.context.miss(node, f"cannot be written in standard ops: {why}")
        return False
    try:
        ratio = bench.ratio(node)
    except BurnishError as error:
        bench.context.miss(node, f"not measured: {error.what}")
        return False
    if not ratio > margin or not bench.context.permit(node):
        return False
    _write_out(node, scope)
    return True


def _write_out(node: ir.Node, scope: Scope) -> None:
    draft = Draft(node, scope)
    made = _inverse(node).build(draft)
    results = {node.outputs[at]: value for at, value in made.items() if _is_needed(node, at)}
    scope.replace([node], draft.nodes, results, DropSlower.name)


def _is_needed(node: ir.Node, position: int) -> bool:
    return position < len(node.outputs) and is_used(node.outputs[position])


@final
class _Bench:
    """Times fused ops against their standard forms, each distinct one once."""

    def __init__(self, model: ir.Model, context: Context, arrays: Arrays) -> None:
        self.model, self.context, self.arrays = model, context, arrays
        self._ratios: dict[Hashable, float] = {}

    def annotate(self, node: ir.Node) -> None:
        """Give the inputs of a node the rank and type that they were seen with, where unknown."""
        for value in _moving(node):
            array = self.arrays[value.name or ""]
            if value.shape is None:
                value.shape = ir.Shape([None] * array.ndim)
            if value.dtype is None:
                value.dtype = ir.DataType.from_numpy(array.dtype)

    def ratio(self, node: ir.Node) -> float:
        """Time of the fused form divided by the time of the standard form.

        Raises:
            BurnishError: the timer cannot run one of them.
        """
        key = self._key(node)
        if key not in self._ratios and self.context.compare_speed is not None:
            fused = self._region(node)
            standard = copy_model(fused)
            (found, scope) = next(_fused(standard))
            _write_out(found, scope)
            feeds = {value.name or "": self.arrays[value.name or ""] for value in _moving(node)}
            ratio = self._ratios[key] = self.context.compare_speed(fused, standard, feeds)
            shapes = " ".join(str(list(array.shape)) for array in feeds.values())
            self.context.measured.append(f"{node.op_type} {shapes}: {ratio:.2f} × its standard form")
        return self._ratios[key]

    def _key(self, node: ir.Node) -> Hashable:
        inputs = tuple(None if value is None else self._kind(value) for value in node.inputs)
        outputs = tuple(is_used(output) for output in node.outputs)
        attributes = tuple(sorted(str(attribute) for attribute in node.attributes.values()))
        return node.domain, node.op_type, inputs, outputs, attributes

    def _kind(self, value: ir.Value) -> Hashable:
        if not _is_constant(value):
            array = self.arrays[value.name or ""]
            return array.shape, str(array.dtype), False
        return str(value.shape), str(value.dtype), True

    def _region(self, node: ir.Node) -> ir.Model:
        """A model of that node alone: constants stay constants, the rest are inputs."""
        values = {value: self._input(value) for value in node.inputs if value is not None}
        inputs = [None if value is None else values[value] for value in node.inputs]
        attributes, count = list(node.attributes.values()), len(node.outputs)
        clone = ir.Node(node.domain, node.op_type, inputs, attributes, num_outputs=count)
        for at, (output, old) in enumerate(zip(clone.outputs, node.outputs, strict=True)):
            output.name = f"output_{at}" if is_used(old) else ""
            kind = type_of(node)
            output.type = None if kind is None else ir.TensorType(kind)
        graph = ir.Graph(
            [value for value in values.values() if value.const_value is None],
            [output for output in clone.outputs if output.name],
            nodes=[clone],
            initializers=[value for value in values.values() if value.const_value is not None],
            opset_imports=dict(self.model.graph.opset_imports),
            name="region",
        )
        return ir.Model(graph, ir_version=self.model.ir_version)

    def _input(self, value: ir.Value) -> ir.Value:
        tensor = ir.convenience.get_const_tensor(value) if _is_constant(value) else None
        if tensor is None:
            array = self.arrays[value.name or ""]
            shape, dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
        else:
            shape, dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
        return ir.Value(name=value.name, shape=shape, type=ir.TensorType(dtype), const_value=tensor)
