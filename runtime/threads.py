"""How many threads to use: physical cores that this process may run on, never more than its CPU quota.

onnxruntime alone starts one thread for each core of the host: in a container limited to 2 CPUs of a
64-core host that is 64 threads which throttle each other.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final

import msgspec

from burnish.errors import InputError
from burnish.runtime.cgroup import cpu_quota

_ROOT: Final = Path("/")


class ThreadPlan(msgspec.Struct, frozen=True):
    """How many intra-op threads a session gets, and what that number comes from."""

    intra_op: int
    why: str
    logical: int
    """CPUs that the affinity mask allows (hardware threads)."""
    physical: int
    """Cores behind them."""
    quota: float | None = None
    """CPUs' worth of time that the control group allows; None: no limit."""


def plan_threads(requested: int | None = None, *, root: Path = _ROOT) -> ThreadPlan:
    """Threads for one session that has the machine to itself.

    Args:
        requested: taken as it is when given.
        root: folder below which /proc and /sys are read (a test lays out a machine there).

    Raises:
        InputError: `requested` is below 1 (THREADS).
    """
    allowed = affinity()
    physical = physical_cores(allowed, root=root)
    quota = cpu_quota(root)
    if requested is not None:
        if requested < 1:
            raise InputError(
                f"{requested} threads are asked for.",
                "Ask for 1 or more, or leave it out.",
                code="THREADS",
            )
        return ThreadPlan(requested, "as asked for", len(allowed), physical, quota)
    # Rounded up: a single call is shorter than the scheduler's period, so a part of a CPU still helps.
    limit = physical if quota is None else max(1, math.ceil(quota))
    count = min(physical, limit)
    why = "physical cores in the affinity mask" if count == physical else "CPU quota of the cgroup"
    return ThreadPlan(count, why, len(allowed), physical, quota)


def affinity() -> frozenset[int]:
    """Numbers of the CPUs that this process may run on (all of them where the system cannot say)."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def physical_cores(cpus: frozenset[int], *, root: Path = _ROOT) -> int:
    """Cores behind those CPUs; where the kernel does not tell siblings, each CPU counts as a core."""
    return max(1, len({_siblings(cpu, root) for cpu in cpus}))


def _siblings(cpu: int, root: Path) -> str:
    """The list of hardware threads of a CPU's core, as the kernel writes it: one text for each core."""
    topology = root / "sys/devices/system/cpu" / f"cpu{cpu}" / "topology"
    for name in ("core_cpus_list", "thread_siblings_list"):
        try:
            return (topology / name).read_text(encoding="ascii").strip()
        except OSError:
            continue
    return str(cpu)
