"""Ranges over calibration data: streaming, independent of order, exact where they can be."""

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.errors import CalibrationError
from burnish.manifest import TensorSpec
from burnish.model import expose, signature, to_bytes
from burnish.runtime.calibrate import METHODS, Histogram, calibrate
from burnish.testing import parse

MODEL = parse(
    "g (float[N, 4] x) => (float[N, 4] y) { h = Mul (x, two)  y = Neg (h) }", weights={"two": np.float32(2)}
)
SPECS = signature(MODEL).inputs
RAW = to_bytes(expose(MODEL, ["h"]))


def samples(count: int = 8, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Batches of several sizes."""
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1 + number % 3, 4)).astype(np.float32)} for number in range(count)]


def test_minmax_is_exact() -> None:
    data = samples()
    flat = np.concatenate([sample["x"] for sample in data]) * 2
    assert calibrate(RAW, data, ["h", "y"]) == {
        "h": (float(flat.min()), float(flat.max())),
        "y": (float(-flat.max()), float(-flat.min())),
    }


@pytest.mark.parametrize("method", METHODS)
def test_order_of_samples_does_not_matter(method: str) -> None:
    data = samples(20)
    data[3]["x"] *= 1000.0
    forward = calibrate(RAW, data, ["h"], method=method)
    assert calibrate(RAW, data[::-1], ["h"], method=method) == forward


def test_samples_are_streamed_and_progress_told() -> None:
    told: list[tuple[str, int, int]] = []
    held: list[int] = []

    def stream() -> Iterator[dict[str, np.ndarray]]:
        for sample in samples(3):
            held.append(len(told))
            yield sample

    calibrate(RAW, stream(), ["h"], progress=lambda *step: told.append(step))
    assert held == [0, 1, 2]
    assert told == [("calibrate", 1, 0), ("calibrate", 2, 0), ("calibrate", 3, 0)]


def test_known_length_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    calibrate(RAW, samples(2), ["h"], progress=lambda *step: told.append(step))
    assert told[-1] == ("calibrate", 2, 2)


@pytest.mark.parametrize("method", ["percentile", "mse"])
def test_memory_does_not_grow_with_samples(method: str) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        calibrate(RAW, iter(samples(count)), ["h"], method=method)
        try:
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2)
    assert peak(200) < peak(10) + 200_000


def test_percentile_leaves_out_the_rarest() -> None:
    histogram = Histogram()
    histogram.add(np.concatenate([np.linspace(-1, 1, 100_000), [100.0]]).astype(np.float32))
    low, high = histogram.percentile(99.99)
    assert -1.0 <= low < -0.95
    assert 0.95 < high < 1.05
    assert histogram.percentile(100.0) == (-1.0, 100.0)


def test_mse_gives_up_an_outlier_but_not_a_uniform_tail() -> None:
    values = np.random.default_rng(0).standard_normal(1_000_000)
    clean, spoiled = Histogram(), Histogram()
    clean.add(np.random.default_rng(0).uniform(-1, 1, 100_000))
    spoiled.add(np.append(values, 30.0))
    assert clean.mse()[1] > 0.95
    assert spoiled.mse()[1] < 20.0


@pytest.mark.parametrize("method", METHODS)
def test_ranges_after_relu_start_at_zero(method: str) -> None:
    model = to_bytes(expose(parse("g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }"), ["y"]))
    assert calibrate(model, samples(), ["y"], method=method)["y"][0] == 0.0


floats = st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=30)


@given(parts=st.lists(floats, min_size=1, max_size=6))
def test_merge_equals_one_pass(parts: list[list[float]]) -> None:
    whole, merged = Histogram(), Histogram()
    for part in parts:
        whole.add(np.array(part))
        other = Histogram()
        other.add(np.array(part))
        merged.merge(other)
    np.testing.assert_array_equal(merged.counts, whole.counts)
    assert (merged.exponent, merged.low, merged.high) == (whole.exponent, whole.low, whole.high)
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


def error(**fields: object) -> CalibrationError:
    with pytest.raises(CalibrationError) as caught:
        calibrate(**({"model": RAW, "samples": samples(), "names": ["h"], "specs": SPECS} | fields))
    return caught.value


def test_no_sample() -> None:
    assert error(samples=[]).code == "CALIB_EMPTY"


def test_unknown_method() -> None:
    caught = error(method="minmaks")
    assert caught.code == "CALIB_METHOD"
    assert "minmax" in caught.hint


def test_bad_sample_names_its_number_and_input() -> None:
    data = samples(3)
    data[2]["x"] = data[2]["x"].astype(np.float64)
    caught = error(samples=data)
    assert caught.code == "CALIB_DTYPE"
    assert "'x' of calibration sample 2" in caught.what


def test_value_that_overflows_is_named() -> None:
    data = samples(2)
    data[1]["x"][0, 0] = 3e38
    caught = error(samples=data)
    assert caught.code == "CALIB_NONFINITE"
    assert "'h' on calibration sample 1" in caught.what


def test_value_that_is_always_empty() -> None:
    spec = (TensorSpec("x", "float32", ("N", 4)),)
    model = parse("g (float[N, 4] x) => (float[M, 4] y) { y = Slice (x, from, to) }",
                  weights={"from": np.array([0]), "to": np.array([0])})  # fmt: skip
    raw = to_bytes(expose(model, ["y"]))
    caught = error(model=raw, names=["y"], specs=spec)
    assert caught.code == "CALIB_EMPTY"
    assert "'y'" in caught.what
