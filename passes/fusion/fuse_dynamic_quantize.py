"""MatMulInteger(DynamicQuantizeLinear(x), w) * scale + b  ->  com.microsoft::DynamicQuantizeMatMul(x, w)"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, constant_of
from burnish.passes.matching import CONTRIB, Scope, candidates, either_way, made_by, obstacle, users

_QUANTIZE: Final = "DynamicQuantizeLinear"
_WHOLE: Final = "DynamicQuantizeMatMul"
_PART: Final = "MatMulIntegerToFloat"


@final
@dataclasses.dataclass(frozen=True)
class FuseDynamicQuantize(Pass):
    """Write a dynamically quantised Linear as one operator of onnxruntime, where the target has it.

    DynamicQuantizeMatMul quantises its input itself. Where several products share the quantised input,
    that is done once and each of them becomes a MatMulIntegerToFloat. The numbers stay the same to the bit.
    Kept: weights and scales that are not constant, and scales for anything but tensor or column.
    """

    name: ClassVar[str] = "fuse-dynamic-quantize"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING
    looks_for: ClassVar[frozenset[str]] = frozenset({"MatMulInteger"})

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many products were fused."""
        places = candidates(model, "MatMulInteger")
        return sum(_fuse(product, scope, context) for product, scope in places)


@final
@dataclasses.dataclass(frozen=True)
class _Linear:
    """x, quantised, times a constant matrix [K, N]."""

    quantize: ir.Node
    nodes: list[ir.Node]
    """From the product to the result, operands before users."""
    scale: np.ndarray
    """Of the matrix: a number or [N]."""
    zero_point: np.ndarray
    """Of the matrix, in the same shape."""
    bias: ir.Value | None

    @property
    def is_whole(self) -> bool:
        """Nothing else reads the quantised input."""
        return obstacle([self.quantize, *self.nodes], self.nodes[-1].outputs) is None


def _fuse(product: ir.Node, scope: Scope, context: Context) -> bool:
    found = _match(product)
    if found is None:
        return False
    if isinstance(found, str):
        context.miss(product, found)
        return False
    whole = found.is_whole and context.target.has_kernel(CONTRIB, _WHOLE)
    why = None if whole else obstacle(found.nodes, found.nodes[-1].outputs)
    if not whole and not context.target.has_kernel(CONTRIB, _PART):
        why = f"target {context.target.name} has no {CONTRIB}::{_PART}"
    if not context.permit_unless(why, product):
        return False
    name = product.inputs[1].name if product.inputs[1] is not None else "weight"
    scale = scope.constant(product, f"{name}_scale_column", found.scale)
    zero = scope.constant(product, f"{name}_zero_point_column", found.zero_point)
    matrix, (u8, x_scale, x_zero) = product.inputs[1], found.quantize.outputs
    inputs = (
        [found.quantize.inputs[0], matrix, scale, zero]
        if whole
        else [u8, matrix, x_scale, scale, x_zero, zero]
    )
    inputs += [] if found.bias is None else [found.bias]
    new = ir.node(_WHOLE if whole else _PART, inputs, domain=CONTRIB)
    old = [found.quantize, *found.nodes] if whole else found.nodes
    scope.replace(old, [new], {found.nodes[-1].outputs[0]: new.outputs[0]}, FuseDynamicQuantize.name)
    return True


def _match(product: ir.Node) -> _Linear | str | None:
    x, matrix = product.inputs[:2]
    quantize = made_by(x, _QUANTIZE)
    if quantize is None or x is not quantize.outputs[0] or len(product.inputs) < 3:
        return None
    if product.inputs[2] is not quantize.outputs[2] or matrix is None:
        return None
    weight = constant_of(matrix)
    if weight is None or weight.ndim != 2:
        return "its weight is not a constant matrix"
    cast = users(product.outputs[0], "Cast", only=True)
    if not cast or cast[0].attributes["to"].as_int() != ir.DataType.FLOAT:
        return None
    scaled = _scaled(cast[0].outputs[0], quantize.outputs[1], weight.shape[1])
    if scaled is None:
        return "its product is not scaled by the scales of both operands, one number a tensor or column"
    nodes, scale = scaled
    zero = _zero_point(product, weight)
    if zero is None:
        return "the zero point of its weight is not constant, or not one a tensor or column"
    size = max(scale.size, zero.size)
    if size > 1:
        scale, zero = np.broadcast_to(scale, size).copy(), np.broadcast_to(zero, size).copy()
    bias = _bias(nodes[-1].outputs[0], weight.shape[1])
    behind = [] if bias is None else [bias[0]]
    return _Linear(
        quantize, [product, cast[0], *nodes, *behind], scale, zero, None if bias is None else bias[1]
    )


def _scaled(value: ir.Value, x_scale: ir.Value, columns: int) -> tuple[list[ir.Node], np.ndarray] | None:
    """The Muls by both scales: value * (x_scale * constant), or one after the other."""
    for mul in users(value, "Mul", only=True):
        for first, other in either_way(mul):
            if first is not value:
                continue
            inner = made_by(other, "Mul")
            pairs = [] if inner is None else list(either_way(inner))
            for a, b in pairs:
                row = _row(constant_of(b), columns)
                if a is x_scale and row is not None and inner is not None:
                    return [inner, mul], row
            row = _row(constant_of(other), columns)
            if other is x_scale or row is not None:
                return _one_by_one(mul, x_scale, columns, row)
    return None


def _one_by_one(
    mul: ir.Node, x_scale: ir.Value, columns: int, row: np.ndarray | None
) -> tuple[list[ir.Node], np.ndarray] | None:
    for outer in users(mul.outputs[0], "Mul", only=True):
        for first, other in either_way(outer):
            second = _row(constant_of(other), columns) if row is None else row
            fits = other is x_scale if row is not None else second is not None
            if first is mul.outputs[0] and fits and second is not None:
                return [mul, outer], second
    return None


def _row(array: np.ndarray | None, columns: int) -> np.ndarray | None:
    """A scale of a tensor as a scalar, or of columns as [columns]."""
    if array is None or array.dtype != np.float32 or array.ndim > 1 or array.size not in (1, columns):
        return None
    return array.reshape(() if array.size == 1 else (columns,))


def _zero_point(product: ir.Node, weight: np.ndarray) -> np.ndarray | None:
    """Of a tensor as a scalar, or of columns as [columns]."""
    given = product.inputs[3] if len(product.inputs) > 3 else None
    if given is None:
        return np.zeros((), weight.dtype)
    array, columns = constant_of(given), weight.shape[1]
    if array is None or array.ndim > 1 or array.size not in (1, columns):
        return None
    return array.reshape(() if array.size == 1 else (columns,))


def _bias(value: ir.Value, columns: int) -> tuple[ir.Node, ir.Value] | None:
    for add in users(value, "Add", only=True):
        for first, other in either_way(add):
            array = constant_of(other)
            if first is value and array is not None and array.shape == (columns,):
                return add, other
    return None
