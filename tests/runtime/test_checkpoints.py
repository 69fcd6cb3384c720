"""An interrupted calibration goes on where it was, or says why not; its ranges are the same, bit for bit."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from burnish.model import expose, signature, to_bytes
from burnish.runtime.calibrate import calibrate
from burnish.runtime.calibrators import METHODS
from burnish.runtime.checkpoints import Checkpoint, Progress
from burnish.runtime.histogram import Gains
from burnish.runtime.reference import Reference
from burnish.testing import parse

MODEL = parse(
    "g (float[N, 4] x) => (float[N, 4] y) { h = Mul (x, two)  y = Exp (h) }", weights={"two": np.float32(2)}
)
RAW = to_bytes(expose(MODEL, ["h"]))
SPECS = signature(MODEL).inputs
COUNT = 12
KEY = {"model": "abc", "method": "percentile"}


class Stopped(Exception):
    """In place of kill -9: nothing of the run is left but its file."""


def samples(seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1 + n % 3, 4)).astype(np.float32) * (1 + n)} for n in range(COUNT)]


def stopping(at: int) -> Iterator[dict[str, np.ndarray]]:
    yield from samples()[:at]
    raise Stopped


def run(data: object, path: Path, method: str = "percentile", key: dict[str, str] = KEY) -> dict[str, object]:
    gains = {"h": Gains(-1, np.array([1, 2, 3, 4]))}
    checkpoint = Checkpoint(path, key, every=0.0)
    checkpoint._next = 0.0
    return calibrate(RAW, data, ["h", "y"], method=method, gains=gains, specs=SPECS, checkpoint=checkpoint)  # type: ignore[arg-type,return-value]


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write after every sample."""
    monkeypatch.setattr("burnish.runtime.checkpoints._SLOWER", 0)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each sample that the model was run on."""
    seen: list[int] = []
    each = Reference.each

    def counting(self: Reference, feeds: dict[str, np.ndarray], names: object) -> object:
        seen.append(len(feeds["x"]))
        return each(self, feeds, names)  # type: ignore[arg-type]

    monkeypatch.setattr(Reference, "each", counting)
    return seen


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("at", [1, 5, COUNT])
def test_resumed_is_bit_identical(method: str, at: int, memory_path: Path, ran: list[int]) -> None:
    path = memory_path / "new" / "folder" / "c"
    whole = run(samples(), memory_path / "whole", method)
    ran.clear()
    with pytest.raises(Stopped):
        run(stopping(at), path, method)
    assert path.is_file()
    assert len(ran) == at
    ran.clear()
    assert run(samples(), path, method) == whole
    assert len(ran) == COUNT - at
    assert list(path.parent.iterdir()) == []


def test_interrupted_again_and_again(memory_path: Path) -> None:
    whole = run(samples(), memory_path / "whole")
    for at in (2, 3, 7, 11):
        with pytest.raises(Stopped):
            run(stopping(at), memory_path / "c")
    assert run(samples(), memory_path / "c") == whole


def test_more_samples_than_before(memory_path: Path, ran: list[int]) -> None:
    with pytest.raises(Stopped):
        run(stopping(5), memory_path / "c")
    ran.clear()
    assert run(samples()[:7], memory_path / "c") == run(samples()[:7], memory_path / "other")
    assert len(ran) == 2 + 7


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "foreign file", "no arrays"])
def test_a_damaged_file_is_ignored_and_said(
    damage: str, memory_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = memory_path / "c"
    whole = run(samples(), memory_path / "whole")
    with pytest.raises(Stopped):
        run(stopping(5), path)
    raw = bytearray(path.read_bytes())
    if damage == "flip":
        raw[len(raw) // 2] ^= 1
    made = {"cut": raw[: len(raw) // 2], "flip": raw, "empty": b"", "foreign file": b"PK\x03\x04 hello",
            "no arrays": raw[:54]}[damage]  # fmt: skip
    path.write_bytes(bytes(made))
    with caplog.at_level(logging.WARNING):
        assert run(samples(), path) == whole
    assert "is ignored: it cannot be read" in caplog.text
    assert not path.exists()


def test_a_folder_in_its_place_is_said_and_costs_only_the_resuming(
    memory_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(samples(), memory_path / "whole")
    (memory_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        assert run(samples(), memory_path / "file" / "c") == whole
    assert "No checkpoint is written" in caplog.text


def test_of_another_model_or_method(memory_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Stopped):
        run(stopping(5), memory_path / "c")
    with caplog.at_level(logging.WARNING):
        run(samples(), memory_path / "c", key=KEY | {"model": "other", "version": "2"})
    assert "it belongs to another model, version" in caplog.text


def test_of_other_data(memory_path: Path, caplog: pytest.LogCaptureFixture, ran: list[int]) -> None:
    with pytest.raises(Stopped):
        run(stopping(5), memory_path / "c")
    ran.clear()
    other = samples(seed=1)
    with caplog.at_level(logging.WARNING):
        assert run(other, memory_path / "c") == run(other, memory_path / "d")
    assert "it has seen other data" in caplog.text
    assert len(ran) == 2 * COUNT


def test_of_a_method_with_another_state(memory_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Stopped):
        run(stopping(5), memory_path / "c", "minmax")
    with caplog.at_level(logging.WARNING):
        assert run(samples(), memory_path / "c", "entropy") == run(samples(), memory_path / "d", "entropy")
    assert "is not that of a calibrator" in caplog.text


def test_a_symlink_is_not_followed(memory_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Stopped):
        run(stopping(5), memory_path / "c")
    os.symlink(memory_path / "c", memory_path / "link")
    with caplog.at_level(logging.WARNING):
        assert Checkpoint(memory_path / "link", KEY).load() is None
    assert "cannot be read" in caplog.text


def test_written_only_when_it_is_time(memory_path: Path) -> None:
    progress = Progress(1, "00", {"h": {"a": np.arange(3)}})
    checkpoint = Checkpoint(memory_path / "c", KEY, every=1000.0)
    checkpoint.save(lambda: progress)
    assert not checkpoint.path.exists()
    checkpoint.save(lambda: progress, now=True)
    found = checkpoint.load()
    assert found is not None
    assert (found.done, found.data, list(found.states)) == (1, "00", ["h"])
    np.testing.assert_array_equal(found.states["h"]["a"], np.arange(3))
    checkpoint.remove()
    assert checkpoint.load() is None
