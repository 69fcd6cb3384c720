"""Squeeze(Slice(Reshape(rows, [.., 3, n, d]), i))  ->  Reshape(Split(rows)[i], [.., n, d])

Query, key and value that one Linear makes are stacked along an axis of their own, and taken from there.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, is_op
from burnish.passes.dims import Dim
from burnish.passes.editing import Round, feeds_only, until_stable
from burnish.passes.matching import MADE_BY
from burnish.passes.shape_contents import slice_bounds

_FIRST_OPSET = 13  # from where on Split and Squeeze take sizes and axes as inputs


@final
@dataclasses.dataclass(frozen=True)
class SplitStacked(Pass):
    """Split the last axis where a Reshape stacks its parts along a new axis, and each part is taken alone.

    The parts are then rows again, which rotary embeddings and attention read as they are. All parts must be
    taken, each once, by Slice and Squeeze or by Gather, and nothing else may read the stack.
    """

    name: ClassVar[str] = "split-stacked"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    looks_for: ClassVar[frozenset[str]] = frozenset({"Reshape"})

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many stacks were split."""
        return until_stable(model, context, lambda round_: lambda node: _visit(node, round_))


def _visit(node: ir.Node, round_: Round) -> None:
    if not is_op(node, "Reshape") or not 1 < len(node.outputs[0].uses()) <= 8 or node.inputs[0] is None:
        return
    before, after = round_.shapes[node.inputs[0]].shape, round_.shapes[node.outputs[0]].shape
    if (
        before is None
        or after is None
        or not 1 < len(before) < len(after)
        or before[:-1] != after[: len(before) - 1]
    ):
        return
    axis = len(before) - 1
    sizes = [dim.size for dim in after[axis:]]
    if None in sizes or sizes[0] != len(node.outputs[0].uses()) or round_.shapes.opset(node) < _FIRST_OPSET:
        return
    taken = {part: user for user in node.outputs[0].consumers() for part in [_part(user, axis, round_)]}
    parts = [taken.get(index) for index in range(len(node.outputs[0].uses()))]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or node.outputs[0].is_graph_output():
        round_.context.miss(node, "what it stacks is not taken part by part, each once")
    elif round_.context.permit(node):
        _split(node, known, [size or 0 for size in sizes], axis, round_)


def _part(user: ir.Node, axis: int, round_: Round) -> int | None:
    """Which part along that axis a node takes; None when it does something else."""
    call = round_.call(user)
    if is_op(user, "Gather"):
        index = call.input(1).ints
        along = call.axis(call.input(0).rank) == axis
        return index[0] if along and index and call.input(1).rank == 0 else None
    if not is_op(user, "Slice") or len(user.outputs[0].uses()) != 1:
        return None
    (squeeze,) = user.outputs[0].consumers()
    bounds = slice_bounds(call) or {}
    if list(bounds) != [axis] or not is_op(squeeze, "Squeeze") or not feeds_only(user, squeeze):
        return None
    start, end, step = bounds[axis]
    rank, axes = call.input(0).rank or 0, round_.call(squeeze).ints("axes", 1)
    alone = axes is not None and [each % rank for each in axes] == [axis]
    first = start.size
    return first if alone and step == 1 and first is not None and end == Dim.of(first + 1) else None


def _split(node: ir.Node, takers: list[ir.Node], sizes: list[int], axis: int, round_: Round) -> None:
    editor, rest = round_.editor, sizes[1:]
    width = int(np.prod(rest))
    lengths = round_.numbers(node, f"{node.outputs[0].name}_parts", [width] * len(takers))
    split = ir.node("Split", [node.inputs[0], lengths], {"axis": axis}, num_outputs=len(takers))
    split.metadata_props.update(node.metadata_props | {MADE_BY: SplitStacked.name})
    leading = (
        None if node.inputs[0] is None or node.inputs[0].shape is None else list(node.inputs[0].shape)[:-1]
    )
    for value in split.outputs:
        value.shape = None if leading is None else ir.Shape([*leading, width])
        value.name, value.type = editor.fresh(f"{node.outputs[0].name}_part"), node.outputs[0].type
    split.name = f"node_{split.outputs[0].name}"
    if node.graph is not None:
        node.graph.insert_before(node, split)
    round_.shapes.add(split)
    target = round_.numbers(node, f"{node.outputs[0].name}_part_shape", [0] * axis + rest)
    for value, taker in zip(split.outputs, takers, strict=True):
        last = taker if is_op(taker, "Gather") else next(iter(taker.outputs[0].consumers()))
        round_.renew(last, "Reshape", [value, target]).metadata_props[MADE_BY] = SplitStacked.name
