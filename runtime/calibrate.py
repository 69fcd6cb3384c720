"""Ranges of a model's values over calibration data, in one pass and in bounded memory.

Held at any time: one sample, its wanted values, and one histogram of a fixed size for each value.
Histograms lie on a grid that does not depend on the data, so the result does not depend on the order of
the samples, and two histograms merge exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Final, final

import numpy as np
import numpy.typing as npt

from burnish.errors import CalibrationError, nearest
from burnish.manifest import DimRange, TensorSpec
from burnish.runtime.reference import ModelSource, Reference
from burnish.runtime.samples import check_sample

METHODS: Final = ("minmax", "percentile", "mse")

Bounds = tuple[float, float]
Feeds = Mapping[str, npt.NDArray[np.generic]]

_BINS: Final = 8192  # for each sign 4096; the largest value falls in the upper half of them
_STEPS: Final = 255
_SHARES: Final = np.linspace(1.0, 0.2, 33)  # candidate bounds of `mse`, as shares of the extremes


@final
@dataclasses.dataclass
class Histogram:
    """Counts of finite float values in bins of width 2**exponent around 0, and their exact extremes.

    When a value does not fit, bins are joined in pairs until it does.
    """

    counts: npt.NDArray[np.int64] = dataclasses.field(default_factory=lambda: np.zeros(_BINS, np.int64))
    exponent: int | None = None
    low: float = np.inf
    high: float = -np.inf

    def extend(self, array: npt.NDArray[np.generic]) -> None:
        """Widen the extremes to hold an array, without counting its values."""
        if array.size:
            self.low = min(self.low, float(array.min()))
            self.high = max(self.high, float(array.max()))

    def add(self, array: npt.NDArray[np.generic]) -> None:
        """Count the values of an array."""
        flat = np.ravel(array).astype(np.float64)
        if not flat.size:
            return
        self.extend(flat)
        self._fit()
        width = 2.0 ** (self.exponent or 0)
        index = np.floor(flat / width).astype(np.int64) + _BINS // 2
        self.counts += np.bincount(np.clip(index, 0, _BINS - 1), minlength=_BINS)

    def merge(self, other: Histogram) -> None:
        """Count everything that another histogram has counted."""
        if other.exponent is None:
            return
        self.extend(np.array([other.low, other.high]))
        self._fit()
        copy = dataclasses.replace(other, counts=other.counts.copy())
        copy._coarsen(self.exponent or 0)
        self.counts += copy.counts

    def _fit(self) -> None:
        largest = max(-self.low, self.high, 0.0)
        needed = int(np.frexp(largest)[1]) - (_BINS // 2).bit_length() + 1 if largest else -1000
        if self.exponent is None:
            self.exponent = needed
        self._coarsen(needed)

    def _coarsen(self, exponent: int) -> None:
        """Join bins in pairs until their width is at least 2**exponent."""
        steps = min(exponent - (self.exponent or 0), _BINS.bit_length())
        for _ in range(steps):
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.pad(pairs, _BINS // 4)
        self.exponent = max(self.exponent or 0, exponent)

    def percentile(self, percent: float) -> Bounds:
        """The range that leaves out (100 - percent) % of the values, half of it on each side."""
        cut = (100.0 - percent) / 200.0 * int(self.counts.sum())
        seen = np.cumsum(self.counts)
        first = int(np.searchsorted(seen, cut, side="right"))
        last = int(np.searchsorted(seen, seen[-1] - cut, side="left"))
        return self._clip(float(self._edge(first)), float(self._edge(last + 1)))

    def mse(self) -> Bounds:
        """The range (holding 0) whose rounding to 256 steps has the smallest squared error."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        used = np.flatnonzero(self.counts)
        values, counts = self._edge(used + 0.5), self.counts[used].astype(np.float64)
        best, bounds = np.inf, (low, high)
        for share_low in _SHARES if low else (1.0,):
            for share_high in _SHARES if high else (1.0,):
                candidate = float(low * share_low), float(high * share_high)
                error = _rounding_error(values, counts, *candidate)
                if error < best:
                    best, bounds = error, candidate
        return self._clip(*bounds)

    def _edge(self, index: npt.ArrayLike) -> npt.NDArray[np.float64]:
        return (np.asarray(index, np.float64) - _BINS // 2) * 2.0 ** (self.exponent or 0)

    def _clip(self, low: float, high: float) -> Bounds:
        return float(max(low, self.low)), float(min(high, self.high))


def _rounding_error(
    values: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], low: float, high: float
) -> float:
    """Sum of squared errors of clipping to [low, high] and rounding to 255 equal steps of it."""
    step = (high - low) / _STEPS
    if step == 0.0:
        return float(np.inf)
    outside = np.maximum(np.maximum(low - values, values - high), 0.0)
    return float(np.sum(counts * np.where(outside > 0, outside**2, step**2 / 12)))


def calibrate(
    model: ModelSource,
    samples: Iterable[Feeds],
    names: Sequence[str],
    *,
    method: str = "minmax",
    percent: float = 99.999,
    specs: Sequence[TensorSpec] = (),
    dims: Mapping[str, DimRange] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    threads: int = 1,
) -> dict[str, Bounds]:
    """The range of each named float output of the model over the samples.

    Args:
        model: bytes or path of a model whose outputs include `names` (`burnish.model.expose` adds them).
        samples: feeds; iterated once, one held at a time.
        names: outputs to range.
        method: `minmax` (the extremes), `percentile` (without the rarest values) or `mse` (the range
            whose 8-bit rounding has the smallest squared error).
        percent: for `percentile`, the share of values that the range holds.
        specs: the model's inputs, to check every sample against; empty: not checked beforehand.
        dims: the ranges of its dynamic dims: an input may be empty where one that may be 0 is.
        progress: told ("calibrate", samples done, samples in all or 0 where unknown) after each sample.
        threads: intra-op threads.

    Raises:
        CalibrationError: there is no such method (CALIB_METHOD); a sample does not fit (CALIB_MISSING,
            CALIB_UNKNOWN, CALIB_DTYPE, CALIB_SHAPE, CALIB_EMPTY); a sample or a value of the model is not
            finite (CALIB_NONFINITE); or there is no sample (CALIB_EMPTY). The message names the sample's
            number and the input or value.
        ModelError: the model does not load or run.
    """
    if method not in METHODS:
        raise CalibrationError(
            f"There is no calibration method {method!r}.", nearest(method, METHODS), code="CALIB_METHOD"
        )
    total = len(samples) if isinstance(samples, Sized) else 0
    run = Reference(model, optimize=True, threads=threads)
    found = {name: Histogram() for name in names}
    done = 0
    for feeds in samples:
        check_sample(done, feeds, specs, dims)
        for name, array in run(feeds, list(names)).items():
            _observe(found[name], array, method, f"Value {name!r} on calibration sample {done}")
        done += 1
        if progress is not None:
            progress("calibrate", done, total)
    if not done:
        raise CalibrationError("There is no calibration sample.", "Give at least one.", code="CALIB_EMPTY")
    return {name: _bounds(name, seen, method, percent) for name, seen in found.items()}


def _observe(seen: Histogram, array: npt.NDArray[np.generic], method: str, where: str) -> None:
    if not np.isfinite(array).all():
        raise CalibrationError(
            f"{where} is not finite.",
            "Leave that sample out, or look at the model: it computes NaN or infinity.",
            code="CALIB_NONFINITE",
        )
    if method == "minmax":
        seen.extend(array)
    else:
        seen.add(array)


def _bounds(name: str, seen: Histogram, method: str, percent: float) -> Bounds:
    if seen.low > seen.high:
        raise CalibrationError(
            f"Value {name!r} was empty on every calibration sample.",
            "Give samples that are not empty.",
            code="CALIB_EMPTY",
        )
    if method == "percentile":
        return seen.percentile(percent)
    return seen.mse() if method == "mse" else (seen.low, seen.high)
