"""One fused node as a model of its own, and that model in standard ops."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import onnx_ir as ir

from burnish.model import copy_model
from burnish.passes.fusion.unfuse import SIMPLE, Draft, Inverse, is_used, type_of
from burnish.passes.fusion.unfuse_attention import ATTENTION
from burnish.passes.fusion.unfuse_kernels import KERNELS
from burnish.passes.matching import Scope, is_fixed, scopes

INVERSES: Final[Mapping[tuple[str, str], Inverse]] = {**SIMPLE, **ATTENTION, **KERNELS}
Dims = tuple[int | None, ...]
"""A shape; None: a size that is not one number."""
Kind = tuple[ir.DataType | None, Dims | None]
"""Type and shape of a value as far as they are known."""
NOTHING: Final[Kind] = (None, None)


def fused_nodes(model: ir.Model) -> Iterator[tuple[ir.Node, Scope]]:
    """The nodes that have an inverse, in every graph."""
    for scope in scopes(model):
        for node in list(scope.graph):
            if (node.domain, node.op_type) in INVERSES:
                yield node, scope


def inverse(node: ir.Node) -> Inverse:
    """How a fused node is written in standard ops."""
    return INVERSES[node.domain, node.op_type]


def moving(node: ir.Node) -> list[ir.Value]:
    """The inputs that are computed, in order, each once."""
    return list(dict.fromkeys(v for v in node.inputs if v is not None and not is_constant(v)))


def is_constant(value: ir.Value) -> bool:
    """True for an initializer or a Constant that no caller can replace."""
    return not value.is_graph_input() and is_fixed(value)


def write_out(node: ir.Node, scope: Scope, pass_name: str) -> None:
    """Put standard ops in the place of a fused node, which its inverse does not refuse."""
    draft = Draft(node, scope)
    made = inverse(node).build(draft)
    results = {node.outputs[at]: value for at, value in made.items() if _is_needed(node, at)}
    scope.replace([node], draft.nodes, results, pass_name)


def _is_needed(node: ir.Node, position: int) -> bool:
    return position < len(node.outputs) and is_used(node.outputs[position])


def written_out(model: ir.Model, pass_name: str) -> ir.Model:
    """A copy of a model of one fused node, which its inverse does not refuse, in standard ops."""
    standard = copy_model(model)
    node, scope = next(fused_nodes(standard))
    write_out(node, scope, pass_name)
    return standard


def alone(node: ir.Node, kinds: Sequence[Kind], model: ir.Model) -> ir.Model:
    """A model of that node alone: constants stay constants, the rest are inputs of those kinds."""
    pairs = zip(node.inputs, kinds, strict=True)
    values = {value: _input(value, kind) for value, kind in pairs if value is not None}
    inputs = [None if value is None else values[value] for value in node.inputs]
    attributes, count = list(node.attributes.values()), len(node.outputs)
    clone = ir.Node(node.domain, node.op_type, inputs, attributes, num_outputs=count)
    dtype = type_of(clone) or type_of(node)
    for at, (output, old) in enumerate(zip(clone.outputs, node.outputs, strict=True)):
        output.name = f"output_{at}" if is_used(old) else ""
        output.type = None if dtype is None else ir.TensorType(dtype)
    graph = ir.Graph(
        [value for value in values.values() if value.const_value is None],
        [output for output in clone.outputs if output.name],
        nodes=[clone],
        initializers=[value for value in values.values() if value.const_value is not None],
        opset_imports=dict(model.graph.opset_imports),
        name="region",
    )
    return ir.Model(graph, ir_version=model.ir_version)


def _input(value: ir.Value, kind: Kind) -> ir.Value:
    tensor = ir.convenience.get_const_tensor(value) if is_constant(value) else None
    dtype, dims = (tensor.dtype, tensor.shape.numpy()) if tensor is not None else kind
    shape = None if dims is None else ir.Shape(dims)
    kept = None if dtype is None else ir.TensorType(dtype)
    return ir.Value(name=value.name, shape=shape, type=kept, const_value=tensor)
