"""The shapes of matrix products, and of what quantisation writes for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import onnx_ir as ir

from burnish.passes.dims import Dim
from burnish.passes.shapes import Call, Fact

_FREE_TYPE_OPSET: Final = 19  # before it, DequantizeLinear makes float32


def _matmul(call: Call) -> Sequence[Fact]:
    return _product(call, call.input(0).dtype)


def _fused_matmul(call: Call) -> Sequence[Fact]:
    """onnxruntime's FusedMatMul: an operand that it transposes has two dims or more."""
    given = [
        _transposed(call.input(index)) if call.node.attributes.get_int(name, 0) else call.input(index)
        for index, name in enumerate(("transA", "transB"))
    ]
    return _matmul(call._replace(inputs=given))


def _transposed(fact: Fact) -> Fact:
    shape = fact.shape
    return Fact(fact.dtype, None if shape is None else (*shape[:-2], *shape[:-3:-1]))


def _product(call: Call, dtype: ir.DataType | None, second: int = 1) -> Sequence[Fact]:
    """The product of the first input and another."""
    left, right = call.input(0).shape, call.input(second).shape
    if not left or not right:
        return [Fact(dtype)]
    rows = () if len(left) == 1 else (left[-2],)
    columns = () if len(right) == 1 else (right[-1],)
    batch = call.shapes.broadcast(left[:-2], right[:-2])
    return [Fact(dtype, None if batch is None else batch + rows + columns)]


def _gemm(call: Call) -> Sequence[Fact]:
    left, right = call.input(0).shape, call.input(1).shape
    if left is None or right is None or len(left) != 2 or len(right) != 2:
        return [Fact(call.input(0).dtype)]
    rows = left[1 if call.node.attributes.get_int("transA", 0) else 0]
    columns = right[0 if call.node.attributes.get_int("transB", 0) else 1]
    return [Fact(call.input(0).dtype, (rows, columns))]


def _matmul_n_bits(call: Call) -> Sequence[Fact]:
    """onnxruntime's MatMulNBits: [..., K] -> [..., N]."""
    data, columns = call.input(0), call.node.attributes.get_int("N")
    if not data.shape or columns is None:
        return [Fact(data.dtype)]
    return [Fact(data.dtype, (*data.shape[:-1], Dim.of(columns)))]


def _gather_blocks(call: Call) -> Sequence[Fact]:
    """onnxruntime's GatherBlockQuantized: Gather of blocks, which bytes hold several numbers of each."""
    data, indices, dtype = call.input(0), call.input(1), call.input(2).dtype
    last = data.shape[-1].size if data.shape else None
    axis = call.node.attributes.get_int("gather_axis", 0)
    if data.shape is None or indices.shape is None or last is None or axis is None:
        return [Fact(dtype)]
    held = 8 // (call.node.attributes.get_int("bits", 4) or 4) if data.dtype == ir.DataType.UINT8 else 1
    whole = (*data.shape[:-1], Dim.of(last * held))
    return [Fact(dtype, whole[:axis] + indices.shape + whole[axis + 1 :])]


def _matmul_integer(call: Call) -> Sequence[Fact]:
    return _product(call, ir.DataType.INT32)


def _q_linear_matmul(call: Call) -> Sequence[Fact]:
    return _product(call, call.input(7).dtype, second=3)


def _matmul_integer_to_float(call: Call) -> Sequence[Fact]:
    """onnxruntime's MatMulIntegerToFloat: scaled, by scales of the type of the result."""
    return _product(call, call.input(2).dtype)


def _dynamic_quantize_matmul(call: Call) -> Sequence[Fact]:
    """onnxruntime's DynamicQuantizeMatMul, of floats and a quantised matrix."""
    return _product(call, call.input(0).dtype)


def _quantize(call: Call) -> Sequence[Fact]:
    stated = call.node.attributes.get_int("output_dtype", 0)
    dtype = ir.DataType(stated) if stated else ir.DataType.UINT8
    return [Fact(call.input(2).dtype if call.has(2) else dtype, call.input(0).shape)]


def _dequantize(call: Call) -> Sequence[Fact]:
    stated = call.node.attributes.get_int("output_dtype", 0)
    if stated:
        return [Fact(ir.DataType(stated), call.input(0).shape)]
    free = bool(call.node.domain) or call.opset >= _FREE_TYPE_OPSET
    return [Fact(call.input(1).dtype if free else ir.DataType.FLOAT, call.input(0).shape)]


def _dynamic_quantize(call: Call) -> Sequence[Fact]:
    scale, zero_point = Fact(ir.DataType.FLOAT, ()), Fact(ir.DataType.UINT8, ())
    return [Fact(ir.DataType.UINT8, call.input(0).shape), scale, zero_point]


PRODUCTS: Final[dict[str, Callable[[Call], Sequence[Fact]]]] = {
    "DequantizeLinear": _dequantize, "DynamicQuantizeLinear": _dynamic_quantize, "Gemm": _gemm,
    "MatMul": _matmul, "MatMulInteger": _matmul_integer, "QLinearMatMul": _q_linear_matmul,
    "QuantizeLinear": _quantize,
}  # fmt: skip
CONTRIB_PRODUCTS: Final[dict[str, Callable[[Call], Sequence[Fact]]]] = {
    "DequantizeLinear": _dequantize, "DynamicQuantizeMatMul": _dynamic_quantize_matmul,
    "FusedMatMul": _fused_matmul, "GatherBlockQuantized": _gather_blocks,
    "MatMulIntegerToFloat": _matmul_integer_to_float, "MatMulNBits": _matmul_n_bits,
    "QuantizeLinear": _quantize,
}  # fmt: skip
"""Of com.microsoft; MatMulNBits and GatherBlockQuantized have weights in blocks."""
