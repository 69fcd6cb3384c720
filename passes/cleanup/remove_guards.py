"""Where(IsNaN(weights), 0, weights)  ->  weights, behind a Softmax that always has a score to choose"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, Final, final

import ml_dtypes
import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, constant_of, is_op
from burnish.passes.editing import Round, until_stable

_MAX_BYTES: Final = 1 << 22
_COMPUTED: Final = 1e30
"""What a sum of products of ordinary numbers stays below; above it the model is lost anyway."""
_PRODUCTS: Final = frozenset({"Conv", "Gemm", "MatMul"})
_WITHIN_ONE: Final = frozenset({"Cos", "Erf", "Sigmoid", "Sin", "Softmax", "Softsign", "Tanh"})
_SAME: Final = frozenset(
    {
        "Cast", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split",
        "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
_DEEPEST: Final = 32
_Interval = tuple[float, float]
_SLACK: Final = 1 + 2.0**-25  # what is added to the lowest number and rounded away again


@final
@dataclasses.dataclass(frozen=True)
class RemoveGuards(Pass):
    """Remove the guard that exporters write behind the Softmax of an attention, where it cannot do anything.

    A Softmax gives NaN for a row of nothing but -inf. That cannot be where all scores are products, finite
    constants, and sums of these that stay in range. Kept, with the value at fault: scores to which an input
    is added, or a mask that holds -inf, or masks that overflow to it together. It comes after the fusions,
    which read from the guard what an attention means.
    """

    name: ClassVar[str] = "remove-guards"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    looks_for: ClassVar[frozenset[str]] = frozenset({"IsNaN"})

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many guards were removed."""
        return until_stable(model, context, lambda round_: partial(_visit, round_))


def _visit(round_: Round, node: ir.Node) -> None:
    test = None if not is_op(node, "Where") or node.inputs[0] is None else node.inputs[0].producer()
    if test is None or not is_op(test, "IsNaN") or test.inputs[0] is not node.inputs[2]:
        return
    weights, zero = node.inputs[2], constant_of(node.inputs[1], max_bytes=16)
    softmax = None if weights is None else weights.producer()
    if zero is None or zero.shape not in ((), (1,)) or zero.any() or softmax is None:
        return
    if not is_op(softmax, "Softmax") or not round_.shapes[weights].rank:
        return
    found = _Reader(round_).read(softmax.inputs[0])
    if isinstance(found, str):
        round_.context.miss(node, f"{found!r} may make a whole row of the scores -inf")
    else:
        round_.replace(node.outputs[0], weights)


@final
class _Reader:
    """The least and largest that elements of a value may be; or the name of a value that may be infinite."""

    def __init__(self, round_: Round) -> None:
        self._shapes = round_.shapes
        self._known: dict[ir.Value | None, _Interval | str] = {}

    def read(self, value: ir.Value | None, steps: int = _DEEPEST) -> _Interval | str:
        """Look at a value once, and at most so many nodes back."""
        if value not in self._known:
            self._known[value] = self._find(value, steps)
        return self._known[value]

    def _find(self, value: ir.Value | None, steps: int) -> _Interval | str:
        name = "" if value is None else value.name or ""
        dtype = self._shapes[value].dtype
        if value is None or dtype is None or steps == 0:
            return name
        if (constant := constant_of(value, _MAX_BYTES)) is not None:
            numbers = constant.astype(np.float64)
            finite = numbers.size > 0 and bool(np.isfinite(numbers).all())
            return (float(numbers.min()), float(numbers.max())) if finite else name
        if not dtype.is_floating_point():
            return (0.0, 1.0) if dtype == ir.DataType.BOOL else (-(2.0**dtype.bitwidth), 2.0**dtype.bitwidth)
        node = value.producer()
        found = None if node is None or node.domain else self._of_node(node, steps - 1)
        if isinstance(found, str):
            return found
        largest = float(ml_dtypes.finfo(dtype.numpy()).max) * _SLACK  # type: ignore[no-untyped-call]
        return name if found is None or max(-found[0], found[1]) > largest else found

    def _of_node(self, node: ir.Node, steps: int) -> _Interval | str | None:
        if node.op_type in _PRODUCTS:
            return -_COMPUTED, _COMPUTED
        if node.op_type in _WITHIN_ONE:
            return -1.0, 1.0
        if node.op_type in _SAME:
            return self.read(node.inputs[0], steps)
        if node.op_type not in _COMBINED:
            return None
        found = [self.read(value, steps) for value in node.inputs[1 if node.op_type == "Where" else 0 :]]
        parts = [part for part in found if not isinstance(part, str)]
        if len(parts) < len(found):
            return next(part for part in found if isinstance(part, str))
        return _COMBINED[node.op_type](parts)


def _total(parts: Sequence[_Interval]) -> _Interval:
    return sum(low for low, _ in parts), sum(high for _, high in parts)


def _difference(parts: Sequence[_Interval]) -> _Interval:
    (low, high), (least, most) = parts
    return low - most, high - least


def _product(parts: Sequence[_Interval]) -> _Interval:
    corners = [a * b for a in parts[0] for b in parts[1]]
    return min(corners), max(corners)


def _quotient(parts: Sequence[_Interval]) -> _Interval | None:
    low, high = parts[1]
    return None if low <= 0 <= high else _product([parts[0], (1 / high, 1 / low)])


def _hull(parts: Sequence[_Interval]) -> _Interval:
    return min(low for low, _ in parts), max(high for _, high in parts)


_COMBINED: Final[dict[str, Callable[[Sequence[_Interval]], _Interval | None]]] = {
    "Add": _total, "Sum": _total, "Sub": _difference, "Mul": _product, "Div": _quotient,
    "Concat": _hull, "Max": _hull, "Min": _hull, "Where": _hull,
}  # fmt: skip
