"""NVIDIA's devices, asked of the driver's own library: nothing is installed for it, and no context is made.

The driver is started in this process, and after that CUDA does not work in a fork of it: ask only where CUDA
is meant.

Source: CUDA Driver API, sections Initialization and Device Management.
"""

from __future__ import annotations

import ctypes
from typing import Final

import msgspec

_DRIVER: Final = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_…
_NAME_BYTES: Final = 256


class Gpu(msgspec.Struct, frozen=True):
    """A device that the driver lists."""

    name: str
    capability: str
    """Compute capability, such as `9.0`: kernels are built for it."""
    memory: int
    """Bytes."""


def gpus() -> tuple[Gpu, ...]:
    """The devices in the driver's order; none where there is no driver, or it does not start."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    return tuple(_describe(driver, index) for index in range(count.value))


def _describe(driver: ctypes.CDLL, index: int) -> Gpu:
    device, size, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(_NAME_BYTES)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, _NAME_BYTES, device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    version = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        version.append(str(value.value))
    return Gpu(name.value.decode(errors="replace"), ".".join(version), size.value)
