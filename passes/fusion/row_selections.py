"""Which rows along one axis Gather, Slice and GatherND read; and the same rows of another value."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import constant_of, is_op
from burnish.passes.cleanup.remove_expand import as_ir_shape
from burnish.passes.dims import Dim
from burnish.passes.editing import Round
from burnish.passes.shape_contents import slice_bounds
from burnish.passes.shapes import Shape

OLDEST_OPSET: Final = 13
"""From it on, Slice, Squeeze and Unsqueeze take all that they need as inputs."""
_MAX_INDICES: Final = 4096
_FEW: Final = 128
"""An axis of unknown size is taken to be longer."""


@final
@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows along one axis: exactly one of the first four fields is given.

    An index that is out of range is an error of the model, before and after it is read elsewhere.
    """

    count: Dim
    """How many rows."""
    indices: tuple[int, ...] = ()
    """Constant, each once; negative ones count from the end."""
    index: ir.Value | None = None
    """One, computed: int64 or int32 of one element."""
    bounds: tuple[int, int, int] | None = None
    """First, end and step of a Slice."""
    each: ir.Value | None = None
    """One computed index for each element of axis 0: int64 [batch, 1]. The rows are along axis 1."""

    @property
    def is_computed(self) -> bool:
        """True when which rows is known only when the model runs."""
        return self.index is not None or self.each is not None


@final
@dataclasses.dataclass(frozen=True)
class Selection:
    """What a node reads of its first input."""

    node: ir.Node
    axis: int
    """Not negative."""
    rows: Rows


def selection(node: ir.Node, round_: Round) -> Selection | None:
    """What a node selects along one axis; None where that is not known, or nothing.

    Rows outside a known size, and Slices that may be empty where the axis is not, are None too.
    """
    shape = round_.shapes[node.inputs[0]].shape if node.inputs else None
    if not shape or node.domain not in ("", "ai.onnx") or round_.shapes.opset(node) < OLDEST_OPSET:
        return None
    if is_op(node, "Gather"):
        return _gathered(node, shape, round_)
    if is_op(node, "Slice"):
        return _sliced(node, shape, round_)
    return _for_each(node, shape, round_) if is_op(node, "GatherND") else None


def _gathered(node: ir.Node, shape: Shape, round_: Round) -> Selection | None:
    axis, indices = round_.call(node).axis(len(shape)), node.inputs[1]
    if axis is None or indices is None:
        return None
    array = constant_of(indices, max_bytes=8 * _MAX_INDICES)
    if array is None:
        known = round_.shapes[indices].shape
        one = Rows(Dim.of(1), index=indices)
        is_one = known is not None and all(dim.size == 1 for dim in known) and len(known) < 2
        return Selection(node, axis, one) if is_one else None
    rows = rows_at(map(int, array.reshape(-1)), shape[axis])
    return None if rows is None or array.ndim > 1 else Selection(node, axis, rows)


def rows_at(indices: Iterable[int], size: Dim) -> Rows | None:
    """The rows at those indices of an axis of that size; None where one is out of range, or there is none."""
    whole = size.size
    found = list(indices)
    if whole is not None:
        if any(not -whole <= index < whole for index in found):
            return None
        found = [index % whole for index in found]
    if not found:
        return None
    ordered = tuple(sorted(set(found), key=lambda index: (index < 0, index)))
    return Rows(Dim.of(len(ordered)), indices=ordered)


def _sliced(node: ir.Node, shape: Shape, round_: Round) -> Selection | None:
    bounds = slice_bounds(round_.call(node))
    if bounds is None or len(bounds) != 1:
        return None
    [(axis, (start, end, step))] = bounds.items()
    if start.size is None or end.size is None:
        return None
    whole, first, last = shape[axis].size, start.size, end.size
    starts_anywhere = whole is None and not (first == 0 and last > 0 and step > 0)
    to_the_end = first < 0 and step == 1 and last >= 2**31 - 1
    count = round_.shapes[node.outputs[0]].shape
    if (starts_anywhere and not to_the_end) or count is None or count[axis].size == 0:
        return None
    return Selection(node, axis, Rows(count[axis], bounds=(first, last, step)))


def _for_each(node: ir.Node, shape: Shape, round_: Round) -> Selection | None:
    """GatherND(x, Concat(Unsqueeze(0, 1, 2 ...), j)): row j[b] of every element b of axis 0."""
    pairs = None if node.inputs[1] is None else node.inputs[1].producer()
    if node.attributes.get_int("batch_dims", 0) or pairs is None or not is_op(pairs, "Concat"):
        return None
    known, axis = round_.shapes[node.inputs[1]].shape, pairs.attributes.get_int("axis", 0)
    if len(shape) < 2 or known is None or len(known) != 2 or axis not in (-1, 1) or len(pairs.inputs) != 2:
        return None
    numbers, each = pairs.inputs
    fits = all(round_.shapes[value].shape == (shape[0], Dim.of(1)) for value in pairs.inputs)
    if each is None or not fits or not _counts(numbers, round_):
        return None
    return Selection(node, 1, Rows(Dim.of(1), each=each))


def _counts(value: ir.Value | None, round_: Round) -> bool:
    """True for 0, 1, 2, ... with dims of 1 around."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in ("Unsqueeze", "Reshape") and node.domain == "":
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    if node is None or not is_op(node, "Range"):
        return False
    start, step = (round_.shapes[node.inputs[at]].ints for at in (0, 2))
    return start == (0,) and step == (1,)


def union(selections: Iterable[Selection], size: Dim) -> Rows | None:
    """Rows that all the selections can be read from; None where they are of different kinds."""
    found = list(dict.fromkeys(each.rows for each in selections))
    if len(found) == 1:
        return found[0]
    if any(not rows.indices for rows in found):
        return None
    return rows_at((index for rows in found for index in rows.indices), size)


def are_few(rows: Rows, size: Dim) -> bool:
    """True when the rows are half of what there is or less; never more, where the size is not known.

    Where reading them succeeds, an axis has as many rows as the indices from one of its ends say.
    """
    if rows.count.size is not None and size.size is not None:
        return 2 * rows.count.size <= size.size
    first, end, _ = rows.bounds or (0, 0, 1)
    if rows.count == size or max(len(rows.indices), -first if first < 0 else end) > _FEW:
        return False
    return len({index < 0 for index in rows.indices}) < 2 or size.is_at_least(len(rows.indices))


def narrowed(shape: Shape, axis: int, rows: Rows) -> Shape:
    """The shape with only those rows."""
    return (*shape[:axis], rows.count, *shape[axis + 1 :])


@final
class Selector:
    """Writes the nodes that read rows of values."""

    def __init__(self, round_: Round, made_by: dict[str, str]) -> None:
        self._round, self._editor, self._made_by = round_, round_.editor, made_by
        self._vectors: dict[ir.Value, ir.Value] = {}

    def select(self, value: ir.Value, axis: int, rows: Rows, before: ir.Node) -> ir.Value:
        """The rows of a value, by a new node ahead of `before`; the rank stays."""
        name = f"{value.name}_rows"
        if rows.bounds is not None:
            first, end, step = rows.bounds
            numbers = [[first], [end], [axis], [step]] if step != 1 else [[first], [end], [axis]]
            inputs = [self._round.numbers(before, f"{name}_bounds", each) for each in numbers]
            return self._insert(before, "Slice", [value, *inputs], {}, name)
        if rows.each is not None:
            indices = self._vector(rows.each, 1, before)
            return self._insert(before, "GatherND", [value, indices], {"batch_dims": 1}, name)
        if rows.index is not None:
            index = self._flat(rows.index, before)
            return self._insert(before, "Gather", [value, index], {"axis": axis}, name)
        indices = self._round.numbers(before, f"{name}_indices", rows.indices)
        return self._insert(before, "Gather", [value, indices], {"axis": axis}, name)

    def _flat(self, index: ir.Value, before: ir.Node) -> ir.Value:
        return index if self._round.shapes[index].rank == 1 else self._vector(index, 0, before)

    def _vector(self, index: ir.Value, axis: int, before: ir.Node) -> ir.Value:
        """The index with one more dim of 1; one node serves all that read the same rows."""
        if index not in self._vectors:
            axes = self._round.numbers(before, f"{index.name}_axes", [axis])
            name = f"{index.name}_vector"
            self._vectors[index] = self._insert(before, "Unsqueeze", [index, axes], {}, name)
        return self._vectors[index]

    def reread(self, seed: Selection, narrow: ir.Value, rows: Rows) -> None:
        """Let a selection read what it reads from the narrowed value, of which `rows` are left."""
        node, old = seed.node, seed.node.outputs[0]
        if rows.each is not None:
            axes = self._round.numbers(node, f"{old.name}_axes", [1])
            self._round.renew(node, "Squeeze", [narrow, axes])
            return
        places = self._places(seed, rows)
        is_all = places.shape == (rows.count.size,) and list(places) == list(range(len(places)))
        if node.op_type != "Slice" and not is_all:
            indices = self._editor.constant(node, f"{old.name}_index", places)
            self._round.renew(node, "Gather", [narrow, indices], axis=seed.axis)
        elif self._editor.can_replace(old, narrow):
            self._editor.replace(old, narrow)
        else:
            self._round.renew(node, "Identity", [narrow])

    def _places(self, seed: Selection, rows: Rows) -> np.ndarray:
        """Where the rows that a Gather reads are among those that are left."""
        array = constant_of(seed.node.inputs[1])
        if array is None or not rows.indices:
            return np.zeros((1,) * (self._round.shapes[seed.node.inputs[1]].rank or 0), np.int64)
        whole = self._round.shapes[seed.node.inputs[0]].shape
        size = None if whole is None else whole[seed.axis].size
        order = {index: place for place, index in enumerate(rows.indices)}
        flat = [order[int(index) if size is None else int(index) % size] for index in array.reshape(-1)]
        return np.array(flat, np.int64).reshape(array.shape)

    def _insert(
        self,
        before: ir.Node,
        op_type: str,
        inputs: list[ir.Value],
        attributes: dict[str, object],
        name: str,
    ) -> ir.Value:
        node = self._editor.insert(before, op_type, inputs, attributes, name=name)
        node.metadata_props.update(self._made_by)
        self._round.shapes.add(node)
        result = node.outputs[0]
        fact = self._round.shapes[result]
        result.type = inputs[0].type if fact.dtype is None else ir.TensorType(fact.dtype)
        result.shape = None if fact.shape is None else as_ir_shape(fact.shape)
        return result
