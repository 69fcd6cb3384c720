"""The inverse of attention fusions: Softmax(scale * Q Kᵀ + mask) V as MatMul and Softmax.

Shapes: queries [batch, sequence, hidden], keys and values [batch, total, hidden], scores
[batch, heads, sequence, total]. Source: Vaswani et al., "Attention Is All You Need" (2017), 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import ml_dtypes
import numpy as np
import onnx_ir as ir

from burnish.passes.base import constant_of
from burnish.passes.fusion.bias import last_dim
from burnish.passes.fusion.unfuse import Draft, Inverse, Results, input_of, is_used, type_of
from burnish.passes.matching import CONTRIB, dim, rank

_HEADS_APART: Final = [0, 2, 1, 3]  # [batch, sequence, heads, size] -> [batch, heads, sequence, size]
_TRANSPOSED: Final = [0, 2, 3, 1]  # the same for keys, ready for Q Kᵀ
_SPLIT_BY_INPUT: Final = 13  # the opset from which Split and Unsqueeze take sizes and axes as inputs


def _refuse(node: ir.Node, opset: int) -> str | None:
    """What neither kind of attention can be written with."""
    attributes = node.attributes
    if opset < _SPLIT_BY_INPUT:
        return f"needs opset {_SPLIT_BY_INPUT}; this graph has {opset}"
    if attributes.get_int("unidirectional", 0) or attributes.get_int("do_rotary", 0):
        return "it is causal or rotates its inputs"
    if any(is_used(output) for output in node.outputs[1:]):
        return "it keeps keys and values"
    return "its type is unknown" if type_of(node) is None else None


def _refuse_multi_head(node: ir.Node, opset: int) -> str | None:
    if any(rank(input_of(node, position)) != 3 for position in range(3)):
        return "queries, keys and values are not three tensors of rank 3"
    if any(input_of(node, position) is not None for position in range(6, len(node.inputs))):
        return "it has past keys and values"
    mask, bias = input_of(node, 4), input_of(node, 3)
    if mask is not None and rank(mask) not in (2, 3):
        return "its mask is given by lengths"
    if bias is not None and (constant_of(bias) is None or last_dim(node.inputs[0]) is None):
        return "its bias cannot be split"
    if _head_size(node) is None:
        return "its head size is unknown"
    return _refuse(node, opset)


def _multi_head(draft: Draft) -> Results:
    bias, hidden = constant_of(draft.input(3)), last_dim(draft.input(0))
    parts: list[np.ndarray | None] = [None] * 3
    if bias is not None and hidden is not None:
        parts = list(np.split(bias, [hidden, 2 * hidden]))
    streams = []
    for position, (name, part) in enumerate(zip("qkv", parts, strict=True)):
        given = None if part is None else draft.constant(f"{name}_bias", part)
        streams.append(draft.biased(draft.input(position), given))
    added = _mask_and_bias(draft, draft.input(4), draft.input(5))
    return {0: _attend(draft, streams, bias=added)}


def _refuse_packed(node: ir.Node, opset: int) -> str | None:
    mask = input_of(node, 3)
    if any(input_of(node, position) is not None for position in (4, *range(6, len(node.inputs)))):
        return "it has past keys and values"
    if mask is not None and rank(mask) not in (2, 3):
        return "its mask is given by lengths"
    if _sizes(node) is None:
        return "the size of its weight is unknown"
    return _refuse(node, opset)


def _packed(draft: Draft) -> Results:
    sizes = _sizes(draft.node) or []
    product = draft.op("MatMul", draft.input(0), draft.input(1))
    joined = draft.biased(product, draft.input(2))
    split = draft.constant("sizes", np.array(sizes, np.int64))
    streams = draft.ops("Split", 3, joined, split, axis=-1)
    added = _mask_and_bias(draft, draft.input(3), draft.input(5))
    return {0: _attend(draft, streams, hidden=sizes[0], bias=added)}


def _sizes(node: ir.Node) -> list[int] | None:
    """Hidden sizes of Q, K and V in the packed weight."""
    given = node.attributes.get_ints("qkv_hidden_sizes", None)
    total = last_dim(input_of(node, 1))
    if given:
        return list(given)
    return None if total is None else [total // 3] * 3


def _refuse_standard(node: ir.Node, _: int) -> str | None:
    attributes, (query, key) = node.attributes, node.inputs[:2]
    softcap = attributes.get_float("softcap", 0.0)
    if attributes.get_int("is_causal", 0) or softcap:
        return "it is causal or caps its scores"
    if any(input_of(node, position) is not None for position in range(4, len(node.inputs))):
        return "it has past keys and values"
    if any(is_used(output) for output in node.outputs[1:]):
        return "it keeps keys and values"
    if rank(query) not in (3, 4) or _head_size(node) is None:
        return "its head size is unknown"
    heads, shared = (dim(query, 1), dim(key, 1)) if rank(query) == 4 else (_heads(node), _heads(node, "kv"))
    if heads is None or heads != shared:
        return "queries share heads of keys and values"
    mask = input_of(node, 3)
    if type_of(node) is None or (mask is not None and mask.dtype is None):
        return "its type is unknown"
    return None


def _standard(draft: Draft) -> Results:
    mask, bias = draft.input(3), None
    if mask is not None and mask.dtype != ir.DataType.BOOL:
        mask, bias = None, mask
    if mask is not None:
        lowest = float(ml_dtypes.finfo(draft.dtype.numpy()).min)  # type: ignore[no-untyped-call]
        zero, filtered = draft.number("zero", 0.0), draft.number("filter", lowest)
        bias = draft.op("Where", mask, zero, filtered, like=mask)
    return {0: _attend(draft, draft.node.inputs[:3], bias=bias)}


def _heads(node: ir.Node, of: str = "q") -> int:
    given = node.attributes.get_int("num_heads", 0)
    return given or node.attributes.get_int(f"{of}_num_heads", 0)


def _head_size(node: ir.Node, hidden: int | None = None) -> int | None:
    """Size of one head of queries, where it is known."""
    if rank(node.inputs[0]) == 4:
        return dim(node.inputs[0], -1)
    hidden, heads = hidden or last_dim(node.inputs[0]), _heads(node)
    return hidden // heads if hidden and heads else None


def _attend(
    draft: Draft,
    streams: Sequence[ir.Value | None],
    *,
    hidden: int | None = None,
    bias: ir.Value | None = None,
) -> ir.Value:
    """Attention over Q, K and V of rank 3, or of rank 4 with the heads already apart."""
    size, split = _head_size(draft.node, hidden), rank(draft.input(0)) != 4
    scale = draft.node.attributes.get_float("scale", 0.0) or 1.0 / math.sqrt(size or 1)
    query, key, value = streams
    query = draft.op("Mul", query, draft.number("scale", scale), like=query)
    if split:
        heads = draft.constant("heads", np.array([0, 0, _heads(draft.node), -1], np.int64))
        query, key, value = (draft.op("Reshape", x, heads) for x in (query, key, value))
        query = draft.op("Transpose", query, perm=_HEADS_APART)
        value = draft.op("Transpose", value, perm=_HEADS_APART)
    key = draft.op("Transpose", key, perm=_TRANSPOSED if split else [0, 1, 3, 2])
    scores = draft.op("MatMul", query, key)
    weights = draft.op("Softmax", draft.biased(scores, bias), axis=-1)
    joined = draft.op("MatMul", weights, value)
    if not split:
        return joined
    merged = draft.constant("merged", np.array([0, 0, -1], np.int64))
    return draft.op("Reshape", draft.op("Transpose", joined, perm=_HEADS_APART), merged)


def _mask_and_bias(draft: Draft, mask: ir.Value | None, bias: ir.Value | None) -> ir.Value | None:
    """What is added to the scores, of a mask and a bias that each may be left out."""
    added = None if mask is None else _additive(draft, mask)
    return bias if added is None else draft.biased(added, bias)


def _additive(draft: Draft, mask: ir.Value) -> ir.Value:
    """0 where the mask [batch, total] or [batch, sequence, total] is set, else the filter value."""
    axes = [1, 2] if rank(mask) == 2 else [1]
    keep = draft.op("Cast", mask, like=mask, to=ir.DataType.BOOL)
    keep.dtype = ir.DataType.BOOL
    filter_value = draft.node.attributes.get_float("mask_filter_value", -10000.0)
    zero, filtered = draft.number("zero", 0.0), draft.number("filter", filter_value)
    added = draft.op("Where", keep, zero, filtered, like=mask)
    return draft.op("Unsqueeze", added, draft.constant("axes", np.array(axes, np.int64)))


ATTENTION: Final[Mapping[tuple[str, str], Inverse]] = {
    (CONTRIB, "MultiHeadAttention"): Inverse(_refuse_multi_head, _multi_head),
    (CONTRIB, "Attention"): Inverse(_refuse_packed, _packed),
    ("", "Attention"): Inverse(_refuse_standard, _standard),
}
