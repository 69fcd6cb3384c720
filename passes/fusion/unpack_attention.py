"""Attention(x, w, b)  ->  MultiHeadAttention(*Split(x @ w), b), both of com.microsoft"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Final, final

import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass
from burnish.passes.fusion.columns import describe, qkv_widths, split_columns
from burnish.passes.matching import CONTRIB, Scope, candidates
from burnish.passes.shapes import Shapes

_KEPT: Final = ("num_heads", "scale", "mask_filter_value", "unidirectional")


@final
@dataclasses.dataclass(frozen=True)
class UnpackAttention(Pass):
    """Take the projection of query, key and value out of com.microsoft::Attention.

    It stays one matrix, as a MatMul, which quantisation can make int8; the bias goes to the attention,
    which adds it on the way. Kept as they are: attentions with a cache, with rotary embedding, or with a
    mask that is not [batch, keys].
    """

    name: ClassVar[str] = "unpack-attention"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING
    looks_for: ClassVar[frozenset[str]] = frozenset({"Attention"})

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many projections were taken out."""
        shapes = context.shapes(model)
        return sum(
            _unpack(node, scope, shapes, context)
            for node, scope in candidates(model, "Attention", domain=CONTRIB)
        )


def _unpack(node: ir.Node, scope: Scope, shapes: Shapes, context: Context) -> bool:
    widths = _widths(node, shapes)
    why = _obstacle(node, shapes, context)
    if why is None and widths is None:
        why = "the sizes of query, key and value are not known"
    if why is not None:
        context.miss(node, why)
    if why is not None or widths is None or not context.permit(node):
        return False
    x, weight, bias, mask, _, biases = _inputs(node)
    product = ir.node("MatMul", [x, weight])
    result = node.outputs[0]
    describe(product.outputs[0], result, sum(widths), scope.fresh(f"{result.name}_matmul"))
    names = [f"{result.name}_{part}" for part in ("query", "key", "value")]
    parts = split_columns(product.outputs[0], [result] * 3, widths, names, scope, node)
    inputs = [*parts.outputs, bias, mask, biases]
    while inputs[-1] is None:
        inputs.pop()
    attributes = [node.attributes[key] for key in _KEPT if key in node.attributes]
    fused = ir.Node(CONTRIB, "MultiHeadAttention", inputs, attributes)
    scope.replace([node], [product, parts, fused], {node.outputs[0]: fused.outputs[0]}, UnpackAttention.name)
    return True


def _inputs(node: ir.Node) -> list[ir.Value | None]:
    """The six inputs without those of a cache's lengths: x, weight, bias, mask, past, bias on scores."""
    return [*node.inputs, *[None] * 6][:6]


def _obstacle(node: ir.Node, shapes: Shapes, context: Context) -> str | None:
    if not context.target.has_kernel(CONTRIB, "MultiHeadAttention"):
        return f"target {context.target.name} has no {CONTRIB}::MultiHeadAttention"
    present = [value for value in node.outputs[1:] if value.uses() or value.is_graph_output()]
    if present or any(value is not None for value in (_inputs(node)[4], *node.inputs[6:])):
        return "it has a key and value cache"
    if node.attributes.get_int("do_rotary", 0):
        return "it rotates its inputs"
    mask = _inputs(node)[3]
    if mask is not None and shapes[mask].rank != 2:
        return "its mask is not provably [batch, keys]"
    return None


def _widths(node: ir.Node, shapes: Shapes) -> list[int] | None:
    """Features of query, key and value in the packed matrix."""
    known = [shapes[value].static for value in node.inputs[1:3]]
    return qkv_widths(node, next((shape[-1] for shape in known if shape), 0))
