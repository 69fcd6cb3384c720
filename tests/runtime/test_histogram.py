"""Histograms: the same counts whatever the order, the parts and the growth; nothing is lost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.runtime.histogram import BINS, PIECE, Gains, Histogram

floats = st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=30)


def of(*arrays: object) -> Histogram:
    histogram = Histogram()
    for array in arrays:
        histogram.add(np.asarray(array))
    return histogram


def assert_equal(a: Histogram, b: Histogram) -> None:
    np.testing.assert_array_equal(a.counts, b.counts)
    assert (a.exponent, a.low, a.high, a.zeros) == (b.exponent, b.low, b.high, b.zeros)


def test_percentile_leaves_out_the_rarest() -> None:
    histogram = Histogram()
    histogram.add(np.concatenate([np.linspace(-1, 1, 100_000), [100.0]]).astype(np.float32))
    low, high = histogram.percentile(99.99)
    assert -1.0 <= low < -0.95
    assert 0.95 < high < 1.05
    assert histogram.percentile(100.0) == (-1.0, 100.0)


@given(parts=st.lists(floats, min_size=1, max_size=6))
def test_merge_equals_one_pass(parts: list[list[float]]) -> None:
    whole, merged = Histogram(), Histogram()
    for part in parts:
        whole.add(np.array(part))
        other = Histogram()
        other.add(np.array(part))
        merged.merge(other)
    assert_equal(merged, whole)
    assert whole.counts.sum() == sum(map(len, parts))


@given(values=floats)
def test_every_range_lies_within_the_extremes(values: list[float]) -> None:
    histogram = Histogram()
    histogram.add(np.array(values))
    for low, high in (histogram.percentile(99.0), histogram.percentile(100.0)):
        assert min(values) <= low <= high <= max(values)


def test_merge_with_nothing() -> None:
    histogram = Histogram()
    histogram.add(np.array([1.0, 2.0]))
    histogram.merge(Histogram())
    assert histogram.counts.sum() == 2


@given(parts=st.lists(floats, min_size=1, max_size=6), seed=st.integers(0, 99))
def test_neither_order_nor_shape_matters(parts: list[list[float]], seed: int) -> None:
    values = np.random.default_rng(seed).permutation(np.concatenate([np.array(part) for part in parts]))
    assert_equal(of(*parts), of(values))
    assert_equal(of(*parts), of(*values[::-1].reshape(-1, 1, 1)))


@pytest.mark.parametrize("growth", [(1e-30, 1e30), (1e30, 1e-30), (0.0, 1e-300, 1.0), (2.0, 4.0, 1.99)])
def test_growing_equals_having_known(growth: tuple[float, ...]) -> None:
    values = [np.linspace(-peak, peak, 1001) for peak in growth]
    grown = of(*values)
    known = Histogram(low=-max(growth), high=max(growth))
    for array in values:
        known.add(array)
    assert_equal(grown, known)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_bin_holds_what_numpy_counts_there(dtype: type) -> None:
    values = (np.random.default_rng(0).standard_normal(10_000) * 3).astype(dtype)
    histogram = of(values[:17], values[17:5000].reshape(-1, 1), values[5000:])
    expected, _ = np.histogram(values.astype(np.float64), histogram.edge(np.arange(BINS + 1)))
    np.testing.assert_array_equal(histogram.counts, expected)
    assert (histogram.low, histogram.high) == (float(values.min()), float(values.max()))


def test_at_least_2048_bins_are_used_and_the_extremes_fit() -> None:
    for largest in (1.0, 1.5, np.nextafter(2.0, 0), 2.0, 1e-20, 3e38):
        histogram = of([-largest, largest])
        used = np.flatnonzero(histogram.counts)
        assert used[-1] - used[0] >= BINS // 4
        assert histogram.edge(used[-1]) <= largest


def test_values_around_the_smallest_numbers() -> None:
    histogram = of([5e-324, -5e-324, 0.0], [1e-310])
    assert histogram.counts.sum() == 4
    assert histogram.percentile(100.0) == (-5e-324, 1e-310)


def test_zeros_are_told_from_small_values() -> None:
    histogram = of([0.0, -0.0, 1e-9, 1.0], [[0.0]])
    assert histogram.zeros == 3
    assert histogram.inexact().sum() == 2
    assert histogram.counts.sum() == 5


def test_large_arrays_are_counted_in_pieces() -> None:
    values = np.random.default_rng(0).standard_normal((3, PIECE)).astype(np.float32)
    assert_equal(of(values), of(*values))


@pytest.mark.parametrize(("shape", "axis"), [((5, 7, 3), -1), ((5, 7, 3), 1), ((4, 2, 3, 5), 1), ((6,), 0)])
def test_gains_count_by_channel(shape: tuple[int, ...], axis: int) -> None:
    rng = np.random.default_rng(0)
    values = np.where(rng.random(shape) < 0.2, 0.0, rng.standard_normal(shape)).astype(np.float32)
    gains = rng.integers(0, 9, shape[axis])
    histogram, expected = Histogram(), Histogram()
    histogram.add(values, Gains(axis, gains))
    channels = np.moveaxis(values, axis, 0)
    expected.add(
        np.concatenate([np.repeat(part.ravel(), n) for part, n in zip(channels, gains, strict=True)])
    )
    np.testing.assert_array_equal(histogram.counts, expected.counts)
    assert histogram.zeros == expected.zeros


@given(parts=st.lists(floats, max_size=4))
def test_a_state_is_all_of_it(parts: list[list[float]]) -> None:
    histogram = of(*parts)
    again = Histogram.from_state(histogram.state())
    assert_equal(again, histogram)
    again.add(np.array([1.0, -(2.0**90)]))
    histogram.add(np.array([1.0, -(2.0**90)]))
    assert_equal(again, histogram)


def test_a_wrong_state_is_refused() -> None:
    state = of([1.0, 2.0]).state()
    for wrong in ({}, state | {"whole": np.array([0, 1, BINS, 0])}, state | {"whole": np.array([1, 2])}):
        with pytest.raises((KeyError, ValueError)):
            Histogram.from_state(wrong)
