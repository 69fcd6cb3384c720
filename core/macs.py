"""Multiply-accumulates of one node, from the shapes that it saw: matrix products, convolutions, attention."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import onnx_ir as ir

Shapes = Mapping[str, Sequence[int]]
"""Sizes of the values by name."""

_MS: Final = "com.microsoft"
_MULTIPLIES: Final = re.compile(r"(MatMul|Gemm|Conv|Attention|Einsum|LSTM|GRU|RNN)(?!ert)")


def is_counted(node: ir.Node) -> bool:
    """True for ops whose multiply-accumulates `macs_of` knows."""
    return (_domain(node), node.op_type) in _COUNTERS


def multiplies(op_type: str) -> bool:
    """True for ops that multiply and accumulate, whether or not they are counted."""
    return _MULTIPLIES.search(op_type) is not None


def macs_of(node: ir.Node, shapes: Shapes) -> int | None:
    """Multiply-accumulates of a node, or None where they cannot be told (a cache of unknown length).

    Args:
        node: one for which `is_counted` is true.
        shapes: sizes of its first two inputs, of its constant inputs and of its first output.
    """
    return _COUNTERS[_domain(node), node.op_type](node, shapes)


def _domain(node: ir.Node) -> str:
    return "" if node.domain == "ai.onnx" else node.domain


def _of(value: ir.Value | None, shapes: Shapes) -> Sequence[int]:
    return shapes.get((value.name if value is not None else None) or "", ())


def _inputs(node: ir.Node, shapes: Shapes) -> tuple[Sequence[int], Sequence[int]]:
    first, second = (*node.inputs, None, None)[:2]
    return _of(first, shapes), _of(second, shapes)


def _matmul(node: ir.Node, shapes: Shapes) -> int:
    inner = _inputs(node, shapes)[0][-1]  # [..., m, k] x [..., k, n]
    return math.prod(_of(node.outputs[0], shapes)) * inner


def _fused_matmul(node: ir.Node, shapes: Shapes) -> int | None:
    if node.attributes.get_int("transBatchA", 0):
        return None
    a = _inputs(node, shapes)[0]
    inner = a[-2] if node.attributes.get_int("transA", 0) and len(a) > 1 else a[-1]
    return math.prod(_of(node.outputs[0], shapes)) * inner


def _gemm(node: ir.Node, shapes: Shapes) -> int:
    a = _inputs(node, shapes)[0]
    inner = a[0] if node.attributes.get_int("transA", 0) else a[1]
    return math.prod(_of(node.outputs[0], shapes)) * inner


def _conv(node: ir.Node, shapes: Shapes, weight: int = 1) -> int | None:
    kernel = _of(node.inputs[weight], shapes)  # [out, in / groups, *kernel]
    return math.prod(_of(node.outputs[0], shapes)) * math.prod(kernel[1:]) if kernel else None


def _quantized_conv(node: ir.Node, shapes: Shapes) -> int | None:
    return _conv(node, shapes, weight=3)  # x, its scale and zero point, then the weight


def _packed_attention(node: ir.Node, shapes: Shapes) -> int | None:
    x, weight = _inputs(node, shapes)  # [batch, length, width] x [width, 3 * hidden]
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        return None
    hidden = _of(node.outputs[0], shapes)[-1]
    return math.prod(x) * weight[-1] + 2 * x[0] * x[1] * x[1] * hidden


def _attention(node: ir.Node, shapes: Shapes) -> int | None:
    """Two products for each query, over all keys: [batch, length, hidden] or [batch, heads, length, size]."""
    query, key = _inputs(node, shapes)
    past = node.inputs[4:6] if node.domain != _MS else node.inputs[6:8]
    if len(query) not in (3, 4) or len(key) not in (3, 4) or any(value is not None for value in past):
        return None
    width = _of(node.outputs[0], shapes)
    return math.prod(query) * key[-2] + math.prod(width) * key[-2]


_COUNTERS: Final[dict[tuple[str, str], Callable[[ir.Node, Shapes], int | None]]] = {
    ("", "MatMul"): _matmul,
    ("", "MatMulInteger"): _matmul,
    ("", "QLinearMatMul"): _matmul,
    ("", "Gemm"): _gemm,
    ("", "Conv"): _conv,
    ("", "ConvInteger"): _conv,
    ("", "QLinearConv"): _quantized_conv,
    ("", "Attention"): _attention,
    (_MS, "DynamicQuantizeMatMul"): _matmul,
    (_MS, "MatMulIntegerToFloat"): _matmul,
    (_MS, "MatMulNBits"): _matmul,
    (_MS, "FusedMatMul"): _fused_matmul,
    (_MS, "FusedGemm"): _gemm,
    (_MS, "FusedConv"): _conv,
    (_MS, "Attention"): _packed_attention,
    (_MS, "MultiHeadAttention"): _attention,
}
