"""MultiHeadAttention(x @ wq, x @ wk, x @ wv)  ->  Attention(x, [wq wk wv]), both of com.microsoft"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, tensor_of
from burnish.passes.dims import Dim
from burnish.passes.editing import Editor
from burnish.passes.fusion.attention_operands import Linear, dying_with, trace
from burnish.passes.fusion.axes import Factor, View
from burnish.passes.matching import CONTRIB, Scope, candidates
from burnish.passes.shapes import Shapes

_KEPT = ("num_heads", "scale", "mask_filter_value", "unidirectional")
_READ = 6  # inputs: query, key, value, bias, mask of keys, bias on scores; what follows is a cache


@final
@dataclasses.dataclass(frozen=True)
class PackAttention(Pass):
    """Take three projections of one input into the attention that a graph already has as one operator.

    Their weights become one matrix, their biases and the attention's own one vector: six nodes less, and one
    large product instead of three. Kept as they are: attentions with a cache, with a mask that is not
    [batch, keys], whose projections something else reads too, or read another input (cross attention).
    """

    name: ClassVar[str] = "pack-attention"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING
    looks_for: ClassVar[frozenset[str]] = frozenset({"MultiHeadAttention"})

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many attentions took in their projections."""
        shapes, editor = context.shapes(model), Editor(model)
        return sum(
            _pack(node, scope, shapes, editor, context)
            for node, scope in candidates(model, "MultiHeadAttention", domain=CONTRIB)
        )


def _pack(node: ir.Node, scope: Scope, shapes: Shapes, editor: Editor, context: Context) -> bool:
    inputs = [*node.inputs, *[None] * _READ][:_READ]
    linears = _projections(node, shapes)
    why = linears if isinstance(linears, str) else _obstacle(node, inputs, shapes, context)
    if isinstance(linears, str) or why is not None:
        context.miss(node, why or "")
        return False
    bias = _bias(linears, inputs[3])
    if bias is None:
        context.miss(node, "its bias is not constant, or not of the size of its projections")
        return False
    if not context.permit(node):
        return False
    name = node.outputs[0].name or "attention"
    widths = [len(linear.columns) for linear in linears]
    rows = (shapes[linears[0].weight].static or (0, 0))[1 if linears[0].transposed else 0]
    makers = [linear.weights() for linear in linears]
    weight = scope.lazy(
        node, f"{name}_qkv_weight", ir.DataType.FLOAT, (rows, sum(widths)),
        lambda: np.concatenate([make() for make in makers], axis=1),
        tuple(linear.identity() for linear in linears),
    )  # fmt: skip
    attributes = [node.attributes[key] for key in _KEPT if key in node.attributes]
    if len(set(widths)) > 1:
        attributes.append(ir.AttrInt64s("qkv_hidden_sizes", widths))
    read = [linears[0].x, weight, scope.constant(node, f"{name}_qkv_bias", bias), inputs[4], None, inputs[5]]
    while read[-1] is None:
        read.pop()
    fused = ir.Node(CONTRIB, "Attention", read, attributes)
    old = _between(node, linears)
    loose = [value for each in old for value in each.inputs]
    scope.replace(old, [fused], {node.outputs[0]: fused.outputs[0]}, PackAttention.name)
    editor.sweep(loose)
    return True


def _projections(node: ir.Node, shapes: Shapes) -> tuple[Linear, Linear, Linear] | str:
    """Query, key and value as products of one input, which only this attention reads."""
    heads = node.attributes.get_int("num_heads", 1)
    found = [_projection(value, heads, shapes) for value in node.inputs[:3]]
    linears = [linear for linear in found if linear is not None]
    if len(linears) < 3:
        return "query, key and value are not all products of an input and a constant matrix"
    query, key, value = linears
    if not query.x is key.x is value.x or query.swapped:
        return "query, key and value are not made from one input"
    if len(query.columns) != len(key.columns):
        return "queries and keys differ in size"
    own = dying_with([node])
    if any(linear.node not in own for linear in linears):
        return "something else reads its projections"
    return query, key, value


def _projection(value: ir.Value | None, heads: int, shapes: Shapes) -> Linear | None:
    shape = None if value is None else shapes[value].shape
    if value is None or shape is None or len(shape) != 3 or shapes[value].dtype != ir.DataType.FLOAT:
        return None
    batch, length, width = shape
    features = Factor("N", Dim.of(heads)), Factor("D", Dim.of((width.size or 0) // heads))
    linear = trace(View(value, ((Factor("B", batch),), (Factor("S", length),), features)), shapes).linear
    return linear if linear is not None and linear.scale == 1.0 else None


def _obstacle(node: ir.Node, inputs: list[ir.Value | None], shapes: Shapes, context: Context) -> str | None:
    if not context.target.has_kernel(CONTRIB, "Attention"):
        return f"target {context.target.name} has no {CONTRIB}::Attention"
    present = [value for value in node.outputs[1:] if value.uses() or value.is_graph_output()]
    if present or any(value is not None for value in node.inputs[_READ:]):
        return "it has a key and value cache"
    if inputs[4] is not None and shapes[inputs[4]].rank != 2:
        return "its mask is not provably [batch, keys]"
    return None


def _bias(linears: tuple[Linear, ...], own: ir.Value | None) -> np.ndarray | None:
    """What is added to query, key and value, one after the other; None: it is not known."""
    bias = np.concatenate([linear.biases() for linear in linears])
    tensor = None if own is None else tensor_of(own)
    if own is None:
        return bias
    return None if tensor is None or tuple(tensor.shape) != bias.shape else bias + tensor.numpy()


def _between(node: ir.Node, linears: tuple[Linear, ...]) -> list[ir.Node]:
    """The products, what stands between them and the attention, and that, in the order of the graph."""
    own, todo = {node}, [linear.node for linear in linears]
    while todo:
        each = todo.pop()
        if each not in own:
            own.add(each)
            todo.extend(user for output in each.outputs for user in output.consumers())
    return [each for each in node.graph or () if each in own]
