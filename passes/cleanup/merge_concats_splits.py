"""Concat(Split(x))  ->  x;   Split(Concat(a, b))  ->  a, b;   Slice(Slice(x))  ->  Slice(x)"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Final, final

import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, is_op
from burnish.passes.dims import Dim, DimOverflowError, total
from burnish.passes.editing import Round, feeds_only, is_templated, until_stable
from burnish.passes.shape_contents import slice_bounds

_END: Final = 2**31 - 1  # what a Slice to the end names, or more
_FURTHEST: Final = 2**63 - 1
_FIRST_OPSET_WITH_INPUTS: Final = 10  # of Slice

_Stretch = tuple[int, int, int]
"""Start, end, step."""


@final
@dataclasses.dataclass(frozen=True)
class _Part:
    """`source[start:end]` along one axis."""

    source: ir.Value
    start: Dim
    end: Dim


@final
@dataclasses.dataclass(frozen=True)
class MergeConcatsSplits(Pass):
    """Do not take apart what is put together again, or the other way round.

    - a Concat of Concats along the same axis is one Concat;
    - a Concat of all parts of a Split, or of Slices that take one after the other, is the whole (an Identity
      of it where that is the model's input and output);
    - a Split into the parts of a Concat gives the parts, and so does a Slice that takes one of them;
    - a Slice of a Slice is one Slice, where the bounds are constant.

    Kept: an inner Concat or Slice whose result is used elsewhere too, as nothing would go; bounds that
    are not proved to be the same for every size.
    """

    name: ClassVar[str] = "merge-concats-splits"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    looks_for: ClassVar[frozenset[str]] = frozenset({"Concat", "Slice", "Split"})

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many nodes were merged or skipped over."""
        return until_stable(model, context, lambda round_: _Merger(round_).visit)


@final
class _Merger:
    def __init__(self, round_: Round) -> None:
        self._round, self._context = round_, round_.context

    def visit(self, node: ir.Node) -> None:
        """Merge a Concat, Split or Slice with what makes its inputs."""
        if is_op(node, "Concat"):
            self._flatten(node)
            self._read_whole(node)
        elif is_op(node, "Split"):
            self._hand_parts_on(node)
        elif is_op(node, "Slice"):
            maker = _maker(node.inputs[0])
            if maker is not None and is_op(maker, "Concat"):
                with contextlib.suppress(DimOverflowError):  # sums of too many sizes are not followed
                    self._take_part(node, maker)
            elif maker is not None and is_op(maker, "Slice"):
                self._merge_slices(node, maker)

    def _flatten(self, node: ir.Node) -> None:
        for inner in dict.fromkeys(map(_maker, node.inputs)):
            if inner is None or not is_op(inner, "Concat") or not feeds_only(inner, node):
                continue
            axis = self._axis(node)
            if inner.graph is not node.graph or axis is None or self._axis(inner) != axis:
                continue
            if self._context.permit(inner):
                made = inner.outputs[0]
                self._set_inputs(
                    node, [v for each in node.inputs for v in (inner.inputs if each is made else [each])]
                )

    def _set_inputs(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> None:
        before = list(node.inputs)
        node.resize_inputs(len(inputs))
        for index, value in enumerate(inputs):
            node.replace_input_with(index, value)
        self._round.editor.sweep(before)

    def _axis(self, node: ir.Node) -> int | None:
        axis = node.attributes.get_int("axis", 0) or 0
        return axis if axis >= 0 else self._round.call(node).axis(self._round.shapes[node.inputs[0]].rank)

    def _read_whole(self, node: ir.Node) -> None:
        for first, value in enumerate(node.inputs):
            maker = _maker(value)
            if maker is None or not (is_op(maker, "Split") or is_op(maker, "Slice")):
                continue
            length = self._joined(node, first, maker)
            source = maker.inputs[0]
            if length == len(node.inputs) and source is not None:
                self._round.replace(node.outputs[0], source)
                return
            if 1 < length == len(node.inputs) and self._context.permit(node):  # an output that is an input
                self._round.renew(node, "Identity", [source])
                return
            if 1 < length < len(node.inputs) and self._context.permit(node):
                self._set_inputs(node, [*node.inputs[:first], source, *node.inputs[first + length :]])
                return

    def _joined(self, node: ir.Node, first: int, maker: ir.Node) -> int:
        """How many inputs from the first on are all of what `maker` reads, in order; 0: they are not."""
        axis = self._axis(node)
        if is_op(maker, "Split"):
            run = node.inputs[first : first + len(maker.outputs)]
            whole = list(run) == list(maker.outputs) and len(run) > 1 and self._axis(maker) == axis
            return len(run) if whole else 0
        parts: list[_Part] = []
        length = 0
        for value in node.inputs[first:]:
            part = self._part(value, axis)
            if part is None or (parts and (part.source, part.start) != (parts[0].source, parts[-1].end)):
                break
            parts.append(part)
            length = len(parts) if self._is_whole(parts, axis) else length
        return length

    def _part(self, value: ir.Value | None, axis: int | None) -> _Part | None:
        node = _maker(value)
        bounds = slice_bounds(self._round.call(node)) if node is not None and is_op(node, "Slice") else None
        if node is None or axis is None or bounds is None or node.inputs[0] is None or list(bounds) != [axis]:
            return None
        start, end, step = bounds[axis]
        return _Part(node.inputs[0], start, end) if step == 1 else None

    def _is_whole(self, parts: Sequence[_Part], axis: int | None) -> bool:
        """True when the parts, which follow one another, are all there is.

        A bound between two parts may be anything: clamped to the axis, it ends one and starts the next. More
        than one must be ascending numbers of one sign.
        """
        shape, end = self._round.shapes[parts[0].source].shape, parts[-1].end
        if axis is None or shape is None or len(parts) < 2 or parts[0].start.size != 0:
            return False
        if end != shape[axis] and (end.size is None or end.size < (shape[axis].size or _END)):
            return False
        inner = [part.end.size for part in parts[:-1]]
        numbers = [size for size in inner if size is not None]
        ascending = len(numbers) == len(inner) and numbers == sorted(numbers)
        return len(inner) == 1 or (ascending and (numbers[0] >= 0 or numbers[-1] < 0))

    def _hand_parts_on(self, node: ir.Node) -> None:
        joined = _maker(node.inputs[0])
        if joined is None or not is_op(joined, "Concat") or len(joined.inputs) != len(node.outputs):
            return
        axis = self._axis(node)
        if axis is None or axis != self._axis(joined):
            return
        pairs = list(zip(node.outputs, joined.inputs, strict=True))
        if not all(self._same_size(part, given, axis) for part, given in pairs):
            self._context.miss(node, "its sizes are not proved to be those of the Concat before it")
            return
        used = [(part, given) for part, given in pairs if part.uses() or part.is_graph_output()]
        editor = self._round.editor
        named = [given for part, given in used if part.is_graph_output()]
        free = len(set(named)) == len(named)  # a value has one name
        if (
            free
            and all(g is not None and editor.can_replace(p, g) for p, g in used)
            and self._context.permit(node)
        ):
            for part, given in used:
                if given is not None:
                    editor.replace(part, given)

    def _same_size(self, part: ir.Value, given: ir.Value | None, axis: int) -> bool:
        before, after = self._round.shapes[given].shape, self._round.shapes[part].shape
        return before is not None and after is not None and before[axis] == after[axis]

    def _take_part(self, node: ir.Node, joined: ir.Node) -> None:
        axis = self._axis(joined)
        part = self._part(node.outputs[0], axis)
        sizes = [self._size(value, axis) for value in joined.inputs]
        known = [size for size in sizes if size is not None]
        if part is None or len(known) < len(sizes):
            return
        for index, value in enumerate(joined.inputs):
            before, last = total(known[:index]), index == len(known) - 1
            counted_back = known[index].is_at_least(1) and part.start == known[index] * Dim.of(-1)
            starts = part.start == before or (last and counted_back)
            open_end = last and part.end.size is not None and part.end.size >= _END
            if starts and (open_end or part.end == before + known[index]):
                self._round.replace(node.outputs[0], value)
                return

    def _size(self, value: ir.Value | None, axis: int | None) -> Dim | None:
        shape = self._round.shapes[value].shape
        return None if shape is None or axis is None or axis >= len(shape) else shape[axis]

    def _merge_slices(self, node: ir.Node, inner: ir.Node) -> None:
        if not feeds_only(inner, node) or inner.graph is not node.graph:
            return
        first, second = self._stretches(inner), self._stretches(node)
        if first is None or second is None or self._round.shapes.opset(node) < _FIRST_OPSET_WITH_INPUTS:
            return
        merged = dict(first)
        for axis, stretch in second.items():
            both = _within(first[axis], stretch) if axis in first else stretch
            if both is None:
                self._context.miss(node, "its bounds count from the end of what an earlier Slice leaves")
                return
            merged[axis] = both
        if self._context.permit(node):
            columns = zip(*merged.values(), strict=True)
            starts, ends, steps = (self._round.numbers(node, "bounds", list(column)) for column in columns)
            axes = self._round.numbers(node, "axes", list(merged))
            self._round.renew(node, "Slice", [inner.inputs[0], starts, ends, axes, steps])

    def _stretches(self, node: ir.Node) -> dict[int, _Stretch] | None:
        bounds = slice_bounds(self._round.call(node))
        known = {
            axis: (start.size, end.size, step)
            for axis, (start, end, step) in (bounds or {}).items()
            if start.size is not None and end.size is not None
        }
        return known if bounds and len(known) == len(bounds) else None


def _within(outer: _Stretch, inner: _Stretch) -> _Stretch | None:
    """The stretch of a stretch, where neither counts from the end."""
    if outer[2] != 1 or inner[2] != 1 or min(*outer, *inner) < 0:
        return None
    end = inner[1] if inner[1] >= _END else outer[0] + inner[1]
    return min(outer[0] + inner[0], _FURTHEST), min(outer[1], end), 1


def _maker(value: ir.Value | None) -> ir.Node | None:
    node = None if value is None else value.producer()
    return None if node is None or is_templated(node) else node
