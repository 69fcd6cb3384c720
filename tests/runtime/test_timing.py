"""Taking turns: who is called when, and how samples become ratios. No time is asserted."""

import gc
from pathlib import Path

import numpy as np
import pytest

from burnish.costs import Ratio
from burnish.errors import InputError, ModelError
from burnish.runtime import timing
from burnish.runtime.options import Options
from burnish.runtime.session import Session
from burnish.runtime.timing import agree, best_ratio, compare_speed, interleave, paired_ratio, spread


def test_every_callable_has_a_sample_in_every_round() -> None:
    samples = interleave({"a": lambda: None, "b": lambda: None, "c": lambda: None}, runs=7)
    assert {name: len(times) for name, times in samples.items()} == {"a": 7, "b": 7, "c": 7}
    assert all(time > 0 for times in samples.values() for time in times)


def test_the_order_rotates(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(timing, "_inner_calls", lambda call, warmup: 1)
    interleave({name: lambda name=name: order.append(name) for name in "abc"}, runs=3)
    # Each is called twice in its turn: once to settle, once with the clock.
    assert "".join(order) == "aabbcc" + "bbccaa" + "ccaabb"


def test_seconds_end_it_but_not_before_the_least_rounds() -> None:
    samples = interleave({"a": lambda: None}, runs=1_000_000, seconds=0.0, min_rounds=4)
    assert len(samples["a"]) == 4


def test_garbage_collection_is_off_and_on_again() -> None:
    seen: list[bool] = []
    interleave({"a": lambda: seen.append(gc.isenabled())}, runs=2, warmup=0)
    assert seen[0]
    assert not any(seen[1:])
    assert gc.isenabled()


def test_garbage_collection_comes_back_after_an_error() -> None:
    calls = []

    def fail() -> None:
        calls.append(1)
        if len(calls) > 2:
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        interleave({"a": fail}, runs=5, warmup=1)
    assert gc.isenabled()


def test_ratios() -> None:
    assert best_ratio([4.0, 2.0, 9.0], [1.0, 3.0, 2.0]) == 2.0
    assert paired_ratio([4.0, 2.0, 9.0], [1.0, 1.0, 3.0]) == 3.0


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (1.00, 1.02, True), (1.5, 2.5, True), (0.5, 0.8, True),
        (1.0, 1.3, False), (0.8, 1.3, False), (1.05, 1.2, False),
    ],
)  # fmt: skip
def test_estimates_that_agree(one: float, other: float, expected: bool) -> None:
    assert agree(one, other) is expected
    assert agree(other, one) is expected


def test_when_estimates_never_agree_the_cautious_one_is_returned(
    add: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = []

    def noisy(calls: object, **options: object) -> dict[str, list[float]]:
        rounds.append(options)
        return {"a": [1.0, 3.0, 3.0], "b": [1.0, 1.0, 1.0]}

    monkeypatch.setattr(timing, "interleave", noisy)
    assert compare_speed(add, add, {}, threads=1) == Ratio(1.0, 1.0, 3.0, 12)
    assert len(rounds) == 4


def test_spread_is_that_of_fifths_of_the_rounds() -> None:
    slow_half_way = [2.0, 2.0, 2.0, 6.0, 6.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert spread(slow_half_way, [1.0] * 10) == (2.0, 2.0)  # a fifth has an undisturbed round
    assert spread([2.0, 2.0, 6.0, 6.0, *[2.0] * 6], [1.0] * 10) == (2.0, 6.0)
    assert spread([3.0, 4.0], [1.0, 2.0]) == (2.0, 3.0)


def test_compare_speed_runs_both_models(add: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(add)
    x = np.ones((2, 3), np.float32)
    ratio = compare_speed(add, tmp_path / "m.onnx", {"x": x, "z": x}, threads=1, budget_s=0.01)
    assert 0 < ratio.low <= ratio.value <= ratio.high < float("inf")
    assert ratio.rounds >= 5


def test_compare_speed_names_what_does_not_load(add: bytes) -> None:
    with pytest.raises(ModelError):
        compare_speed(add, b"garbage", {})
    with pytest.raises(InputError):
        compare_speed(add, add, {"x": np.ones((2, 3), np.float32)}, budget_s=0.01)


def test_inputs_on_a_device_are_checked_once(add: bytes) -> None:
    x = np.ones((2, 3), np.float32)
    with Session(add, threads=1) as session:
        call = session.resident({"x": x, "z": x})
        call()
        with pytest.raises(InputError):
            session.resident({"x": x})


def test_compare_speed_runs_on_the_provider_that_is_asked_for(
    add: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def opened(source: bytes, provider: str, *, threads: int | None, options: Options) -> Session:
        asked.append(provider)
        return Session(source, "cpu", threads=threads, options=options)

    monkeypatch.setattr(timing, "Session", opened)
    x = np.ones((2, 3), np.float32)
    compare_speed(add, add, {"x": x, "z": x}, threads=1, budget_s=0.01, provider="cuda")
    assert asked == ["cuda", "cuda"]
