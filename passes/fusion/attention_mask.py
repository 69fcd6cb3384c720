"""What an attention mask says, read from the arithmetic that makes it.

Exporters write "key j of sentence b is padding" as Range, Unsqueeze, Expand, Concat and GatherND over the
mask input, and "no looking ahead" as a comparison of two counters or as Trilu. Here such arithmetic is read
back, for one element at a time: which axes does it depend on, and how.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Final, Literal, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import constant_of, is_op
from burnish.passes.dims import Dim, product
from burnish.passes.fusion.axes import ONE, Axis, Factor, View, sources
from burnish.passes.fusion.scalars import number
from burnish.passes.matching import either_way, made_by
from burnish.passes.shapes import Shapes

_MAX_CONSTANT: Final = 1 << 24  # bytes of a constant mask that is looked into: 2048 x 2048 floats
_COUNTS: Final = (ir.DataType.BOOL, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT8, ir.DataType.INT8)


_NONE: Final = Dim()


@final
@dataclasses.dataclass(frozen=True)
class Frame:
    """The sizes of the scores that a mask is added to: [batch, heads, queries, keys]."""

    batch: Dim
    heads: Dim
    queries: Dim
    keys: Dim

    @property
    def axes(self) -> tuple[Axis, ...]:
        """An axis each: B, N, S, T."""
        sizes = (self.batch, self.heads, self.queries, self.keys)
        return tuple((Factor(label, size),) for label, size in zip("BNST", sizes, strict=True))


@final
@dataclasses.dataclass(frozen=True)
class Atom:
    """One thing that decides whether a query sees a key: all atoms of a mask must allow it.

    `causal`: the key comes no later than the query, key <= query + slack. `window`: it comes not long before
    it, query <= key + slack. `key`: `view`, of axes B and T (and of size 1), is not zero, or with `inverted`
    is zero.
    """

    kind: Literal["causal", "window", "key"]
    view: View | None = None
    inverted: bool = False
    slack: Dim = _NONE


CAUSAL: Final = Atom("causal")
Atoms = tuple[Atom, ...]
"""The empty tuple: every query sees every key."""


@final
@dataclasses.dataclass(frozen=True)
class Term:
    """A step that masks scores: `add` adds `value`; `fill` replaces by `number` where `value` is not zero
    (with `inverted`: is zero); `keep` (of the standard Attention) ignores keys where `value` is False.
    """

    kind: Literal["add", "fill", "keep"]
    value: ir.Value
    number: float = 0.0
    inverted: bool = False


@final
@dataclasses.dataclass(frozen=True)
class Reading:
    """What a term means: scores where `atoms` do not all allow it get `fill`, added or instead."""

    atoms: Atoms
    fill: float


@final
class MaskReader:
    """Reads masks that meet scores of one frame.

    `offsets`: queries may be shifted against keys (there is a cache of earlier keys) and see a window of
    them; otherwise such a mask is not read.
    """

    def __init__(self, shapes: Shapes, frame: Frame, *, offsets: bool = False) -> None:
        self._shapes = shapes
        self._frame = frame
        self._offsets = offsets

    def read(self, term: Term) -> Reading | None:
        """The meaning of a term; None: it is a bias, or arithmetic that cannot be read."""
        view = self.aligned(term.value)
        if view is None:
            return None
        if term.kind == "add":
            return self._added(view)
        visible = self._allows(view, (term.kind == "fill") != term.inverted)
        return None if visible is None else Reading(visible, term.number)

    def aligned(self, value: ir.Value) -> View | None:
        """How a value broadcasts against the scores; None when that is not certain."""
        return self._operand(View(value, self._frame.axes), value)

    def _operand(self, view: View, value: ir.Value) -> View | None:
        """`value` as an operand that is broadcast to the shape of `view`."""
        shape = self._shapes[value].shape
        if shape is None or len(shape) > len(view.axes):
            return None
        axes = []
        for axis, size in zip(view.axes[len(view.axes) - len(shape) :], shape, strict=True):
            if size not in (ONE, product(factor.size for factor in axis)):
                return None
            axes.append(() if size == ONE and axis and axis[0].size != ONE else axis)
        return View(value, tuple(axes))

    def _added(self, view: View) -> Reading | None:
        view = _furthest(view, self._shapes)
        node = view.value.producer()
        if is_op(node, "Where") and node is not None:
            return self._either(view, node)
        if is_op(node, "Trilu") and node is not None and view.scale > 0:
            fill = self._everywhere(node.inputs[0])
            causal = _triangle(node, self._shapes) == "above" and view.labels[-2:] == ("S", "T")
            return Reading((CAUSAL,), fill * view.scale) if fill is not None and fill < 0 and causal else None
        if (
            is_op(node, "Sub")
            and node is not None
            and number(node.inputs[0], self._shapes, max_rank=8) == 1.0
        ):
            return self._zero_or_one(view, node.inputs[1], inverted=False)
        return self._zero_or_one(view, view.value, inverted=True)

    def _either(self, view: View, node: ir.Node) -> Reading | None:
        """scale * Where(condition, 0, fill), or the other way round."""
        numbers = [self._everywhere(value) for value in node.inputs[1:]]
        condition = None if node.inputs[0] is None else self._operand(view, node.inputs[0])
        if condition is None or None in numbers or 0.0 not in numbers:
            return None
        atoms = self._allows(condition, numbers[1] == 0.0)
        fill = (numbers[0] or numbers[1] or 0.0) * view.scale
        return Reading(atoms, fill) if atoms is not None and fill < 0 else None

    def _zero_or_one(self, view: View, value: ir.Value | None, *, inverted: bool) -> Reading | None:
        """scale * (1 - mask), or scale * mask with `inverted`, for a mask of integers 0 and 1."""
        mask = None if value is None else self._operand(view, value)
        if mask is None or view.scale >= 0:
            return None
        source = _furthest(mask, self._shapes).value
        cast = made_by(source, "Cast")
        counted = self._shapes[cast.inputs[0] if cast else source].dtype in _COUNTS
        atoms = self._allows(mask, inverted) if counted else None
        return None if atoms is None else Reading(atoms, view.scale)

    def _everywhere(self, value: ir.Value | None) -> float | None:
        """The number that fills a whole tensor."""
        while (node := made_by(value, "Expand")) is not None:
            value = node.inputs[0]
        node = made_by(value, "ConstantOfShape")
        if node is not None:
            filled = node.attributes.get("value")
            return 0.0 if filled is None else float(filled.as_tensor().numpy().reshape(-1)[0])
        return number(value, self._shapes, max_rank=8)

    def _allows(self, view: View, inverted: bool) -> Atoms | None:
        """When the element of `view` is not zero; with `inverted`: when it is zero."""
        constant = self._constant(view, inverted)
        if constant is not None:
            return constant
        far = _furthest(view, self._shapes)
        node = far.value.producer()
        found = None
        if far.value is not view.value:
            found = self._constant(far, inverted)
        if found is None and node is not None and node.domain in ("", "ai.onnx"):
            found = self._computed(far, node, inverted)
        return self._key(view, inverted) if found is None else found

    def _constant(self, view: View, inverted: bool) -> Atoms | None:
        array = constant_of(view.value, _MAX_CONSTANT)
        if array is None:
            return None
        seen = (array == 0) if inverted else (array != 0)
        if seen.all():
            return ()
        if view.labels[-2:] != ("S", "T") or seen.size != math.prod(seen.shape[-2:]):
            return None
        square = seen.reshape(seen.shape[-2:])
        return (CAUSAL,) if np.array_equal(square, np.tril(np.ones_like(square))) else None

    def _computed(self, view: View, node: ir.Node, inverted: bool) -> Atoms | None:
        match node.op_type:
            case "And" | "Or" if (node.op_type == "Or") == inverted:
                return self._all(view, node.inputs, inverted)
            case "Not":
                return self._all(view, node.inputs, not inverted)
            case "Cast" if self._shapes[node.inputs[0]].dtype in _COUNTS or _is_bool(node.outputs[0]):
                return self._all(view, node.inputs, inverted)
            case "Equal":
                sides = [a for a, b in either_way(node) if number(b, self._shapes, max_rank=8) == 0.0]
                return self._all(view, sides, not inverted) if sides else None
            case "LessOrEqual" | "Less" | "GreaterOrEqual" | "Greater":
                return self._compared(view, node, inverted)
            case "Trilu" if view.labels[-2:] == ("S", "T") and self._everywhere(node.inputs[0]):
                seen = "above" if inverted else "below"
                return (CAUSAL,) if _triangle(node, self._shapes) == seen else None
            case "GatherND":
                return self._gathered(view, node, inverted)
        return None

    def _all(self, view: View, operands: Iterable[ir.Value | None], inverted: bool) -> Atoms | None:
        atoms: list[Atom] = []
        for value in operands:
            operand = None if value is None else self._operand(view, value)
            found = None if operand is None else self._allows(operand, inverted)
            if found is None:
                return None
            atoms.extend(found)
        return tuple(dict.fromkeys(atoms))

    def _key(self, view: View, inverted: bool) -> Atoms | None:
        """The furthest tensor that depends on nothing but sentence and key."""
        best = None
        sizes = {"B": self._frame.batch, "T": self._frame.keys, "": ONE}
        for step in sources(view, self._shapes):
            shape = self._shapes[step.value].shape
            named = [label for label in step.labels if label]
            if named == ["B", "T"] and shape == tuple(sizes[label] for label in step.labels):
                best = step
        return None if best is None else (Atom("key", View(best.value, best.axes), inverted),)

    def _compared(self, view: View, node: ir.Node, inverted: bool) -> Atoms | None:
        low, high = node.inputs
        if node.op_type.startswith("Greater"):
            low, high = high, low
        a, b = self._counter(view, low), self._counter(view, high)
        if a is None or b is None:
            return None
        # as `a <= b + slack`, for counters that start at 0
        slack = b[1] - a[1] - Dim.of(0 if node.op_type.endswith("OrEqual") else 1)
        if inverted:
            a, b, slack = b, a, Dim.of(-1) - slack
        if (a[0] is None or a[0] == b[0]) and slack.is_at_least(0):
            return ()
        if (a[0], b[0]) == ("T", "S") and (self._offsets or slack == Dim()):
            return (Atom("causal", slack=slack),)
        return (Atom("window", slack=slack),) if (a[0], b[0]) == ("S", "T") and self._offsets else None

    def _counter(self, view: View, value: ir.Value | None) -> tuple[str | None, Dim] | None:
        """An integer tensor as (axis, offset): it is the position on that axis plus the offset."""
        operand = None if value is None else self._operand(view, value)
        if operand is None:
            return None
        operand = _furthest(operand, self._shapes)
        content = self._shapes[operand.value].content
        if content is not None and len(content) == 1 and operand.scale == 1.0:
            return None, content[0]
        constant = number(operand.value, self._shapes, max_rank=8)
        if constant is not None:
            return None, Dim.of(int(constant * operand.scale))
        node = operand.value.producer()
        if node is None or operand.scale != 1.0:
            return None
        if node.op_type in ("Add", "Sub"):
            return self._moved(operand, node)
        return self._range(operand, node)

    def _moved(self, operand: View, node: ir.Node) -> tuple[str | None, Dim] | None:
        """A counter plus or minus a number."""
        base, offset = self._counter(operand, node.inputs[0]), self._counter(operand, node.inputs[1])
        if node.op_type == "Add" and base is not None and base[0] is None:
            base, offset = offset, base
        if base is None or offset is None or offset[0] is not None:
            return None
        return base[0], base[1] + offset[1] if node.op_type == "Add" else base[1] - offset[1]

    def _range(self, view: View, node: ir.Node) -> tuple[str, Dim] | None:
        if not is_op(node, "Range") or len(view.axes) != 1 or len(view.axes[0]) != 1:
            return None
        factor = view.axes[0][0]
        fits = self._shapes[node.outputs[0]].shape == (factor.size,)
        start, step = self._shapes[node.inputs[0]].content, number(node.inputs[2], self._shapes)
        return (factor.label, start[0]) if fits and start and step == 1 else None

    def _gathered(self, view: View, node: ir.Node, inverted: bool) -> Atoms | None:
        """data[i, j], where i and j count the positions of two axes of the scores."""
        data, joined = node.inputs[0], made_by(node.inputs[1], "Concat")
        batched = node.attributes.get_int("batch_dims", 0)
        if data is None or joined is None or batched:
            return None
        places = View(joined.outputs[0], (*view.axes, ()))
        counters = [self._counter(places, part) for part in joined.inputs]
        factors = {axis[0].label: axis for axis in view.axes if len(axis) == 1}
        if any(counter is None or counter[1] != Dim() for counter in counters):
            return None
        axes = [factors.get(counter[0] or "") for counter in counters if counter is not None]
        known = tuple(axis for axis in axes if axis is not None)
        sizes = tuple(axis[0].size for axis in known)
        if len(known) < len(axes) or self._shapes[data].shape != sizes:
            return None
        return self._allows(View(data, known), inverted)


def _furthest(view: View, shapes: Shapes) -> View:
    for step in sources(view, shapes):
        view = step
    return view


def _is_bool(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.BOOL


def _triangle(node: ir.Node, shapes: Shapes) -> Literal["below", "above"] | None:
    """What a Trilu keeps: keys up to the query's position, or keys after it."""
    diagonal = shapes[node.inputs[1]].ints if len(node.inputs) > 1 else (0,)
    upper = node.attributes.get_int("upper", 1)
    if not upper and diagonal == (0,):
        return "below"
    return "above" if upper and diagonal == (1,) else None
