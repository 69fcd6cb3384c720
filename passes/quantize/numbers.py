"""The arithmetic of int8: scales, zero points, rounded weights and biases. Plain numpy, deterministic.

real = scale * (quantised - zero_point); rounding is to nearest, ties to even, as QuantizeLinear does.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from burnish.target import QdqRules

FloatArray = npt.NDArray[np.float32]

WEIGHT_MAX: Final = 127  # symmetric: -128 is left unused so that |q| <= 127
_BIAS_MAX: Final = 2.0**30  # half of int32: the other half is for the products that the kernel adds
_TINY: Final = np.float32(1e-18)  # the product of two smaller scales would be a denormal


def activation_params(
    low: float, high: float, rules: QdqRules
) -> tuple[FloatArray, npt.NDArray[np.uint8] | npt.NDArray[np.int8]]:
    """Scale (float32 scalar) and zero point (scalar of the target's type) of the range [low, high].

    The range is widened to hold 0, so that zero padding and Relu are exact.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if rules.symmetric:
        scale = np.float32(max(-low, high) / 127)
        return _scalar(scale), np.asarray(0, np.int8)
    scale = np.float32((high - low) / 255)
    zero = 0 if scale < _TINY else int(np.clip(np.rint(-low / float(scale)), 0, 255))
    if rules.activation == "s8":
        return _scalar(scale), np.asarray(zero - 128, np.int8)
    return _scalar(scale), np.asarray(zero, np.uint8)


def _scalar(scale: np.float32) -> FloatArray:
    return np.asarray(scale if scale >= _TINY else 1.0, np.float32)


def weight_scale(weight: FloatArray, axis: int | None, bits: int = 8) -> FloatArray:
    """Symmetric scale of a weight: a scalar, or [weight.shape[axis]]; 1 where all values are 0.

    The largest value becomes 127, or 63 with 7 bits.
    """
    largest = 2 ** (bits - 1) - 1
    axes = None if axis is None else tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.asarray(np.abs(weight).max(axis=axes, initial=0.0) / largest, np.float32)
    return np.where(scale >= _TINY, scale, np.float32(1.0)).astype(np.float32)


def widen_for_bias(scale: FloatArray, bias: FloatArray, input_scale: float) -> FloatArray:
    """The weight scale, raised where the bias would not fit int32 at scale input_scale * scale."""
    needed = np.abs(bias.astype(np.float64)) / (_BIAS_MAX * input_scale)
    if scale.ndim == 0:
        needed = needed.max(initial=0.0)
    return np.maximum(scale, needed).astype(np.float32)


def quantize_weight(weight: FloatArray, scale: FloatArray, axis: int | None) -> npt.NDArray[np.int8]:
    """Round a weight to s8 with the given scale (scalar, or one for each index of `axis`)."""
    shape = [1] * weight.ndim
    if axis is not None:
        shape[axis] = -1
    rounded = np.rint(weight / scale.reshape(shape if scale.ndim else ()))
    return np.asarray(np.clip(rounded, -WEIGHT_MAX, WEIGHT_MAX), np.int8)


def quantize_bias(
    bias: FloatArray, input_scale: float, scale: FloatArray
) -> tuple[npt.NDArray[np.int32], FloatArray]:
    """The bias as int32 [N] and its scale input_scale * scale (scalar or [N]), as kernels add it."""
    product = (np.float32(input_scale) * scale).astype(np.float32)
    rounded = np.rint(bias.astype(np.float64) / product)
    return np.clip(rounded, -_BIAS_MAX, _BIAS_MAX).astype(np.int32), product
