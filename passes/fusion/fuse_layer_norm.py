"""(x - ReduceMean(x)) / Sqrt(ReduceMean((x - ReduceMean(x))²) + epsilon) * scale + bias
->  LayerNormalization(x, scale, bias)

Source: Ba, Kiros and Hinton, "Layer Normalization" (2016).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, constant_of, is_op
from burnish.passes.matching import (
    Scope,
    close,
    dim,
    either_way,
    obstacle,
    rank,
    scalar,
    scopes,
    users,
)

_OPSET = 17  # LayerNormalization is standard from here on


@final
@dataclasses.dataclass(frozen=True)
class _Core:
    """What every way of writing it begins with: up to 1 / sqrt(variance + epsilon)."""

    x: ir.Value
    mean: ir.Value
    axes: tuple[int, ...]
    epsilon: float
    deviations: tuple[ir.Value, ...]
    """x - mean; once, or once for each use."""
    root: ir.Value
    """sqrt(variance + epsilon), or its inverse."""
    inverted: bool
    nodes: tuple[ir.Node, ...]


@final
@dataclasses.dataclass(frozen=True)
class _Match:
    core: _Core
    nodes: tuple[ir.Node, ...]
    """All nodes of the pattern; the last one makes the result."""
    scale: ir.Value | None = None
    bias: ir.Value | None = None


@final
@dataclasses.dataclass(frozen=True)
class FuseLayerNorm(Pass):
    """Fuse the arithmetic of layer normalisation over the last axis into LayerNormalization.

    Known are: axes as attribute or as input; squares by Pow or Mul; one or two subtractions; division
    by Sqrt, or product with Reciprocal or Pow; Keras' x * (r * scale) + (bias - mean * (r * scale));
    with or without scale and bias. The graph's opset must be at least 17.
    """

    name: ClassVar[str] = "fuse-layer-norm"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many normalisations were fused."""
        return sum(
            _fuse(node, scope, context)
            for scope in scopes(model)
            for node in list(scope.graph)
            if is_op(node, "ReduceMean")
        )


def _fuse(mean: ir.Node, scope: Scope, context: Context) -> bool:
    core = _core(mean)
    found = None if core is None else _keras(core) or _plain(core)
    if found is None:
        return False
    result = found.nodes[-1].outputs[0]
    why = _refusal(found, scope) or obstacle(found.nodes, [result])
    if why is not None:
        context.miss(found.nodes[-1], why)
        return False
    if not context.permit(found.nodes[-1]):
        return False
    scale = _vector(found, found.scale, scope) or _ones(found, scope)
    inputs = [found.core.x, scale]
    bias = _vector(found, found.bias, scope)
    if bias is not None:
        inputs.append(bias)
    attributes = {"axis": -1, "epsilon": found.core.epsilon}
    new = ir.node("LayerNormalization", inputs, attributes)
    scope.replace(found.nodes, [new], {result: new.outputs[0]}, FuseLayerNorm.name)
    return True


def _refusal(found: _Match, scope: Scope) -> str | None:
    x = found.core.x
    if scope.opset < _OPSET:
        return f"LayerNormalization needs opset {_OPSET}; this graph has {scope.opset}"
    last = -1 if (size := rank(x)) is None else size - 1
    if found.core.axes not in ((-1,), (last,)):
        return f"normalises over axes {list(found.core.axes)}, not over the last one only"
    if x.dtype == ir.DataType.DOUBLE:
        return "LayerNormalization would calculate float64 in float32"
    if found.scale is None and dim(x, -1) is None:
        return "without a scale, the size of the last axis must be known"
    return None


def _core(mean: ir.Node) -> _Core | None:
    x, axes = mean.inputs[0], _axes(mean)
    if x is None or axes is None:
        return None
    center = mean.outputs[0]
    subtractions = [node for node in users(center, "Sub") if node.inputs[0] is x and node.inputs[1] is center]
    deviations = tuple(node.outputs[0] for node in subtractions)
    for square in (square for deviation in deviations for square in _squares(deviation)):
        for nodes, epsilon, inverted in _roots(square, axes):
            inner = (mean, *subtractions, square, *nodes)
            root = nodes[-1].outputs[0]
            return _Core(x, center, axes, epsilon, deviations, root, inverted, inner)
    return None


def _axes(node: ir.Node) -> tuple[int, ...] | None:
    """The axes of a ReduceMean that keeps its dims; None when it does not, or they are unknown."""
    if node.attributes.get_int("keepdims", 1) != 1:
        return None
    attribute = node.attributes.get_ints("axes", None)
    if attribute is not None:
        return tuple(attribute)
    array = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if array is None or not array.size else tuple(map(int, array.reshape(-1)))


def _squares(deviation: ir.Value) -> list[ir.Node]:
    powers = [n for n in users(deviation, "Pow") if scalar(n.inputs[1]) == 2.0]
    return powers + [n for n in users(deviation, "Mul") if n.inputs[0] is n.inputs[1]]


def _roots(square: ir.Node, axes: tuple[int, ...]) -> Iterator[tuple[tuple[ir.Node, ...], float, bool]]:
    """ReduceMean, Add and what makes sqrt(variance + epsilon), or its inverse (True)."""
    means = [n for n in users(square.outputs[0], "ReduceMean") if _axes(n) == axes]
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


def _plain(core: _Core) -> _Match | None:
    """deviation / root [* scale] [+ bias], also as deviation * (inverse * scale)."""
    scaled = _scaled(core.root, core) if core.inverted else None
    factor = core.root if scaled is None else scaled[0].outputs[0]
    for node in users(factor, "Mul" if core.inverted else "Div"):
        first, second = node.inputs
        if second in core.deviations and core.inverted:
            first, second = second, first
        if first not in core.deviations or second is not factor:
            continue
        nodes = (*core.nodes, *((scaled[0],) if scaled else ()), node)
        scale = scaled[1] if scaled else None
        if scale is None and (tail := _scaled(node.outputs[0], core)) is not None:
            nodes, scale = (*nodes, tail[0]), tail[1]
        return _with_bias(_Match(core, nodes, scale))
    return None


def _with_bias(found: _Match) -> _Match:
    result = found.nodes[-1].outputs[0]
    adds = users(result, "Add", only=True)
    for operand, other in (pair for add in adds for pair in either_way(add)):
        if operand is result and _is_vector(other, found.core.x):
            return dataclasses.replace(found, nodes=(*found.nodes, *adds), bias=other)
    return found


def _keras(core: _Core) -> _Match | None:
    """x * factor + (bias - mean * factor), with factor = inverse * scale."""
    scaled = _scaled(core.root, core, only=False) if core.inverted else None
    if scaled is None:
        return None
    factor = scaled[0].outputs[0]
    products = {
        operand: node
        for node in users(factor, "Mul")
        for operand, other in either_way(node)
        if other is factor
    }
    if products.keys() != {core.x, core.mean}:
        return None
    on_x, on_mean = products[core.x], products[core.mean]
    for shift in users(on_mean.outputs[0], "Sub"):
        bias = shift.inputs[0]
        if bias is None or not _is_vector(bias, core.x):
            continue
        for add in users(shift.outputs[0], "Add"):
            if on_x.outputs[0] in add.inputs:
                nodes = (*core.nodes, scaled[0], on_mean, on_x, shift, add)
                return _Match(core, nodes, scaled[1], bias)
    return None


def _scaled(value: ir.Value, core: _Core, *, only: bool = True) -> tuple[ir.Node, ir.Value] | None:
    """The product of `value` with a vector along the last axis, and that vector."""
    for node in users(value, "Mul", only=only):
        for operand, other in either_way(node):
            if operand is value and _is_vector(other, core.x):
                return node, other
    return None


def _is_vector(value: ir.Value, x: ir.Value) -> bool:
    """True for [n], or a constant [1, ..., n], that is as long as the last axis of `x`."""
    size, length, dims = rank(value), dim(value, -1), rank(x)
    if not size or length is None or dim(x, -1) not in (None, length):
        return False
    if dim(x, -1) is None and length == 1:
        return False
    if size == 1:
        return True
    leading = [dim(value, axis) for axis in range(size - 1)]
    return leading == [1] * len(leading) and dims is not None and size <= dims and _is_constant(value)


def _is_constant(value: ir.Value) -> bool:
    return constant_of(value) is not None


def _vector(found: _Match, value: ir.Value | None, scope: Scope) -> ir.Value | None:
    """`value` with one dim: itself, or a copy."""
    array = constant_of(value) if rank(value) != 1 else None
    if value is None or array is None:
        return value
    return scope.constant(found.nodes[-1], f"{value.name}_vector", array.reshape(-1))


def _ones(found: _Match, scope: Scope) -> ir.Value:
    x = found.core.x
    dtype = np.dtype(np.float32) if x.dtype is None else x.dtype.numpy()
    ones = np.ones(dim(x, -1) or 1, dtype)
    return scope.constant(found.nodes[-1], f"{found.nodes[-1].outputs[0].name}_scale", ones)
