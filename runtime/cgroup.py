"""What the control group of this process allows: CPU time and memory, v1 and v2, all ancestors counted.

The kernel's own files are read below `root`, so that a test can lay out any machine in a folder.
Source: Linux Documentation/admin-guide/cgroup-v2.rst; cgroup-v1/memory.rst; scheduler/sched-bwc.rst.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final, final

_ROOT: Final = Path("/")
_UNLIMITED_V1: Final = 1 << 60  # v1 writes "no limit" as the largest multiple of a page


@final
@dataclasses.dataclass(frozen=True)
class _Mount:
    """One cgroup file system: which part of the hierarchy (`root`) is seen at which folder (`point`)."""

    kind: str
    root: str
    point: str
    controllers: frozenset[str]


def cpu_quota(root: Path = _ROOT) -> float | None:
    """CPUs' worth of time that the tightest control group allows (1.5 = 150 ms in 100 ms), or None."""
    found = [_quota_v2(folder) for folder in _folders(root, None)]
    found += [_quota_v1(folder) for folder in _folders(root, "cpu")]
    return min((quota for quota in found if quota is not None), default=None)


def memory_limit(root: Path = _ROOT) -> int | None:
    """Bytes that the tightest control group allows, or None."""
    found = [_number(folder / "memory.max") for folder in _folders(root, None)]
    found += [_number(folder / "memory.limit_in_bytes") for folder in _folders(root, "memory")]
    return min((size for size in found if size is not None and size < _UNLIMITED_V1), default=None)


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    return _ratio(quota, period or "100000")


def _quota_v1(folder: Path) -> float | None:
    return _ratio(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float | None:
    """`max` (v2) and `-1` (v1) mean no limit."""
    if not (quota.isdigit() and period.isdigit()) or int(quota) * int(period) == 0:
        return None
    return int(quota) / int(period)


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _folders(root: Path, controller: str | None) -> Iterator[Path]:
    """The group of this process and its ancestors, innermost first; `controller` None means v2.

    A container sees its own group as the root of the mount: then the path in /proc/self/cgroup starts
    with the mount's root, or leads outside it, and the mount point itself is the group.
    """
    own = _own_group(root, controller)
    for mount in _mounts(root):
        wanted = mount.kind == "cgroup2" if controller is None else controller in mount.controllers
        if not wanted or own is None:
            continue
        point = root / mount.point.lstrip("/")
        parts = _inside(own, mount.root)
        for length in range(len(parts), -1, -1):
            yield point.joinpath(*parts[:length])


def _inside(own: str, mount_root: str) -> tuple[str, ...]:
    path = PurePosixPath(own)
    if ".." in path.parts or not path.is_relative_to(mount_root):
        return ()
    return path.relative_to(mount_root).parts


def _own_group(root: Path, controller: str | None) -> str | None:
    """The path of this process's group: lines are `number:controllers:path`, v2 is `0::path`."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controller in names.split(",") if controller else (number == "0" and not names):
            return path
    return None


def _mounts(root: Path) -> Iterator[_Mount]:
    """Fields of /proc/self/mountinfo: proc_pid_mountinfo(5)."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        left, separator, right = line.partition(" - ")
        fields, options = left.split(), right.split()
        if separator and len(fields) > 4 and options and options[0] in ("cgroup", "cgroup2"):
            controllers = frozenset(options[2].split(",")) if len(options) > 2 else frozenset()
            yield _Mount(options[0], fields[3], fields[4], controllers)
