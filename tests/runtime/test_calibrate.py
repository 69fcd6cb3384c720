"""Ranges over calibration data: streaming, independent of order, exact where they can be."""

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from burnish.errors import CalibrationError
from burnish.manifest import TensorSpec
from burnish.model import expose, signature, to_bytes
from burnish.runtime.calibrate import calibrate
from burnish.runtime.calibrators import METHODS
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


@pytest.mark.parametrize("method", [method for method in METHODS if method != "moving-average"])
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


@pytest.mark.parametrize("method", METHODS)
def test_memory_does_not_grow_with_samples(method: str) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        calibrate(RAW, (samples(1, seed)[0] for seed in range(count)), ["h"], method=method)
        try:
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2)
    assert peak(200) < peak(10) + 200_000


@pytest.mark.parametrize("method", METHODS)
def test_ranges_after_relu_start_at_zero(method: str) -> None:
    model = to_bytes(expose(parse("g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }"), ["y"]))
    assert calibrate(model, samples(), ["y"], method=method)["y"][0] == 0.0


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
    assert error(method="percentile", percent=0.0).code == "CALIB_METHOD"


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
