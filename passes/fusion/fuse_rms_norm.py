"""x / Sqrt(ReduceMean(x²) + epsilon) * scale  ->  RMSNormalization(x, scale)

Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, final

import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass
from burnish.passes.fusion.norms import as_vector, mean_axes, roots, scaled_by, squares, unit_scale
from burnish.passes.matching import (
    CONTRIB,
    Scope,
    candidates,
    dim,
    either_way,
    made_by,
    obstacle,
    rank,
    users,
)

_OPSET = 23  # RMSNormalization is standard from here on


@final
@dataclasses.dataclass(frozen=True)
class _Match:
    x: ir.Value
    nodes: tuple[ir.Node, ...]
    """All nodes of the pattern; the last one makes the result."""
    axes: tuple[int, ...]
    epsilon: float
    scale: ir.Value | None = None


@final
@dataclasses.dataclass(frozen=True)
class FuseRmsNorm(Pass):
    """Fuse the arithmetic of root-mean-square normalisation over the last axis into one op.

    Known are: squares by Pow or Mul; division by Sqrt, or product with Reciprocal or Pow; with or without a
    scale, on either side of the product; half precision that is normalised in float32, by Casts around it.
    The op is RMSNormalization; in graphs of an opset below 23, onnxruntime's SimplifiedLayerNormalization
    (which has the default domain, but is in no opset), where the target has it.
    """

    name: ClassVar[str] = "fuse-rms-norm"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING
    looks_for: ClassVar[frozenset[str]] = frozenset({"ReduceMean"})

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many normalisations were fused."""
        return sum(_fuse(node, scope, context) for node, scope in candidates(model, "ReduceMean"))


def norm_op(opset: int) -> str:
    """The op that normalises by the root mean square in a graph of that opset."""
    return "RMSNormalization" if opset >= _OPSET else "SimplifiedLayerNormalization"


def _fuse(mean: ir.Node, scope: Scope, context: Context) -> bool:
    found = next(_matches(mean), None)
    if found is None:
        return False
    result = found.nodes[-1].outputs[0]
    why = _refusal(found, scope, context) or obstacle(found.nodes, [result])
    if not context.permit_unless(why, found.nodes[-1]):
        return False
    scale = as_vector(found.nodes, found.scale, scope) or unit_scale(found.nodes, found.x, scope)
    attributes = {"axis": -1, "epsilon": found.epsilon, "stash_type": 1}
    new = ir.node(norm_op(scope.opset), [found.x, scale], attributes)
    scope.replace(found.nodes, [new], {result: new.outputs[0]}, FuseRmsNorm.name)
    return True


def _refusal(found: _Match, scope: Scope, context: Context) -> str | None:
    op_type = norm_op(scope.opset)
    if not context.target.has_kernel("" if op_type == "RMSNormalization" else CONTRIB, op_type):
        return f"target {context.target.name} has no kernel for {op_type}"
    last = -1 if (size := rank(found.x)) is None else size - 1
    if found.axes not in ((-1,), (last,)):
        return f"normalises over axes {list(found.axes)}, not over the last one only"
    if found.x.dtype == ir.DataType.DOUBLE:
        return f"{op_type} would calculate float64 in float32"
    if found.scale is None and dim(found.x, -1) is None:
        return "without a scale, the size of the last axis must be known"
    dtypes = {value.dtype for value in (found.x, found.scale) if value is not None}
    return "scale has another type than what is normalised" if len(dtypes - {None}) > 1 else None


def _matches(mean: ir.Node) -> Iterator[_Match]:
    """The longest match first: with the scale, and with the Casts around."""
    square, axes = mean.inputs[0].producer() if mean.inputs[0] is not None else None, mean_axes(mean)
    x = square.inputs[0] if square is not None and square.inputs else None
    if square is None or x is None or axes is None or square not in squares(x):
        return
    for nodes, epsilon, inverted in roots(square, axes):
        if nodes[0] is not mean:
            continue
        core = _Match(x, (square, *nodes), axes, epsilon)
        for plain in _products(core, nodes[-1].outputs[0], inverted=inverted):
            yield _uncast(plain) or _with_scale(plain)


def _products(core: _Match, root: ir.Value, *, inverted: bool) -> Iterator[_Match]:
    """x * root, x * (root * scale) or x / root."""
    if not inverted:
        for node in users(root, "Div"):
            if node.inputs[0] is core.x and node.inputs[1] is root:
                yield dataclasses.replace(core, nodes=(*core.nodes, node))
        return
    scaled = scaled_by(root, core.x)
    factor = root if scaled is None else scaled[0].outputs[0]
    inner = (
        core if scaled is None else dataclasses.replace(core, nodes=(*core.nodes, scaled[0]), scale=scaled[1])
    )
    for node in users(factor, "Mul"):
        if any(one is core.x and other is factor for one, other in either_way(node)):
            yield dataclasses.replace(inner, nodes=(*inner.nodes, node))


def _with_scale(found: _Match) -> _Match:
    tail = scaled_by(found.nodes[-1].outputs[0], found.x) if found.scale is None else None
    return found if tail is None else dataclasses.replace(found, nodes=(*found.nodes, tail[0]), scale=tail[1])


def _uncast(found: _Match) -> _Match | None:
    """With the Cast to float32 ahead and the one back behind: the op does both itself."""
    up, result = made_by(found.x, "Cast"), found.nodes[-1].outputs[0]
    x = None if up is None else up.inputs[0]
    if up is None or x is None or found.scale is not None or found.x.dtype != ir.DataType.FLOAT:
        return None
    for down in users(result, "Cast", only=True):
        if x.dtype is not None and down.attributes.get_int("to") == int(x.dtype):
            return _with_scale(dataclasses.replace(found, x=x, nodes=(up, *found.nodes, down)))
    return None
