"""What is read of this process's memory."""

import sys

import numpy as np
import pytest

from burnish.runtime import machine, memory


def test_resident_sees_an_array() -> None:
    before = memory.resident()
    array = np.ones(300_000_000, np.uint8)
    assert 250_000_000 < memory.resident() - before < 350_000_000
    del array


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel counts the peak on Linux only")
def test_the_peak_can_be_counted_anew() -> None:
    array = np.ones(200_000_000, np.uint8)
    high = memory.peak()
    del array
    assert memory.peak() >= high - 1_000_000
    assert machine.reset_peak()
    assert memory.peak() < high - 150_000_000


def test_available_is_less_than_the_machine_has() -> None:
    import psutil

    assert 0 < memory.available() <= psutil.virtual_memory().total


def test_a_control_group_limits_what_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_limit", lambda: memory.resident() + 50_000_000)
    assert memory.available() < 60_000_000


def refused(*_: object, **__: object) -> int:
    raise PermissionError


def test_without_proc_psutil_says(monkeypatch: pytest.MonkeyPatch) -> None:
    known = memory.resident()
    monkeypatch.setattr(machine, "rss", lambda: None)
    monkeypatch.setattr(machine, "peak_rss", lambda: None)
    monkeypatch.setattr(machine.Path, "write_text", refused)
    assert abs(memory.resident() - known) < 50_000_000
    assert memory.peak() >= known / 2
    assert not machine.reset_peak()
