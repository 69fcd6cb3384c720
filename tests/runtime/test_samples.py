"""Readers of calibration samples, and what they refuse."""

from pathlib import Path

import numpy as np
import pytest

from burnish.errors import CalibrationError
from burnish.manifest import DimRange, Manifest, TensorSpec
from burnish.runtime.samples import check_sample, random_samples, read_samples

SPECS = (
    TensorSpec("ids", "int64", ("batch", "sequence"), "token_ids", 50),
    TensorSpec("mask", "float32", ("batch", "sequence")),
)


def sample(batch: int = 2, length: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "ids": rng.integers(0, 50, (batch, length)),
        "mask": rng.random((batch, length)).astype(np.float32),
    }


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def code(source: object, specs: tuple[TensorSpec, ...] = SPECS) -> str:
    with pytest.raises(CalibrationError) as caught:
        list(read_samples(source, specs))
    return caught.value.code


def test_npz_is_one_sample(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **sample())
    (read,) = read_samples(tmp_path / "a.npz", SPECS)
    assert same(read, sample())


def test_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("c", "a", "b"):
        np.savez(tmp_path / f"{name}.npz", **sample(length=ord(name) - ord("a") + 1))
    (tmp_path / "notes.txt").write_text("not a sample")
    assert [read["ids"].shape[1] for read in read_samples(str(tmp_path), SPECS)] == [1, 2, 3]


def test_npy_for_a_model_with_one_input(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", sample()["mask"])
    (read,) = read_samples(tmp_path / "x.npy", SPECS[1:])
    assert same(read, {"mask": sample()["mask"]})


def test_npy_needs_a_single_input(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", sample()["mask"])
    assert code(tmp_path / "x.npy") == "CALIB_MISSING"


def test_iterable_of_dicts_becomes_arrays() -> None:
    (read,) = read_samples(iter([{"ids": [[1, 2]], "mask": np.ones((1, 2), np.float32)}]), SPECS)
    assert read["ids"].dtype == np.int64


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **sample())
    (tmp_path / "b.npz").write_bytes(b"broken")
    reader = read_samples(tmp_path, SPECS)
    assert same(next(reader), sample())
    with pytest.raises(CalibrationError):
        next(reader)


def test_missing_empty_and_broken(tmp_path: Path) -> None:
    assert code(tmp_path / "nowhere.npz") == "CALIB_MISSING"
    assert code(tmp_path) == "CALIB_EMPTY"
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 truncated")
    assert code(tmp_path / "a.npz") == "CALIB_FORMAT"
    (tmp_path / "e.npz").write_bytes(b"")
    assert code(tmp_path / "e.npz") == "CALIB_FORMAT"


def test_pickles_are_not_run(tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert code(tmp_path / "o.npy", SPECS[1:]) == "CALIB_FORMAT"
    (tmp_path / "p.npy").write_bytes(b"\x80\x04]\x94(K\x01K\x02e.")
    assert code(tmp_path / "p.npy", SPECS[1:]) == "CALIB_FORMAT"


def refused(changes: dict[str, np.ndarray | None], specs: tuple[TensorSpec, ...] = SPECS) -> CalibrationError:
    feeds = {name: array for name, array in (sample() | changes).items() if array is not None}
    with pytest.raises(CalibrationError) as caught:
        check_sample(7, feeds, specs)
    assert "calibration sample 7" in caught.value.what
    return caught.value


def test_good_sample_passes() -> None:
    check_sample(0, sample(), SPECS)


@pytest.mark.parametrize(
    ("changes", "expected", "said"),
    [
        ({"mask": None}, "CALIB_MISSING", "'mask'"),
        ({"other": np.ones(2)}, "CALIB_UNKNOWN", "'other'"),
        ({"ids": np.ones((2, 5), np.int32)}, "CALIB_DTYPE", "int32"),
        ({"ids": np.ones(5, np.int64)}, "CALIB_SHAPE", "[5]"),
        ({"mask": np.ones((2, 6), np.float32)}, "CALIB_SHAPE", "sequence = 5"),
        ({"ids": np.ones((0, 5), np.int64)}, "CALIB_EMPTY", "'ids'"),
        ({"mask": np.full((2, 5), np.nan, np.float32)}, "CALIB_NONFINITE", "'mask'"),
        ({"mask": np.full((2, 5), np.inf, np.float32)}, "CALIB_NONFINITE", "'mask'"),
    ],
)
def test_bad_sample(changes: dict[str, np.ndarray | None], expected: str, said: str) -> None:
    caught = refused(changes)
    assert caught.code == expected
    assert said in caught.what


def test_fixed_dim_and_unknown_rank() -> None:
    fixed = (TensorSpec("x", "float32", (None, 3)), TensorSpec("z", "float32"))
    check_sample(0, {"x": np.ones((9, 3), np.float32), "z": np.ones(1, np.float32)}, fixed)
    with pytest.raises(CalibrationError, match="has shape"):
        check_sample(0, {"x": np.ones((9, 4), np.float32), "z": np.ones(1, np.float32)}, fixed)


def test_a_cache_may_be_empty_before_the_first_token() -> None:
    past = TensorSpec("past", "float32", ("batch", 2, "past", 4))
    feeds = sample() | {"past": np.ones((2, 2, 0, 4), np.float32)}
    dims = {"past": DimRange(0, 9), "batch": DimRange()}
    check_sample(0, feeds, (*SPECS, past), dims)
    for ranges in ({}, {"past": DimRange(1, 9)}):
        with pytest.raises(CalibrationError, match="'past' of calibration sample 0 is empty"):
            check_sample(0, feeds, (*SPECS, past), ranges)
    with pytest.raises(CalibrationError, match="is empty"):
        check_sample(0, {"past": np.ones((0, 2, 0, 4), np.float32)}, (past,), dims)


def test_without_specs_only_finite_counts() -> None:
    check_sample(0, {"anything": np.ones(3)}, ())
    with pytest.raises(CalibrationError, match="NaN"):
        check_sample(0, {"anything": np.array([np.nan])}, ())


def test_random_samples_fit_and_repeat() -> None:
    manifest = Manifest(inputs=SPECS, outputs=(), dims={"sequence": DimRange(1, 40)})
    first, second = (random_samples(manifest, count=6, seed=3) for _ in range(2))
    assert len(first) == 6
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    for number, feeds in enumerate(first):
        check_sample(number, feeds, SPECS)
        assert feeds["ids"].max() < 50
    assert max(feeds["ids"].shape[1] for feeds in first) == 40


def test_one_dict_instead_of_a_list_is_named() -> None:
    with pytest.raises(CalibrationError, match="is a str, not a dict"):
        list(read_samples(sample(), SPECS))
