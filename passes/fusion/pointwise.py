"""Convolutions with a kernel of 1: a product over the channels, the same at every position."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import constant_of, is_op, is_templated, tensor_of
from burnish.passes.matching import Scope

_SHORTEST: Final = 3  # dims of a weight: channels made, channels read, one dim of space


def is_pointwise(node: ir.Node) -> bool:
    """True for a Conv with constant weights, a kernel of 1, steps of 1, one group, and no padding."""
    if not is_op(node, "Conv") or is_templated(node) or None in node.inputs[:2]:
        return False
    weight, attributes = tensor_of(_weight(node)), node.attributes
    shape = () if weight is None else weight.shape.numpy()
    if len(shape) < _SHORTEST or any(size != 1 for size in shape[2:]):
        return False
    steps, pads = attributes.get_ints("strides", None) or (), attributes.get_ints("pads", None) or ()
    biases = (tensor_of(value) for value in node.inputs[2:] if value is not None)
    plain = attributes.get_int("group", 1) == 1 and all(step == 1 for step in steps) and not any(pads)
    return plain and None not in list(biases)


def matrix_of(node: ir.Node) -> np.ndarray:
    """The weight of a pointwise Conv as [channels made, channels read], float64."""
    weight = _array(node)
    return weight.reshape(weight.shape[:2]).astype(np.float64)


def emit_pointwise(
    like: ir.Node, x: ir.Value, matrix: np.ndarray, bias: np.ndarray | None, scope: Scope
) -> ir.Node:
    """A pointwise Conv of `x` by [channels made, channels read], in all else what `like` is.

    Its result has a new name, and the type of that of `like`.
    """
    weight, name = _array(like), f"{_weight(like).name}_part"
    shape, dtype = (*matrix.shape, *weight.shape[2:]), weight.dtype
    inputs = [x, scope.constant(like, name, matrix.reshape(shape).astype(dtype))]
    if bias is not None:
        inputs.append(scope.constant(like, f"{name}_bias", bias.astype(dtype)))
    new = ir.Node("", "Conv", inputs, like.attributes.values(), num_outputs=1)
    old, result = like.outputs[0], new.outputs[0]
    result.name, result.type = scope.fresh(f"{old.name}_part"), old.type
    return new


def _weight(node: ir.Node) -> ir.Value:
    value = node.inputs[1]
    if value is None:
        raise ValueError("A Conv has a weight.")
    return value


def _array(node: ir.Node) -> np.ndarray:
    array = constant_of(_weight(node))
    if array is None:
        raise ValueError("The weight of a pointwise Conv is constant.")
    return array
