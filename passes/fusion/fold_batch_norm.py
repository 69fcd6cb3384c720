"""BatchNormalization(Conv(x, w, b))  ->  Conv(x, w', b')

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference" (2018), equation 14.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, constant_of, is_op
from burnish.passes.matching import Scope, obstacle, rank, scopes

_Array = np.ndarray


@final
@dataclasses.dataclass(frozen=True)
class _Affine:
    """What a BatchNormalization does to each channel: y = x * factor + shift; both [channels] float64."""

    factor: _Array
    shift: _Array


@final
@dataclasses.dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold inference BatchNormalization into the weights of the Conv, Gemm or MatMul before it.

    Also ConvTranspose, with groups. Weights and statistics must be constant, and the result before the
    normalisation used nowhere else. A bias is made where there is none (a MatMul then becomes a Gemm).
    The folded weights are new initializers: others that share the old ones keep them.
    """

    name: ClassVar[str] = "fold-batch-norm"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many normalisations were folded."""
        return sum(
            _fold(node, scope, context)
            for scope in scopes(model)
            for node in list(scope.graph)
            if is_op(node, "BatchNormalization")
        )


def _fold(norm: ir.Node, scope: Scope, context: Context) -> bool:
    linear = norm.inputs[0].producer() if norm.inputs and norm.inputs[0] is not None else None
    if linear is None or not any(is_op(linear, op_type) for op_type in _FOLDS):
        return False
    result = norm.outputs[0]
    why = _refusal(norm, linear) or obstacle([linear, norm], [result])
    folded = None if why is not None else _folded(norm, linear)
    if why is not None or folded is None:
        context.miss(norm, why or "the constants do not fit each other")
        return False
    if not context.permit(norm):
        return False
    new = _emit(linear, folded, scope)
    scope.replace([linear, norm], [new], {result: new.outputs[0]}, FoldBatchNorm.name)
    return True


def _refusal(norm: ir.Node, linear: ir.Node) -> str | None:
    if norm.attributes.get_int("training_mode", 0) != 0:
        return "the normalisation is in training mode"
    if norm.attributes.get_int("spatial", 1) != 1:
        return "its statistics differ by position (spatial=0)"
    if any(output.uses() or output.is_graph_output() for output in norm.outputs[1:]):
        return "its running mean or variance is used"
    if any(constant_of(value) is None for value in norm.inputs[1:]):
        return "its statistics are not constant"
    if any(value is not None and constant_of(value) is None for value in linear.inputs[1:]):
        return f"the weights of the {linear.op_type} are not constant"
    if linear.op_type == "MatMul" and rank(linear.inputs[0]) != 2:
        return "channels are the second axis, which a MatMul sums into only at rank 2"
    return None


def _affine(norm: ir.Node) -> _Affine:
    scale, bias, mean, variance = (_float64(value) for value in norm.inputs[1:5])
    factor = scale / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    return _Affine(factor, bias - mean * factor)


def _float64(value: ir.Value | None) -> _Array:
    array = constant_of(value)
    return np.zeros(()) if array is None else array.astype(np.float64)


def _folded(norm: ir.Node, linear: ir.Node) -> tuple[_Array, _Array] | None:
    """The new weight and bias; None when a constant has another size than the channels."""
    affine, original = _affine(norm), constant_of(linear.inputs[1])
    if original is None:
        return None
    weight = original.astype(np.float64)
    bias = _float64(linear.inputs[2] if len(linear.inputs) > 2 else None)
    try:
        folded = _FOLDS[linear.op_type](linear, weight, affine.factor)
        beta = linear.attributes.get_float("beta", 1.0)
        new_bias = bias * beta * affine.factor + affine.shift
    except ValueError:
        return None
    if folded.shape != weight.shape:
        return None
    return folded.astype(original.dtype), new_bias.astype(original.dtype)


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


def _emit(linear: ir.Node, folded: tuple[_Array, _Array], scope: Scope) -> ir.Node:
    names = [value.name for value in linear.inputs[1:] if value is not None]
    weight = scope.constant(linear, f"{names[0]}_folded", folded[0])
    name = f"{names[1]}_folded" if len(names) > 1 else f"{names[0]}_folded_bias"
    bias = scope.constant(linear, name, folded[1])
    attributes = [a for key, a in linear.attributes.items() if key != "beta"]
    op_type = "Gemm" if linear.op_type == "MatMul" else linear.op_type
    inputs = [linear.inputs[0], weight, bias]
    return ir.Node("", op_type, inputs, attributes, name=linear.name)
