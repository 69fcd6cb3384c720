"""How ranges are read from data: one small class for each method, fed with one batch after the other."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import ClassVar, Final, final

import numpy as np

from burnish.errors import CalibrationError, nearest
from burnish.runtime.histogram import BINS, Array, Bounds, Floats, Gains, Histogram, Integers

PERCENT: Final = 99.999
"""The share of values that `percentile` keeps, where nothing else is said."""

_STEPS: Final = 255
_SHARES: Final = np.linspace(1.0, 0.2, 33)  # candidate bounds of `mse`, as shares of the extremes
_PERCENTS: Final = (100.0, 99.999, 99.99, 99.9, 99.0)  # candidates of `layerwise-percentile`
_WEIGHT: Final = 0.01  # of the newest batch in the moving average, as in PyTorch's observer
_LEVELS: Final = _STEPS + 1
_THRESHOLDS: Final = 128  # candidates of `entropy`
_FLOOR: Final = 1e-9  # probability of what the rounded distribution does not have


class Calibrator(abc.ABC):
    """Finds the range of one value; holds a fixed number of bytes whatever it is fed with."""

    name: ClassVar[str]

    @abc.abstractmethod
    def observe(self, array: Array) -> None:
        """Take in a batch of finite values, of any shape; an empty one changes nothing."""

    @abc.abstractmethod
    def bounds(self) -> Bounds | None:
        """The range of all that was observed; None where that was nothing."""

    @abc.abstractmethod
    def state(self) -> dict[str, Array]:
        """What has been observed, as arrays."""

    @abc.abstractmethod
    def restore(self, state: Mapping[str, Array]) -> None:
        """Go on from a state.

        Raises:
            KeyError, ValueError: it is none of this method.
        """


@final
class MinMax(Calibrator):
    """The smallest and the largest value."""

    name = "minmax"

    def __init__(self) -> None:
        self._seen = Histogram()

    def observe(self, array: Array) -> None:
        """Widen the range."""
        self._seen.extend(array)

    def bounds(self) -> Bounds | None:
        """The extremes."""
        return _extremes(self._seen)

    def state(self) -> dict[str, Array]:
        """The extremes."""
        return {"extremes": np.array([self._seen.low, self._seen.high])}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Set the extremes."""
        self._seen.low, self._seen.high = map(float, state["extremes"])


@final
class MovingAverage(Calibrator):
    """The exponential moving average of the extremes of batches, the newest with weight 1 %.

    It starts unbiased (as in Adam, arXiv 1412.6980 section 3): over few batches it is their mean, not mostly
    the first one. It depends on what a batch is and, over many, on their order.
    """

    name = "moving-average"

    def __init__(self) -> None:
        self._mean = np.zeros(2)
        self._total = 0.0
        """The sum of the weights of all batches, where that of the newest is 1."""

    def observe(self, array: Array) -> None:
        """Move the average to the extremes of a batch."""
        if array.size:
            self._total = self._total * (1.0 - _WEIGHT) + 1.0
            extremes = np.array([array.min(), array.max()], np.float64)
            self._mean += (extremes - self._mean) / self._total

    def bounds(self) -> Bounds | None:
        """The averages."""
        return (float(self._mean[0]), float(self._mean[1])) if self._total else None

    def state(self) -> dict[str, Array]:
        """The averages, and the weights behind them."""
        return {"mean": self._mean.copy(), "total": np.array(self._total)}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Set the averages."""
        self._mean, self._total = state["mean"].astype(np.float64).reshape(2), float(state["total"])


class OfHistogram(Calibrator):
    """A range that is read from a histogram at the end."""

    def __init__(self) -> None:
        self.seen = Histogram()

    def observe(self, array: Array) -> None:
        """Count the values."""
        self.seen.add(array)

    def bounds(self) -> Bounds | None:
        """The range, no wider than the extremes."""
        return self.range_of(self.seen) if _extremes(self.seen) else None

    @abc.abstractmethod
    def range_of(self, seen: Histogram) -> Bounds:
        """The range of what was counted."""

    def state(self) -> dict[str, Array]:
        """The histogram's."""
        return self.seen.state()

    def restore(self, state: Mapping[str, Array]) -> None:
        """Set the histogram."""
        self.seen = Histogram.from_state(state)


@final
class Percentile(OfHistogram):
    """The range that leaves out the rarest values, the same share on each side."""

    name = "percentile"

    def __init__(self, percent: float = PERCENT) -> None:
        super().__init__()
        self._percent = percent

    def range_of(self, seen: Histogram) -> Bounds:
        """Without (100 - percent) % of the values."""
        return seen.percentile(self._percent)


@final
class Mse(OfHistogram):
    """The range whose rounding to 256 steps has the smallest squared error."""

    name = "mse"

    def range_of(self, seen: Histogram) -> Bounds:
        """The best of a grid of shares of the extremes, below and above 0."""
        low, high = min(seen.low, 0.0), max(seen.high, 0.0)
        values, counts = _points(seen)
        best, bounds = np.inf, (low, high)
        for share_low in _SHARES if low else (1.0,):
            for share_high in _SHARES if high else (1.0,):
                candidate = float(low * share_low), float(high * share_high)
                error = rounding_error(values, counts, *candidate)
                if error < best:
                    best, bounds = error, candidate
        return seen.within(*bounds)


@final
class Entropy(OfHistogram):
    """The range whose rounding to 256 steps loses the least information (Kullback-Leibler divergence).

    Source: Migacz, "8-bit inference with TensorRT" (GTC 2017), with two differences: values below 0 have
    bins of their own, and zeros, which every range holds exactly, do not count.
    """

    name = "entropy"

    def range_of(self, seen: Histogram) -> Bounds:
        """The best of 128 thresholds on the magnitude; of equal ones the largest."""
        counts = seen.inexact()
        used = np.flatnonzero(counts)
        if not used.size:
            return seen.low, seen.high
        first, last = int(used[0]) - BINS // 2, int(used[-1]) + 1 - BINS // 2
        furthest = max(-first, last)
        best, bounds = np.inf, (first, last)
        for threshold in np.linspace(furthest, min(_LEVELS, furthest), _THRESHOLDS).astype(int).tolist():
            low, high = max(min(first, 0), -threshold), min(max(last, 0), threshold)
            divergence = divergence_of(counts, low + BINS // 2, high + BINS // 2)
            if divergence < best:
                best, bounds = divergence, (low, high)
        return seen.within(*(float(seen.edge(bound + BINS // 2)) for bound in bounds))


@final
class LayerwisePercentile(OfHistogram):
    """The percentile with which the layers that read a value err least, of 99, 99.9 ... 100 %.

    A channel's error counts as much as the layer passes on of it: the sum of its squared weights. That is the
    squared error of the layer's output where the errors of channels do not depend on each other. So one
    histogram, whose values count by their channel, says what every candidate would cost, over all data.
    """

    name = "layerwise-percentile"

    def __init__(self, gains: Gains | None = None) -> None:
        super().__init__()
        self._gains = gains
        self._weighed = Histogram()

    def observe(self, array: Array) -> None:
        """Count the values once, and once by what their channel is worth."""
        super().observe(array)
        if self._gains is not None:
            self._weighed.add(array, self._gains)

    def range_of(self, seen: Histogram) -> Bounds:
        """That of the candidate with the smallest error; of equal ones the widest."""
        values, counts = _points(seen if self._gains is None else self._weighed)
        ranges = [seen.percentile(percent) for percent in _PERCENTS]
        errors = [rounding_error(values, counts, min(a, 0.0), max(b, 0.0)) for a, b in ranges]
        return ranges[int(np.argmin(errors))]

    def state(self) -> dict[str, Array]:
        """Both histograms'."""
        weighed = {f"weighed-{key}": array for key, array in self._weighed.state().items()}
        return super().state() | weighed

    def restore(self, state: Mapping[str, Array]) -> None:
        """Set both histograms."""
        super().restore(state)
        mine = {key.removeprefix("weighed-"): a for key, a in state.items() if key.startswith("weighed-")}
        self._weighed = Histogram.from_state(mine)


METHODS: Final = (
    MinMax.name, MovingAverage.name, Percentile.name, Entropy.name, Mse.name, LayerwisePercentile.name,
)  # fmt: skip


def need_method(method: str, percent: float = PERCENT) -> None:
    """Refuse a method that there is not, or a percentile that is none.

    Raises:
        CalibrationError: CALIB_METHOD.
    """
    if method not in METHODS:
        raise CalibrationError(
            f"There is no calibration method {method!r}.", nearest(method, METHODS), code="CALIB_METHOD"
        )
    if not 50.0 < percent <= 100.0:
        raise CalibrationError(
            f"A range cannot hold {percent:g} % of the values.",
            "Give a percentile above 50, at most 100.",
            code="CALIB_METHOD",
        )


def new_calibrator(method: str, *, percent: float = PERCENT, gains: Gains | None = None) -> Calibrator:
    """A calibrator of that method, which has seen nothing.

    Args:
        method: one of METHODS.
        percent: for `percentile`, the share of values that the range holds.
        gains: for `layerwise-percentile`, what each channel of the value is worth; None: all the same.

    Raises:
        CalibrationError: CALIB_METHOD.
    """
    need_method(method, percent)
    match method:
        case Percentile.name:
            return Percentile(percent)
        case LayerwisePercentile.name:
            return LayerwisePercentile(gains)
        case MovingAverage.name:
            return MovingAverage()
        case Entropy.name:
            return Entropy()
        case Mse.name:
            return Mse()
        case _:
            return MinMax()


def rounding_error(values: Floats, counts: Floats, low: float, high: float) -> float:
    """Sum of squared errors of clipping to [low, high] and rounding to 255 equal steps of it."""
    step = (high - low) / _STEPS
    if step == 0.0:
        return float(np.sum(counts * values**2))
    outside = np.maximum(np.maximum(low - values, values - high), 0.0)
    return float(np.sum(counts * np.where(outside > 0, outside**2, step**2 / 12)))


def divergence_of(counts: Integers, low: int, high: int) -> float:
    """KL divergence of the values clipped to bins low to high (below it) from those rounded to 256 levels.

    Rounded, the values of one level are equally likely in each of its bins that hold any.
    """
    inside = counts[low:high].astype(np.float64)
    clipped = inside.copy()
    clipped[0] += counts[:low].sum()
    clipped[-1] += counts[high:].sum()
    level = np.arange(high - low) * _LEVELS // max(high - low, _LEVELS)
    filled = inside > 0
    share = np.bincount(level, inside) / np.maximum(np.bincount(level, filled), 1)
    rounded = np.where(filled, share[level], 0.0)
    if not rounded.any():
        return float(np.inf)
    p, q = clipped / clipped.sum(), rounded / rounded.sum()
    some = p > 0
    return float(np.sum(p[some] * np.log(p[some] / np.maximum(q[some], _FLOOR))))


def _points(seen: Histogram) -> tuple[Floats, Floats]:
    """The middles of the bins that hold anything but zeros, and how much they hold."""
    counts = seen.inexact()
    used = np.flatnonzero(counts)
    return seen.edge(used + 0.5), counts[used].astype(np.float64)


def _extremes(seen: Histogram) -> Bounds | None:
    return None if seen.low > seen.high else (seen.low, seen.high)
