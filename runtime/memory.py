"""How much memory this process has in use, and what its peak was since a moment of our choice.

Linux counts the peak itself (VmHWM in /proc/self/status, set back by writing 5 to /proc/self/clear_refs:
proc_pid_clear_refs(5)). Elsewhere the peak is what is resident at the moment it is asked for.
"""

from __future__ import annotations

import ctypes
import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from burnish.runtime.cgroup import memory_limit

_STATUS: Final = Path("/proc/self/status")
_CLEAR: Final = Path("/proc/self/clear_refs")


def resident() -> int:
    """Bytes of this process that are in memory now, mapped files included."""
    found = _status("VmRSS")
    if found is None:
        import psutil

        found = int(psutil.Process().memory_info().rss)
    return found


def peak() -> int:
    """The most bytes that were in memory since `reset_peak`; where the system does not count, those now."""
    return max(_status("VmHWM") or 0, resident())


def reset_peak() -> bool:
    """Count the peak from now on; False where the system cannot, so that `peak` may be older."""
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


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


def _status(field: str) -> int | None:
    try:
        match = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None
