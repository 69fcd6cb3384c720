"""What is asked of NVIDIA's driver; a made-up one stands in for it."""

import ctypes
from typing import Any

import pytest

from burnish.runtime import gpu
from burnish.runtime.gpu import Gpu, gpus


class Driver:
    """The functions of libcuda that are called, for two devices."""

    NAMES = (b"First", b"Second")
    ATTRIBUTES = {75: (9, 8), 76: (0, 6)}  # noqa: RUF012 - a table

    def __init__(self, status: int = 0) -> None:
        self.status = status

    def cuInit(self, _flags: int) -> int:
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(self.NAMES)
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, _size: int, device: Any) -> int:
        name.value = self.NAMES[device.value]
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, device: Any) -> int:
        size._obj.value = (device.value + 1) << 34
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = self.ATTRIBUTES[attribute][device.value]
        return 0


def test_the_devices_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.ctypes, "CDLL", lambda _: Driver())
    assert gpus() == (Gpu("First", "9.0", 1 << 34), Gpu("Second", "8.6", 1 << 35))


def test_a_driver_that_does_not_start_lists_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.ctypes, "CDLL", lambda _: Driver(status=100))
    assert gpus() == ()


def test_without_a_driver_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(gpu.ctypes, "CDLL", absent)
    assert gpus() == ()
