"""Counts of values in bins that do not depend on the data, so that counts of parts add up exactly."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final, Self, final

import numpy as np
import numpy.typing as npt

Bounds = tuple[float, float]
Array = npt.NDArray[np.generic]
Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

BINS: Final = 8192
"""For each sign 4096; the largest value falls in the upper half of them."""
PIECE: Final = 1 << 18
"""Values looked at together: what a large array needs besides itself stays small."""

_SMALLEST: Final = -1000  # exponent of a width whose values are all 0, and that float64 still knows


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Gains:
    """How much a value counts, by its place along one axis: [channels] whole numbers."""

    axis: int
    counts: Integers

    def of(self, array: Array, start: int, stop: int) -> Integers:
        """The gains of the values start to stop (of all values, in order)."""
        inner = int(np.prod(array.shape[self.axis % array.ndim + 1 :], dtype=np.int64))
        return np.asarray(self.counts[np.arange(start, stop) // inner % len(self.counts)])


@final
@dataclasses.dataclass(eq=False)
class Histogram:
    """Counts of finite float values in bins of width 2**exponent around 0, and their exact extremes.

    When a value does not fit, bins are joined in pairs until it does. What is counted, and where, depends
    neither on the order of the values nor on how they come in arrays.
    """

    counts: Integers = dataclasses.field(default_factory=lambda: np.zeros(BINS, np.int64))
    exponent: int | None = None
    low: float = np.inf
    high: float = -np.inf
    zeros: int = 0
    """Values that are exactly 0, which every range holds exactly."""

    def extend(self, array: Array) -> None:
        """Widen the extremes to hold an array, without counting its values."""
        if array.size:
            self.low = min(self.low, float(array.min()))
            self.high = max(self.high, float(array.max()))

    def add(self, array: Array, gains: Gains | None = None) -> None:
        """Count the values of an array, each once or as often as its gain says."""
        if not array.size:
            return
        self.extend(array)
        self._fit()
        width, flat = 2.0 ** (self.exponent or 0), np.ravel(array)
        for start in range(0, flat.size, PIECE):
            part = flat[start : start + PIECE].astype(np.float64)
            often = None if gains is None else gains.of(array, start, start + part.size)
            index = np.clip(np.floor(part / width).astype(np.int64) + BINS // 2, 0, BINS - 1)
            self.counts += np.bincount(index, often, BINS).astype(np.int64)
            zero = part == 0.0
            self.zeros += int(np.count_nonzero(zero) if often is None else often[zero].sum())

    def merge(self, other: Histogram) -> None:
        """Count everything that another histogram has counted."""
        if other.exponent is None:
            return
        self.extend(np.array([other.low, other.high]))
        self._fit()
        copy = dataclasses.replace(other, counts=other.counts.copy())
        copy._coarsen(self.exponent or 0)
        self.counts += copy.counts
        self.zeros += other.zeros

    def _fit(self) -> None:
        largest = max(-self.low, self.high, 0.0)
        needed = int(np.frexp(largest)[1]) - (BINS // 2).bit_length() + 1 if largest else _SMALLEST
        needed = max(needed, _SMALLEST)
        if self.exponent is None:
            self.exponent = needed
        self._coarsen(needed)

    def _coarsen(self, exponent: int) -> None:
        """Join bins in pairs until their width is at least 2**exponent."""
        steps = min(exponent - (self.exponent or 0), BINS.bit_length())
        for _ in range(steps):
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.pad(pairs, BINS // 4)
        self.exponent = max(self.exponent or 0, exponent)

    def percentile(self, percent: float) -> Bounds:
        """The range that leaves out (100 - percent) % of the values, half of it on each side."""
        cut = (100.0 - percent) / 200.0 * int(self.counts.sum())
        seen = np.cumsum(self.counts)
        first = int(np.searchsorted(seen, cut, side="right"))
        last = int(np.searchsorted(seen, seen[-1] - cut, side="left"))
        return self.within(float(self.edge(first)), float(self.edge(last + 1)))

    def edge(self, index: npt.ArrayLike) -> Floats:
        """The lower edge of a bin; of index + 0.5 its middle."""
        return (np.asarray(index, np.float64) - BINS // 2) * 2.0 ** (self.exponent or 0)

    def within(self, low: float, high: float) -> Bounds:
        """Those bounds, not further out than the extremes."""
        return float(max(low, self.low)), float(min(high, self.high))

    def inexact(self) -> Integers:
        """The counts without the zeros."""
        counts = self.counts.copy()
        counts[BINS // 2] -= self.zeros
        return counts

    def state(self) -> dict[str, Array]:
        """All of it as small arrays; `from_state` reads them."""
        used = np.flatnonzero(self.counts)
        first, last = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
        exponent = _SMALLEST if self.exponent is None else self.exponent
        whole = [exponent, int(self.exponent is not None), first, self.zeros]
        return {
            "counts": self.counts[first:last],
            "whole": np.array(whole, np.int64),
            "extremes": np.array([self.low, self.high]),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Array]) -> Self:
        """The histogram whose state that is.

        Raises:
            KeyError, ValueError: it is none.
        """
        exponent, known, first, zeros = (int(number) for number in state["whole"])
        low, high = (float(number) for number in state["extremes"])
        made = cls(exponent=exponent if known else None, low=low, high=high, zeros=zeros)
        part = state["counts"].astype(np.int64)
        if not 0 <= first <= BINS - len(part):
            raise ValueError("The counts lie outside of the bins.")
        made.counts[first : first + len(part)] = part
        return made
