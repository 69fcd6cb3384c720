"""What the patterns of normalisation share: mean of squares, inverse root, scale and bias vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from burnish.passes.base import constant_of
from burnish.passes.fusion.bias import last_dim
from burnish.passes.matching import Scope, close, dim, either_way, is_fixed, rank, scalar, users


def mean_axes(node: ir.Node) -> tuple[int, ...] | None:
    """The axes of a ReduceMean that keeps its dims; None when it does not, or they are unknown."""
    if node.attributes.get_int("keepdims", 1) != 1:
        return None
    attribute = node.attributes.get_ints("axes", None)
    if attribute is not None:
        return tuple(attribute)
    array = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if array is None or not array.size else tuple(map(int, array.reshape(-1)))


def squares(deviation: ir.Value) -> list[ir.Node]:
    """The nodes that square a value."""
    powers = [n for n in users(deviation, "Pow") if scalar(n.inputs[1]) == 2.0]
    return powers + [n for n in users(deviation, "Mul") if n.inputs[0] is n.inputs[1]]


def roots(square: ir.Node, axes: tuple[int, ...]) -> Iterator[tuple[tuple[ir.Node, ...], float, bool]]:
    """ReduceMean, Add and what makes sqrt(variance + epsilon), or its inverse (True)."""
    means = [n for n in users(square.outputs[0], "ReduceMean") if mean_axes(n) == axes]
    for mean, add in ((n, add) for n in means for add in users(n.outputs[0], "Add")):
        numbers = [scalar(value) for value in add.inputs]
        epsilon = next((number for number in numbers if number is not None), -1.0)
        if epsilon >= 0.0:
            for nodes, inverted in _root(add.outputs[0]):
                yield (mean, add, *nodes), epsilon, inverted


def _root(value: ir.Value) -> Iterator[tuple[tuple[ir.Node, ...], bool]]:
    for power in users(value, "Pow"):
        exponent = scalar(power.inputs[1])
        if exponent in (0.5, -0.5):
            yield (power,), exponent == -0.5
    for root in users(value, "Sqrt"):
        for inverse in (*users(root.outputs[0], "Reciprocal"), *users(root.outputs[0], "Div")):
            if inverse.op_type == "Reciprocal" or close(scalar(inverse.inputs[0]), 1.0):
                yield (root, inverse), True
        yield (root,), False


def scaled_by(value: ir.Value, x: ir.Value, *, only: bool = True) -> tuple[ir.Node, ir.Value] | None:
    """The product of `value` with a vector along the last axis, and that vector."""
    for node in users(value, "Mul", only=only):
        for operand, other in either_way(node):
            if operand is value and is_vector(other, x):
                return node, other
    return None


def is_vector(value: ir.Value, x: ir.Value) -> bool:
    """True for [n], or a constant [1, ..., n], that is as long as the last axis of `x`.

    An axis of unknown size does not do: where it is 1, the product spreads along the vector. Beside an `x`
    that may be a vector itself, a computed one may be a step of the pattern.
    """
    size, length, dims = rank(value), dim(value, -1), rank(x)
    if not size or length is None or last_dim(x) != length:
        return False
    if size == 1:
        return dims not in (None, 1) or is_fixed(value)
    leading = [dim(value, axis) for axis in range(size - 1)]
    return leading == [1] * len(leading) and dims is not None and size <= dims and _is_constant(value)


def _is_constant(value: ir.Value) -> bool:
    return constant_of(value) is not None


def as_vector(nodes: Sequence[ir.Node], value: ir.Value | None, scope: Scope) -> ir.Value | None:
    """`value` with one dim: itself, or a copy."""
    array = constant_of(value) if rank(value) != 1 else None
    if value is None or array is None:
        return value
    return scope.constant(nodes[-1], f"{value.name}_vector", array.reshape(-1))


def unit_scale(nodes: Sequence[ir.Node], x: ir.Value, scope: Scope) -> ir.Value:
    """A scale of ones as long as the last axis of `x`."""
    dtype = np.dtype(np.float32) if x.dtype is None else x.dtype.numpy()
    array = np.ones(dim(x, -1) or 1, dtype)
    return scope.constant(nodes[-1], f"{nodes[-1].outputs[0].name}_scale", array)
