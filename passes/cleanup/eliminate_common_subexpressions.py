"""a = op(x); b = op(x)  ->  a = op(x), used twice"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Hashable, Iterator
from typing import ClassVar, Final, final

import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, bodies, tensor_of
from burnish.passes.cleanup.reshape_target import RESHAPES
from burnish.passes.editing import Editor, Round
from burnish.weights import byte_size, dims_of

_RANDOM: Final = frozenset(
    {
        "Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
        "RandomUniformLike",
    }
)  # fmt: skip
_SMALL: Final = 1024  # bytes; larger constants are the same when `deduplicate-initializers` made them one
_COMMUTATIVE: Final = frozenset(
    {"Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Equal", "Mul", "Or", "Xor"}
)


@final
@dataclasses.dataclass(frozen=True)
class EliminateCommonSubexpressions(Pass):
    """Compute equal expressions once, in every graph; a subgraph reuses what was computed around it.

    Equal means: the same standard operator, inputs (in either order where that cannot matter) and attributes,
    tensors included. Reshape, Flatten, Squeeze and Unsqueeze are equal where they give an input the same
    shape, in whatever words. Kept: random operators, control flow, and operators of other domains, which may
    hold state; a duplicate whose name and the first one's are both outputs.
    """

    name: ClassVar[str] = "eliminate-common-subexpressions"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many nodes were removed."""
        round_ = Round(model, context)
        roots = (model.graph, *(function.graph for function in model.functions.values()))
        return sum(_visit(root, {}, round_) for root in roots)


def _visit(graph: ir.Graph, around: dict[Hashable, ir.Node], round_: Round) -> int:
    seen, removed = dict(around), 0
    for node in list(graph):
        if node.graph is None:  # its last use went with a duplicate
            continue
        removed += sum(_visit(body, seen, round_) for body in bodies(node))
        for key in _keys(node, round_):
            first = seen.setdefault(key, node)
            if first.graph is None:  # removed when its last use went
                first = seen[key] = node
            if first is not node and _can_merge(first, node, round_.editor) and round_.context.permit(node):
                _merge(first, node, round_.editor)
                removed += 1
                break
    return removed


def _can_merge(first: ir.Node, node: ir.Node, editor: Editor) -> bool:
    pairs = zip(node.outputs, first.outputs, strict=True)
    return all(editor.can_replace(old, new) for old, new in pairs)


def _merge(first: ir.Node, node: ir.Node, editor: Editor) -> None:
    for old, new in zip(node.outputs, first.outputs, strict=True):
        new.shape = new.shape or old.shape
        new.type = new.type or old.type
        editor.replace(old, new)


def _keys(node: ir.Node, round_: Round) -> Iterator[Hashable]:
    """What two nodes have in common that compute the same; nothing for a node that must stay."""
    if node.domain or node.op_type in _RANDOM or bodies(node):
        return
    yield _written(node)
    if node.op_type in RESHAPES:
        shape = round_.shapes[node.outputs[0]].shape
        if shape is not None:  # an unknown size is equal to itself only
            yield "reshape", _identity(node.inputs[0]), shape


def _written(node: ir.Node) -> Hashable:
    """Operator, inputs and attributes."""
    attributes = node.attributes.values()
    inputs = [_identity(value) for value in node.inputs]
    if node.op_type in _COMMUTATIVE:
        inputs.sort()
    made = tuple(bool(value.name) for value in node.outputs)
    traits = sorted((attribute.name, _trait(attribute)) for attribute in attributes)
    return node.op_type, tuple(inputs), made, tuple(traits)


def _identity(value: ir.Value | None) -> str:
    """Equal for the same value, and for small constants that are equal."""
    tensor = None if value is None else tensor_of(value)
    return _tensor_trait(tensor) if tensor is not None and byte_size(tensor) <= _SMALL else str(id(value))


def _trait(attribute: ir.Attr) -> str:
    if attribute.is_ref():
        return f"@{attribute.ref_attr_name}"
    if attribute.type == ir.AttributeType.TENSOR:
        return _tensor_trait(attribute.as_tensor())
    if attribute.type == ir.AttributeType.TENSORS:
        return ",".join(map(_tensor_trait, attribute.as_tensors()))
    return f"{attribute.type}:{attribute.value!r}"


def _tensor_trait(tensor: ir.TensorProtocol) -> str:
    if tensor.dtype == ir.DataType.STRING:
        data = repr(tensor.numpy().tolist()).encode()
    else:
        data = tensor.tobytes()
    return f"{tensor.dtype}{dims_of(tensor)}{hashlib.sha256(data).hexdigest()}"
