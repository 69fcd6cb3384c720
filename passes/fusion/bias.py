"""Add(x, bias) with a constant 1-D bias along the last axis of x, as a Linear leaves it."""

from __future__ import annotations

import dataclasses
from typing import final

import onnx_ir as ir

from burnish.passes.matching import dim, either_way, is_fixed, made_by, rank


@final
@dataclasses.dataclass(frozen=True)
class Biased:
    """The addition of a bias: `add` makes x + bias, which has the shape of x."""

    add: ir.Node
    x: ir.Value
    bias: ir.Value


def biased(value: ir.Value | None) -> Biased | None:
    """How `value` was made by adding a 1-D constant that is provably as long as the last axis."""
    add = made_by(value, "Add")
    if add is None:
        return None
    for x, bias in either_way(add):
        if rank(bias) == 1 and is_fixed(bias) and dim(bias, 0) == last_dim(x):
            return Biased(add, x, bias) if dim(bias, 0) is not None and (rank(x) or 2) > 1 else None
    return None


def last_dim(x: ir.Value | None) -> int | None:
    """The size of the last axis, read from weights and biases where the shape does not say it."""
    size = dim(x, -1)
    if size is not None:
        return size
    if (product := made_by(x, "MatMul")) is not None:
        return dim(product.inputs[1], -1) or last_dim(product.inputs[1])
    if (transpose := made_by(x, "Transpose")) is not None:
        order = transpose.attributes.get_ints("perm", [0])  # without it, the axes are reversed
        return dim(transpose.inputs[0], order[-1])
    addition = biased(x)
    return None if addition is None else dim(addition.bias, 0)
