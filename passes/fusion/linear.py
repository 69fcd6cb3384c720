"""Conv, ConvTranspose, Gemm and MatMul with constant weights, which take over what comes behind them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import constant_of, tensor_of
from burnish.passes.matching import Scope

_Array = np.ndarray
_FLOATS: Final = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
_MAX_COPY: Final = 1 << 16  # bytes of a weight that is written once more because it is shared


@final
@dataclasses.dataclass(frozen=True)
class Affine:
    """y = x * factor + shift for each channel; both [channels] or [1], float64. None: left out."""

    factor: _Array | None = None
    shift: _Array | None = None


@final
@dataclasses.dataclass(frozen=True)
class Folded:
    """A new weight and bias; None: as before."""

    weight: _Array | None
    bias: _Array | None

    def is_finite(self) -> bool:
        """True when nothing overflows."""
        return all(part is None or bool(np.isfinite(part).all()) for part in (self.weight, self.bias))


def is_linear(node: ir.Node | None) -> bool:
    """True for the operators that `fold` knows."""
    return node is not None and node.domain in ("", "ai.onnx") and node.op_type in _FOLDS


def weights_are_constant(linear: ir.Node) -> bool:
    """True when weight and bias are known."""
    return all(value is None or tensor_of(value) is not None for value in linear.inputs[1:])


def why_not_folded(linear: ir.Node, *, scales: bool) -> str | None:
    """Why weight and bias cannot take a step over; `scales`: the weight would be another one."""
    value = linear.inputs[1]
    weight = None if value is None else tensor_of(value)
    if value is None or weight is None or not weights_are_constant(linear):
        return f"the weights of the {linear.op_type} are not constant"
    if weight.dtype not in _FLOATS:
        return "its weights are not float32, and folding would round them once more"
    shared = any(user is not linear for user in value.consumers())
    if scales and shared and weight.nbytes > _MAX_COPY:
        return "its weight is used elsewhere too, and would be there twice"
    return None


def channels(linear: ir.Node) -> int | None:
    """How many channels (or columns) the result has; None when the weight has another rank than it must."""
    weight = constant_of(linear.inputs[1])
    if weight is None or weight.ndim < 2 or (weight.ndim > 2 and not linear.op_type.startswith("Conv")):
        return None
    if linear.op_type == "ConvTranspose":
        return int(weight.shape[1]) * (linear.attributes.get_int("group", 1) or 1)
    first = linear.op_type == "Conv" or bool(linear.attributes.get_int("transB", 0))
    return int(weight.shape[0 if first else 1])


def fold(linear: ir.Node, affine: Affine) -> Folded | None:
    """What the node needs to take the step too; None when a constant has another size than the channels.

    Weight and bias are constant.
    """
    original, count = constant_of(linear.inputs[1]), channels(linear)
    if original is None or count is None:
        return None
    given = linear.inputs[2] if len(linear.inputs) > 2 else None
    factor = np.ones(1) if affine.factor is None else affine.factor
    shift = np.zeros(1) if affine.shift is None else affine.shift
    try:
        factor, shift = np.broadcast_to(factor, count), np.broadcast_to(shift, count)
        with np.errstate(all="ignore"):  # the caller looks at what comes out
            weight = _FOLDS[linear.op_type](linear, original.astype(np.float64), factor)
            bias = as_float64(given) * linear.attributes.get_float("beta", 1.0) * factor + shift
    except ValueError:
        return None
    if weight.shape != original.shape:
        return None
    unbiased = given is None and affine.shift is None
    with np.errstate(over="ignore"):  # the caller looks at what comes out
        return Folded(
            None if affine.factor is None else weight.astype(original.dtype),
            None if unbiased else bias.astype(original.dtype),
        )


def as_float64(value: ir.Value | None) -> _Array:
    """The constant; 0 for an input that is absent."""
    array = constant_of(value)
    return np.zeros(()) if array is None else array.astype(np.float64)


def emit(linear: ir.Node, folded: Folded, scope: Scope) -> ir.Node:
    """The node with the new weights, which are new constants: others may share the old ones."""
    names = [value.name for value in linear.inputs[1:] if value is not None]
    inputs = list(linear.inputs)
    op_type = linear.op_type
    if folded.weight is not None:
        inputs[1] = scope.constant(linear, f"{names[0]}_folded", folded.weight)
    if folded.bias is None:
        return ir.Node("", op_type, inputs, linear.attributes.values(), name=linear.name)
    name = f"{names[1]}_folded" if len(names) > 1 else f"{names[0]}_folded_bias"
    inputs[2:] = [scope.constant(linear, name, folded.bias)]
    attributes = [a for key, a in linear.attributes.items() if key != "beta"]
    return ir.Node("", "Gemm" if op_type == "MatMul" else op_type, inputs, attributes, name=linear.name)


def _fold_conv(_: ir.Node, weight: _Array, factor: _Array) -> _Array:
    """Weight [out, in / group, ...]."""
    return np.asarray(weight * factor.reshape(-1, *[1] * (weight.ndim - 1)))


def _fold_conv_transpose(node: ir.Node, weight: _Array, factor: _Array) -> _Array:
    """Weight [in, out / group, ...], of which the first `in / group` rows make the first group."""
    group = node.attributes.get_int("group", 1)
    split = weight.reshape(group, -1, *weight.shape[1:])
    by = factor.reshape(group, 1, -1, *[1] * (weight.ndim - 2))
    return np.asarray(split * by).reshape(weight.shape)


def _fold_gemm(node: ir.Node, weight: _Array, factor: _Array) -> _Array:
    """Weight [in, out], or [out, in] with transB."""
    transposed = node.attributes.get_int("transB", 0)
    return np.asarray(weight * (factor[:, None] if transposed else factor))


_FOLDS: Final[dict[str, Callable[[ir.Node, _Array, _Array], _Array]]] = {
    "Conv": _fold_conv,
    "ConvTranspose": _fold_conv_transpose,
    "Gemm": _fold_gemm,
    "MatMul": _fold_gemm,
}
