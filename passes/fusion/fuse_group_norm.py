"""InstanceNormalization(x by groups) * scale + bias  ->  GroupNormalization(x, scale, bias)

Source: Wu and He, "Group Normalization" (2018).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar, Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, constant_of
from burnish.passes.matching import Scope, candidates, either_way, made_by, obstacle, users
from burnish.passes.shapes import Shape, Shapes

_OPSET: Final = 21  # scale and bias of channels; GroupNormalization-18 has those of groups


@final
@dataclasses.dataclass(frozen=True)
class FuseGroupNorm(Pass):
    """Fuse the form in which exporters write GroupNorm, where the target has a kernel for it.

    That is Reshape to [batch, groups, rest], InstanceNormalization, Reshape back, and a scale and a bias for
    each channel, either of which may be absent. Kept: shapes that are not proved to be the same before and
    after, types other than float32, and opsets before 21, whose GroupNormalization scales groups.
    """

    name: ClassVar[str] = "fuse-group-norm"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING
    looks_for: ClassVar[frozenset[str]] = frozenset({"InstanceNormalization"})

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many norms were fused."""
        shapes = functools.cache(lambda: context.shapes(model))
        places = candidates(model, "InstanceNormalization")
        if not context.target.has_kernel("", "GroupNormalization"):
            return 0
        return sum(_fuse(norm, scope, context, shapes()) for norm, scope in places)


@final
@dataclasses.dataclass(frozen=True)
class _Match:
    x: ir.Value
    groups: int
    scale: np.ndarray
    bias: np.ndarray
    nodes: list[ir.Node]


def _fuse(norm: ir.Node, scope: Scope, context: Context, shapes: Shapes) -> bool:
    found = _match(norm, shapes)
    if found is None:
        return False
    last = found.nodes[-1]
    why = obstacle(found.nodes, last.outputs)
    if scope.opset < _OPSET:
        why = f"opset {scope.opset} has no GroupNormalization with a scale for each channel"
    elif found.x.dtype != ir.DataType.FLOAT:
        why = "its type is not float32, or not known"
    if not context.permit_unless(why, last):
        return False
    name = last.outputs[0].name
    scale = scope.constant(norm, f"{name}_scale", found.scale.astype(np.float32))
    bias = scope.constant(norm, f"{name}_bias", found.bias.astype(np.float32))
    attributes = {"num_groups": found.groups, "epsilon": norm.attributes.get_float("epsilon", 1e-5)}
    new = ir.node("GroupNormalization", [found.x, scale, bias], attributes)
    scope.replace(found.nodes, [new], {last.outputs[0]: new.outputs[0]}, FuseGroupNorm.name)
    return True


def _match(norm: ir.Node, shapes: Shapes) -> _Match | None:
    split, back = made_by(norm.inputs[0], "Reshape"), users(norm.outputs[0], "Reshape", only=True)
    x = None if split is None else split.inputs[0]
    if split is None or x is None or not back:
        return None
    shape, grouped = shapes[x].shape, shapes[split.outputs[0]].shape
    row = None if shape is None or grouped is None else _groups(shape, grouped)
    scale, bias = (constant_of(value) for value in norm.inputs[1:3])
    if row is None or shape is None or scale is None or bias is None:
        return None
    if shapes[back[0].outputs[0]].shape != shape or scale.shape != (row[0],) or bias.shape != (row[0],):
        return None
    groups, channels = row
    each = channels // groups
    match = _Match(x, groups, np.repeat(scale, each), np.repeat(bias, each), [split, norm, back[0]])
    return _with_step(_with_step(match, "Mul", len(shape)), "Add", len(shape))


def _groups(shape: Shape, grouped: Shape) -> tuple[int, int] | None:
    """How many groups and channels; None where the first dims are not [batch, groups, rest]."""
    if len(shape) < 3 or len(grouped) != 3 or grouped[0] != shape[0]:
        return None
    groups, channels = grouped[1].size, shape[1].size
    if not groups or not channels or channels % groups:
        return None
    return groups, channels


def _with_step(match: _Match, op_type: str, rank: int) -> _Match:
    """The match with the Mul or Add of a constant for each channel that follows."""
    result = match.nodes[-1].outputs[0]
    channels = match.scale.size
    for node in users(result, op_type, only=True):
        for x, other in either_way(node):
            array = constant_of(other, 1 << 20)
            if x is not result or array is None or array.size not in (1, channels) or array.ndim > rank:
                continue
            wide = array.reshape([1] * (rank - array.ndim) + list(array.shape))
            if wide.shape[1] != array.size:
                continue
            row = array.reshape(-1).astype(np.float64)
            nodes = [*match.nodes, node]
            if op_type == "Mul":
                return dataclasses.replace(match, scale=match.scale * row, bias=match.bias * row, nodes=nodes)
            return dataclasses.replace(match, bias=match.bias + row, nodes=nodes)
    return match
