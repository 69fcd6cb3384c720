"""(x - ReduceMean(x)) / Sqrt(ReduceMean((x - ReduceMean(x))²) + epsilon) * scale + bias
->  LayerNormalization(x, scale, bias)

Source: Ba, Kiros and Hinton, "Layer Normalization" (2016).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, final

import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass
from burnish.passes.fusion.norms import (
    as_vector,
    is_vector,
    mean_axes,
    roots,
    scaled_by,
    squares,
    unit_scale,
)
from burnish.passes.matching import CONTRIB, Scope, candidates, dim, either_way, obstacle, rank, users
from burnish.target import is_own


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
    with or without scale and bias. Below opset 17 the op is onnxruntime's, where the target has it.
    """

    name: ClassVar[str] = "fuse-layer-norm"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING
    looks_for: ClassVar[frozenset[str]] = frozenset({"ReduceMean"})

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many normalisations were fused."""
        return sum(_fuse(node, scope, context) for node, scope in candidates(model, "ReduceMean"))


def _fuse(mean: ir.Node, scope: Scope, context: Context) -> bool:
    core = _core(mean)
    found = None if core is None else _keras(core) or _plain(core)
    if found is None:
        return False
    result = found.nodes[-1].outputs[0]
    why = _refusal(found, scope, context) or obstacle(found.nodes, [result])
    if not context.permit_unless(why, found.nodes[-1]):
        return False
    scale = as_vector(found.nodes, found.scale, scope) or unit_scale(found.nodes, found.core.x, scope)
    inputs = [found.core.x, scale]
    bias = as_vector(found.nodes, found.bias, scope)
    if bias is not None:
        inputs.append(bias)
    attributes = {"axis": -1, "epsilon": found.core.epsilon}
    new = ir.node("LayerNormalization", inputs, attributes)
    scope.replace(found.nodes, [new], {result: new.outputs[0]}, FuseLayerNorm.name)
    return True


def _refusal(found: _Match, scope: Scope, context: Context) -> str | None:
    x, domain = found.core.x, CONTRIB if is_own("LayerNormalization", scope.opset) else ""
    if not context.target.has_kernel(domain, "LayerNormalization"):
        return f"target {context.target.name} has no LayerNormalization at opset {scope.opset}"
    last = -1 if (size := rank(x)) is None else size - 1
    if found.core.axes not in ((-1,), (last,)):
        return f"normalises over axes {list(found.core.axes)}, not over the last one only"
    if x.dtype == ir.DataType.DOUBLE:
        return "LayerNormalization would calculate float64 in float32"
    if found.scale is None and dim(x, -1) is None:
        return "without a scale, the size of the last axis must be known"
    return None


def _core(mean: ir.Node) -> _Core | None:
    x, axes = mean.inputs[0], mean_axes(mean)
    if x is None or axes is None:
        return None
    center = mean.outputs[0]
    subtractions = [node for node in users(center, "Sub") if node.inputs[0] is x and node.inputs[1] is center]
    deviations = tuple(node.outputs[0] for node in subtractions)
    for square in (square for deviation in deviations for square in squares(deviation)):
        for nodes, epsilon, inverted in roots(square, axes):
            inner = (mean, *subtractions, square, *nodes)
            root = nodes[-1].outputs[0]
            return _Core(x, center, axes, epsilon, deviations, root, inverted, inner)
    return None


def _plain(core: _Core) -> _Match | None:
    """deviation / root [* scale] [+ bias], also as deviation * (inverse * scale)."""
    scaled = scaled_by(core.root, core.x) if core.inverted else None
    factor = core.root if scaled is None else scaled[0].outputs[0]
    for node in users(factor, "Mul" if core.inverted else "Div"):
        first, second = node.inputs
        if second in core.deviations and core.inverted:
            first, second = second, first
        if first not in core.deviations or second is not factor:
            continue
        nodes = (*core.nodes, *((scaled[0],) if scaled else ()), node)
        scale = scaled[1] if scaled else None
        if scale is None and (tail := scaled_by(node.outputs[0], core.x)) is not None:
            nodes, scale = (*nodes, tail[0]), tail[1]
        return _with_bias(_Match(core, nodes, scale))
    return None


def _with_bias(found: _Match) -> _Match:
    result = found.nodes[-1].outputs[0]
    adds = users(result, "Add", only=True)
    for operand, other in (pair for add in adds for pair in either_way(add)):
        if operand is result and is_vector(other, found.core.x):
            return dataclasses.replace(found, nodes=(*found.nodes, *adds), bias=other)
    return found


def _keras(core: _Core) -> _Match | None:
    """x * factor + (bias - mean * factor), with factor = inverse * scale."""
    scaled = scaled_by(core.root, core.x, only=False) if core.inverted else None
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
        if bias is None or not is_vector(bias, core.x):
            continue
        for add in users(shift.outputs[0], "Add"):
            if on_x.outputs[0] in add.inputs:
                nodes = (*core.nodes, scaled[0], on_mean, on_x, shift, add)
                return _Match(core, nodes, scaled[1], bias)
    return None
