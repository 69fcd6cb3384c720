"""Gather(table, Slice(positions))  ->  Slice(table);   GatherND(mask, ranges)  ->  Unsqueeze(mask)"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, constant_of, is_op, tensor_of
from burnish.passes.cleanup.grids import Grid, Grids
from burnish.passes.cleanup.sizes import Sizes
from burnish.passes.dims import Dim
from burnish.passes.editing import Round, until_stable
from burnish.passes.shape_contents import slice_bounds
from burnish.passes.shapes import Shape

_NEUTRAL: Final = {"And": 1, "Or": 0}


@final
@dataclasses.dataclass(frozen=True)
class SimplifyIndices(Pass):
    """Replace lookups whose indices follow from their coordinates: positions, segments, masks.

    - a Gather or GatherElements of a constant by a slice of constant indices looks all of them up now and
      slices the result;
    - a Gather of a constant by one and the same index everywhere is that row, expanded;
    - a Gather of a constant by 0, 1, 2, ... is a Slice of it;
    - a Gather or GatherND that reads every element in order is the tensor itself, with dims of 1 added;
    - And with what is true everywhere, Or with what is false everywhere, is the other operand, expanded.

    Indices are followed as `offset + step * coordinate` from Range, constants, Unsqueeze, Expand, Add and
    comparisons. Kept: a lookup whose result would make the model larger by more than `max_bytes`.
    """

    name: ClassVar[str] = "simplify-indices"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    looks_for: ClassVar[frozenset[str]] = frozenset({"Gather", "GatherElements", "GatherND", *_NEUTRAL})

    max_bytes: int = 65536
    """Bytes that one lookup done now may add to the model, after what only it used is gone."""

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many lookups and masks were replaced."""
        # until nothing changes: a mask may be made of a mask
        return until_stable(model, context, lambda round_: _Simplifier(self.max_bytes, round_).visit)


@final
class _Simplifier:
    def __init__(self, max_bytes: int, round_: Round) -> None:
        self._max_bytes, self._round, self._context = max_bytes, round_, round_.context
        self._editor, self._shapes = round_.editor, round_.shapes
        self._sizes = Sizes(round_.model, self._shapes, self._editor)
        self._grids = Grids(round_.model, self._shapes)

    def visit(self, node: ir.Node) -> None:
        """Replace a lookup or a mask."""
        if is_op(node, "Gather"):
            self._simplify_gather(node)
        elif is_op(node, "GatherElements"):
            self._slice_table(node)
        elif is_op(node, "GatherND"):
            self._read_all(node)
        elif node.domain == "" and node.op_type in _NEUTRAL:
            self._drop_neutral(node)

    def _simplify_gather(self, node: ir.Node) -> None:
        for rule in (self._read_whole, self._take_row, self._slice_table, self._slice_rows):
            if rule(node):
                return

    def _drop_neutral(self, node: ir.Node) -> None:
        for kept, other in ((0, 1), (1, 0)):
            grid, source = self._grids[node.inputs[other]], node.inputs[kept]
            if grid is None or grid.uniform != _NEUTRAL[node.op_type] or source is None:
                continue
            if self._can_spread(node, source) and self._context.permit(node):
                self._spread(node, source)
            return

    def _take_row(self, node: ir.Node) -> bool:
        table, grid, axis = node.inputs[0], self._grids[node.inputs[1]], self._axis(node)
        tensor = None if table is None else tensor_of(table)
        if tensor is None or grid is None or grid.uniform is None or axis is None:
            return False
        sizes = [int(size) for size in tensor.shape.numpy()]
        if not -sizes[axis] <= grid.uniform < sizes[axis] or tensor.nbytes // sizes[axis] > self._max_bytes:
            return False
        row = np.take(tensor.numpy(), [grid.uniform], axis=axis)
        row = row.reshape([*sizes[:axis], *[1] * len(grid.shape), *sizes[axis + 1 :]])
        result = self._shapes[node.outputs[0]].shape
        can = result is not None and self._target(node, tuple(map(Dim.of, row.shape))) is not None
        if not can or not self._context.permit(node):
            return False
        constant = self._editor.constant(node, f"{node.outputs[0].name}_row", row)
        self._spread(node, constant)
        return True

    def _slice_table(self, node: ir.Node) -> bool:
        """Look constant indices up before they are sliced, and slice the result."""
        cut = None if node.inputs[1] is None else node.inputs[1].producer()
        axis = self._axis(node)
        if cut is None or not is_op(cut, "Slice") or axis is None or not self._grows_little(node, cut):
            return False
        table, indices = constant_of(node.inputs[0]), constant_of(cut.inputs[0])
        bounds = slice_bounds(self._round.call(cut))
        if table is None or indices is None or bounds is None or self._shapes.opset(node) < 10:
            return False
        if is_op(node, "GatherElements"):
            prefix = all(a == axis or (s.size == 0 and step == 1) for a, (s, _, step) in bounds.items())
            looked_up = _elements(table, indices, axis) if prefix else None
            shift = 0
        else:
            looked_up, shift = _rows(table, indices, axis), axis
        if looked_up is None or not self._context.permit(node):
            return False
        axes = self._numbers(node, [a + shift for a in bounds])
        whole = self._editor.constant(node, f"{node.outputs[0].name}_table", looked_up)
        inputs = [whole, cut.inputs[1], cut.inputs[2], axes, *cut.inputs[4:5]]
        self._round.renew(node, "Slice", inputs)
        return True

    def _slice_rows(self, node: ir.Node) -> bool:
        """Gather of a constant by 0, 1, 2, ...: a prefix of its rows."""
        grid, axis, whole = self._grids[node.inputs[1]], self._axis(node), node.inputs[0]
        if grid is None or grid.axis is None or axis is None or whole is None:
            return False
        length, rank = grid.shape[grid.axis], len(grid.shape)
        plain = all(dim.size == 1 for place, dim in enumerate(grid.shape) if place != grid.axis)
        if not plain or self._shapes.opset(node) < 10 or not self._sizes.can_make((length,), node):
            return False
        tensor = tensor_of(whole)
        copied = rank > 1 and len(whole.uses()) > 1  # the table gets dims of 1, and is needed as it was too
        if tensor is None or (copied and tensor.nbytes > self._max_bytes):
            return False
        if not self._fails_alike(node, axis + grid.axis, length) or not self._context.permit(node):
            return False
        if rank > 1:
            table, ones = tensor.numpy(), [1] * rank
            ones[grid.axis] = table.shape[axis]
            shape = [*table.shape[:axis], *ones, *table.shape[axis + 1 :]]
            whole = self._editor.constant(node, f"{node.outputs[0].name}_table", table.reshape(shape))
        starts, axes = (self._numbers(node, [number]) for number in (0, axis + grid.axis))
        end = self._sizes.vector((length,), node, f"{node.outputs[0].name}_end")
        _declare(node.outputs[0], {axis + place: dim.size for place, dim in enumerate(grid.shape)})
        self._round.renew(node, "Slice", [whole, starts, end, axes])
        return True

    def _numbers(self, before: ir.Node, numbers: list[int]) -> ir.Value:
        return self._round.numbers(before, "numbers", numbers)

    def _fails_alike(self, node: ir.Node, axis: int, length: Dim) -> bool:
        """True when too many rows are an error without the Gather's own check: Slice gives what there is.

        An operand beside it that has `length` elements on that axis does not broadcast with fewer, unless
        there is one.
        """
        result, rows = self._shapes[node.outputs[0]], self._shapes[node.inputs[0]].static
        if result.rank is None or rows is None or rows[self._axis(node) or 0] < 2:
            return False
        users = node.outputs[0].consumers()
        return bool(users) and all(
            self._has_partner(node, user, axis - result.rank, length) for user in users
        )

    def _has_partner(self, node: ir.Node, user: ir.Node, place: int, length: Dim) -> bool:
        if is_op(user, "Unsqueeze"):
            axes, rank = self._round.call(user).ints("axes", 1), self._shapes[user.outputs[0]].rank
            users = user.outputs[0].consumers()
            if axes is None or rank is None or not users:
                return False
            kept = [axis for axis in range(rank) if axis not in {a % rank for a in axes}]
            moved = kept[place] - rank
            return all(self._has_partner(user, each, moved, length) for each in users)
        if user.domain or user.op_type not in ("Add", "Mul", "Sub"):
            return False
        others = [self._shapes[value].shape for value in user.inputs if value is not node.outputs[0]]
        return any(shape is not None and len(shape) >= -place and shape[place] == length for shape in others)

    def _grows_little(self, node: ir.Node, cut: ir.Node) -> bool:
        tensors = [None if value is None else tensor_of(value) for value in (node.inputs[0], cut.inputs[0])]
        if tensors[0] is None or tensors[1] is None or not tensors[0].size:
            return False
        made = tensors[1].size * tensors[0].nbytes // tensors[0].size
        if is_op(node, "Gather"):
            made = made * tensors[0].size // max(1, int(tensors[0].shape.numpy()[self._axis(node) or 0]))
        freed = sum(
            tensor.nbytes
            for tensor, value, user in zip(tensors, (node.inputs[0], cut.inputs[0]), (node, cut), strict=True)
            if tensor is not None and value is not None and all(each is user for each in value.consumers())
        )
        return made - freed <= self._max_bytes

    def _read_whole(self, node: ir.Node) -> bool:
        """Gather by 0, 1, 2, ... up to the end of the axis."""
        source, grid, axis = node.inputs[0], self._grids[node.inputs[1]], self._axis(node)
        shape = self._shapes[source].shape
        if source is None or shape is None or grid is None or axis is None or grid.axis is None:
            return False
        whole = len(grid.shape) == 1 and grid.shape[0] == shape[axis]
        if (
            not whole
            or not self._editor.can_replace(node.outputs[0], source)
            or not self._context.permit(node)
        ):
            return False
        self._editor.replace(node.outputs[0], source)
        return True

    def _read_all(self, node: ir.Node) -> bool:
        """GatherND whose indices are coordinates of the result, one for each axis of the data."""
        source, shape = node.inputs[0], self._shapes[node.inputs[0]].shape
        places = self._coordinates(node)
        if source is None or shape is None or places is None or len(places) > len(shape):
            return False
        grids, rank = places, len(places[0].shape)
        axes = [grid.axis for grid in grids]
        known = [axis for axis in axes if axis is not None]
        covers = all(g.axis is not None and g.shape[g.axis] == d for g, d in zip(grids, shape, strict=False))
        if not covers or known != sorted(set(known)) or node.attributes.get_int("batch_dims", 0) != 0:
            return False
        added = [axis for axis in range(rank) if axis not in known]
        padded = (
            tuple(Dim.of(1) if a in added else places[0].shape[a] for a in range(rank)) + shape[len(known) :]
        )
        if self._target(node, padded) is None or not self._context.permit(node):
            return False
        if added:
            inserted = self._editor.insert(node, "Unsqueeze", [source, self._numbers(node, added)], name=None)
            self._shapes.add(inserted)
            source = inserted.outputs[0]
        self._spread(node, source)
        return True

    def _coordinates(self, node: ir.Node) -> list[Grid] | None:
        """The grids of the index vector's elements, without its last axis."""
        joined = None if node.inputs[1] is None else node.inputs[1].producer()
        if joined is None or not is_op(joined, "Concat") or self._shapes.opset(node) < 13:
            return None
        grids = [self._grids[value] for value in joined.inputs]
        known = [grid for grid in grids if grid is not None and grid.shape and grid.shape[-1].size == 1]
        rank = self._shapes[joined.outputs[0]].rank
        last = rank is not None and joined.attributes.get_int("axis", 0) in (-1, rank - 1)
        if not last or len(known) < len(grids):
            return None
        return [Grid(grid.shape[:-1], grid.offset, grid.steps) for grid in known]

    def _target(self, node: ir.Node, shape: Shape) -> Shape | None:
        """What Expand needs to make the node's result from that shape; empty: nothing; None: no way."""
        result = self._shapes[node.outputs[0]].shape
        if result is None or self._shapes.broadcast(shape, result) != result:
            return None
        if shape == result:
            return ()
        offset = len(result) - len(shape)
        least = tuple(
            Dim.of(1) if axis >= offset and shape[axis - offset] == dim else dim
            for axis, dim in enumerate(result)
        )
        return least if self._sizes.can_make(least, node) else None

    def _can_spread(self, node: ir.Node, source: ir.Value) -> bool:
        shape = self._shapes[source].shape
        target = None if shape is None else self._target(node, shape)
        return target is not None and (bool(target) or self._editor.can_replace(node.outputs[0], source))

    def _spread(self, node: ir.Node, source: ir.Value) -> None:
        """Let `source`, expanded if need be, be the node's result."""
        target = self._target(node, self._shapes[source].shape or ())
        if target:
            vector = self._sizes.vector(target, node, f"{node.outputs[0].name}_shape")
            self._round.renew(node, "Expand", [source, vector])
        elif self._editor.can_replace(node.outputs[0], source):
            self._editor.replace(node.outputs[0], source)
        else:
            self._round.renew(node, "Identity", [source])

    def _axis(self, node: ir.Node) -> int | None:
        return self._round.call(node).axis(self._shapes[node.inputs[0]].rank)


def _declare(value: ir.Value, sizes: Mapping[int, int | None]) -> None:
    """Correct the declared sizes by the known ones: onnxruntime reuses memory by what is declared."""
    if value.shape is not None and not value.is_graph_output() and not value.shape.frozen:
        for axis, size in sizes.items():
            if size is not None and axis < len(value.shape):
                value.shape[axis] = size


def _rows(table: np.ndarray, indices: np.ndarray, axis: int) -> np.ndarray | None:
    size = table.shape[axis]
    if not np.all((indices >= -size) & (indices < size)):
        return None
    return np.take(table, indices, axis=axis)


def _elements(table: np.ndarray, indices: np.ndarray, axis: int) -> np.ndarray | None:
    size = table.shape[axis]
    if table.ndim != indices.ndim or not np.all((indices >= -size) & (indices < size)):
        return None
    if any(i > t for a, (i, t) in enumerate(zip(indices.shape, table.shape, strict=True)) if a != axis):
        return None
    part = tuple(slice(None) if a == axis else slice(0, n) for a, n in enumerate(indices.shape))
    return np.take_along_axis(table[part], indices, axis=axis)
