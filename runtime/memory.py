"""How much memory this process has in use, and what its peak was since a moment of our choice.

Linux counts both itself (`burnish.runtime.machine`). Elsewhere psutil says what is resident, and the peak is
what is resident at the moment it is asked for.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable

from burnish.runtime import machine
from burnish.runtime.cgroup import memory_limit


def resident() -> int:
    """Bytes of this process that are in memory now, mapped files included."""
    found = machine.rss()
    if found is None:
        import psutil

        found = int(psutil.Process().memory_info().rss)
    return found


def peak() -> int:
    """The most bytes in memory since `machine.reset_peak`; where the system does not count, those now."""
    return max(machine.peak_rss() or 0, resident())


def give_back() -> None:
    """Let the C library return freed memory to the system, where it can (glibc)."""
    if (trim := _trim()) is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    function: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return function


def available() -> int:
    """Bytes that this process may still take: of the machine, or of its control group where that has less."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limit = memory_limit()
    return free if limit is None else max(0, min(free, limit - resident()))
