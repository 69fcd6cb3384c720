"""Integer and boolean tensors whose elements follow from their coordinates: Range and what is made of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import bodies, constant_of
from burnish.passes.dims import Dim, DimOverflowError
from burnish.passes.shapes import Call, Shape, Shapes

_MAX_BYTES: Final = 1 << 20
_INTEGERS: Final = (ir.DataType.INT64, ir.DataType.INT32)


@final
@dataclasses.dataclass(frozen=True)
class Grid:
    """A tensor whose element at coordinates c is `offset + sum(steps[axis] * c[axis])`."""

    shape: Shape
    offset: int = 0
    steps: tuple[tuple[int, int], ...] = ()
    """(axis, step), by axis, without steps of 0 and without axes of size 1."""

    @property
    def uniform(self) -> int | None:
        """The one value of all elements, if there is one."""
        return None if self.steps else self.offset

    @property
    def axis(self) -> int | None:
        """The axis whose coordinate every element is, if there is one."""
        plain = self.offset == 0 and len(self.steps) == 1 and self.steps[0][1] == 1
        return self.steps[0][0] if plain else None

    def bounds(self) -> tuple[Dim, Dim]:
        """The least and the greatest element, where the tensor has any."""
        low = high = Dim.of(self.offset)
        for axis, step in self.steps:
            last = (self.shape[axis] - Dim.of(1)) * Dim.of(step)
            low, high = (low + last, high) if step < 0 else (low, high + last)
        return low, high

    def spread(self, shape: Shape) -> Grid:
        """The grid broadcast to a shape."""
        moved = tuple((axis + len(shape) - len(self.shape), step) for axis, step in self.steps)
        return Grid(shape, self.offset, moved)


@final
class Grids:
    """The grids of a model's values, found by walking it once."""

    def __init__(self, model: ir.Model, shapes: Shapes) -> None:
        self._shapes = shapes
        self._known: dict[ir.Value, Grid | None] = {}
        self._walk(model.graph)
        for function in model.functions.values():
            self._walk(function.graph)

    def __getitem__(self, value: ir.Value | None) -> Grid | None:
        """The grid of a value; None when its elements do not follow from their coordinates."""
        if value is None:
            return None
        if value not in self._known:
            self._known[value] = self._constant(value)
        return self._known[value]

    def _walk(self, graph: ir.Graph) -> None:
        for node in graph:
            for body in bodies(node):
                self._walk(body)
            rule = None if node.domain else _RULES.get(node.op_type)
            if rule is None or any(attribute.is_ref() for attribute in node.attributes.values()):
                continue
            try:
                self._known[node.outputs[0]] = self._apply(rule, node)
            except (DimOverflowError, IndexError, ValueError):
                self._known[node.outputs[0]] = None

    def _apply(self, rule: Rule, node: ir.Node) -> Grid | None:
        shape = self._shapes[node.outputs[0]].shape
        if shape is None:
            return None
        call = Call(node, [self._shapes[v] for v in node.inputs], self._shapes.opset(node), self._shapes)
        found = rule(call, [self[value] for value in node.inputs], shape)
        if found is None:
            return None
        kept = tuple(sorted((a, s) for a, s in found.steps if s and found.shape[a].size != 1))
        return Grid(found.shape, found.offset, kept)

    def _constant(self, value: ir.Value) -> Grid | None:
        """A constant with equal elements; others are followed by what reads them."""
        fact = self._shapes[value]
        if fact.shape is None or fact.dtype not in (*_INTEGERS, ir.DataType.BOOL):
            return None
        array = constant_of(value, max_bytes=_MAX_BYTES)
        if array is None or array.size == 0 or np.any(array != array.reshape(-1)[0]):
            return None
        return Grid(fact.shape, int(array.reshape(-1)[0]))


Rule = Callable[[Call, list[Grid | None], Shape], Grid | None]


def _range(call: Call, _: list[Grid | None], shape: Shape) -> Grid | None:
    start, step = call.input(0).ints, call.input(2).ints
    integer = call.input(0).dtype in _INTEGERS
    return Grid(shape, start[0], ((0, step[0]),)) if integer and start and step else None


def _unsqueeze(call: Call, grids: list[Grid | None], shape: Shape) -> Grid | None:
    axes = call.ints("axes", 1)
    if grids[0] is None or axes is None:
        return None
    new = {axis % len(shape) for axis in axes}
    old = [axis for axis in range(len(shape)) if axis not in new]
    return Grid(shape, grids[0].offset, tuple((old[axis], step) for axis, step in grids[0].steps))


def _expand(_: Call, grids: list[Grid | None], shape: Shape) -> Grid | None:
    return None if grids[0] is None else grids[0].spread(shape)


def _same(_: Call, grids: list[Grid | None], shape: Shape) -> Grid | None:
    return None if grids[0] is None else dataclasses.replace(grids[0], shape=shape)


def _cast(call: Call, grids: list[Grid | None], shape: Shape) -> Grid | None:
    grid, target = grids[0], call.shapes[call.node.outputs[0]].dtype
    if grid is None or (target == ir.DataType.BOOL and grid.uniform is None):
        return None
    if target == ir.DataType.BOOL:
        return Grid(shape, int(grid.offset != 0))
    return dataclasses.replace(grid, shape=shape) if target in _INTEGERS else None


def _slice(_: Call, grids: list[Grid | None], shape: Shape) -> Grid | None:
    return None if grids[0] is None or grids[0].uniform is None else Grid(shape, grids[0].offset)


def _combined(sign: int) -> Rule:
    def rule(_: Call, grids: list[Grid | None], shape: Shape) -> Grid | None:
        if len(grids) != 2 or grids[0] is None or grids[1] is None:
            return None
        left, right = grids[0].spread(shape), grids[1].spread(shape)
        steps = dict(left.steps)
        for axis, step in right.steps:
            steps[axis] = steps.get(axis, 0) + sign * step
        total = tuple((axis, step) for axis, step in steps.items() if step)
        return Grid(shape, left.offset + sign * right.offset, total)

    return rule


def _compared(verdict: Callable[[Dim, Dim], int | None]) -> Rule:
    """A comparison that comes out the same everywhere, judged by the bounds of the difference."""

    def rule(call: Call, grids: list[Grid | None], shape: Shape) -> Grid | None:
        apart = _combined(-1)(call, grids, shape)
        answer = None if apart is None else verdict(*apart.bounds())
        return None if answer is None else Grid(shape, answer)

    return rule


def _negative(dim: Dim) -> bool:
    return (Dim() - dim).is_at_least(1)


def _at_least_zero(low: Dim, high: Dim) -> int | None:
    return 1 if low.is_at_least(0) else (0 if _negative(high) else None)


def _above_zero(low: Dim, high: Dim) -> int | None:
    return 1 if low.is_at_least(1) else (0 if (Dim() - high).is_at_least(0) else None)


def _below_zero(low: Dim, high: Dim) -> int | None:
    answer = _at_least_zero(low, high)
    return None if answer is None else 1 - answer


def _at_most_zero(low: Dim, high: Dim) -> int | None:
    answer = _above_zero(low, high)
    return None if answer is None else 1 - answer


def _logic(operation: Callable[[int, int], int]) -> Rule:
    def rule(_: Call, grids: list[Grid | None], shape: Shape) -> Grid | None:
        values = [None if grid is None else grid.uniform for grid in grids]
        if len(values) != 2 or values[0] is None or values[1] is None:
            return None
        return Grid(shape, operation(values[0], values[1]))

    return rule


def _not(_: Call, grids: list[Grid | None], shape: Shape) -> Grid | None:
    value = None if grids[0] is None else grids[0].uniform
    return None if value is None else Grid(shape, 1 - value)


_RULES: Final[dict[str, Rule]] = {
    "Add": _combined(1), "And": _logic(lambda a, b: a & b), "Cast": _cast, "Expand": _expand,
    "Greater": _compared(_above_zero), "GreaterOrEqual": _compared(_at_least_zero), "Identity": _same,
    "Less": _compared(_below_zero), "LessOrEqual": _compared(_at_most_zero), "Not": _not,
    "Or": _logic(lambda a, b: a | b), "Range": _range, "Slice": _slice, "Sub": _combined(-1),
    "Unsqueeze": _unsqueeze,
}  # fmt: skip
