"""How values are cut into runs: by their measured bytes, anew for larger samples; refused if nothing fits."""

from collections.abc import Mapping

import numpy as np
import pytest

from burnish.errors import CalibrationError
from burnish.runtime import groups, memory
from burnish.runtime.groups import SCRATCH, Groups

MB = 1_000_000


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of 100 MB on a machine with 10 GB free, whose model needs 50 MB more while it runs."""
    monkeypatch.setattr(memory, "resident", lambda: 100 * MB)
    monkeypatch.setattr(memory, "peak", lambda: 150 * MB)
    monkeypatch.setattr(memory, "available", lambda: 10_000 * MB)


class Sizes:
    """Value v<i> has i MB for each row of x."""

    def __init__(self) -> None:
        self.measured: list[int] = []

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
        rows = len(feeds["x"])
        self.measured.append(rows)
        return {f"v{i}": i * rows * MB for i in range(1, 6)}


NAMES = [f"v{i}" for i in range(1, 6)]


def feeds(rows: int, columns: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.zeros((rows, columns), np.float32)}


def cut(budget: int | None, rows: int = 10) -> list[tuple[str, ...]]:
    return Groups(NAMES, Sizes(), budget).of(feeds(rows), 0)


def test_one_group_where_all_fits_or_nothing_is_known() -> None:
    assert cut(None) == [tuple(NAMES)]
    assert cut(2_000 * MB) == [tuple(NAMES)]
    assert Groups(NAMES, None, 1).of(feeds(10), 0) == [tuple(NAMES)]
    assert Groups([], Sizes(), 1).of(feeds(10), 0) == [()]


@pytest.mark.parametrize("room", range(53, 170, 9))
def test_no_group_is_larger_than_the_room(room: int) -> None:
    budget = 150 * MB + SCRATCH + 53 * MB + room * MB
    found = cut(budget)
    assert [name for group in found for name in group] == NAMES
    assert all(sum(int(name[1:]) * 10 for name in group) <= room for group in found)
    assert len(found) <= 5


def test_without_a_budget_what_is_free_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 200 * MB)
    assert len(cut(None)) > 1
    monkeypatch.setattr(memory, "available", lambda: 0)
    assert cut(None) == [(name,) for name in NAMES]


def test_a_value_that_does_not_fit_is_named() -> None:
    with pytest.raises(CalibrationError) as caught:
        cut(250 * MB)
    assert caught.value.code == "CALIB_MEMORY"
    assert "'v5' on sample 0 (50 MB, held twice, beside 182 MB" in caught.value.what
    assert "budget is 250 MB" in caught.value.what
    assert "Raise --memory-budget to 301 MB" in caught.value.hint
    cut(301 * MB)


def test_measured_again_only_for_larger_samples() -> None:
    sizes = Sizes()
    made = Groups(NAMES, sizes, 1_000 * MB)
    shapes = [(4, 2), (4, 2), (3, 2), (4, 1), (5, 1), (3, 2), (5, 2), (4, 2), (9, 9)]
    cuts = [made.of(feeds(*shape), number) for number, shape in enumerate(shapes)]
    assert sizes.measured == [4, 4, 5, 5, 9], "the first is run twice, to have its weights in memory"
    assert len(cuts[0]) == 1
    assert len(made.of(feeds(40), 9)) > 1


def test_what_was_measured_as_largest_counts() -> None:
    sizes = Sizes()
    made = Groups(NAMES, sizes, 700 * MB)
    many = made.of(feeds(30), 0)
    assert len(many) > 1
    assert made.of(feeds(1, 9), 1) == many


def test_a_budget_that_was_not_kept_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Groups(NAMES, Sizes(), 400 * MB)
    made.of(feeds(1), 0)
    made.check(0)
    monkeypatch.setattr(memory, "peak", lambda: 450 * MB)
    with pytest.raises(CalibrationError, match="took 450 MB of memory on sample 3") as caught:
        made.check(3)
    assert caught.value.code == "CALIB_MEMORY"
    Groups(NAMES, Sizes(), None).check(3)


def test_the_scratch_is_what_a_histogram_takes() -> None:
    import tracemalloc

    from burnish.runtime.histogram import Histogram

    values = np.random.default_rng(0).standard_normal(4_000_000).astype(np.float32)
    histogram = Histogram()
    histogram.add(values[:10])
    tracemalloc.start()
    histogram.add(values)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used < groups.SCRATCH
