"""What this machine and installation are: CPU, cores, limits, versions. Reads files and metadata only."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Final

import msgspec

from burnish.runtime.cgroup import memory_limit
from burnish.runtime.gpu import Gpu
from burnish.runtime.threads import ThreadPlan, plan_threads

PACKAGES: Final = (
    "burnish", "numpy", "onnxruntime-gpu", "onnxruntime", "onnx", "onnx-ir", "onnxscript", "torch",
    "transformers", "onnxruntime-ep-openvino", "tensorrt-cu13",
)  # fmt: skip
_ROOT: Final = Path("/")
_FEATURES: Final = {
    "avx2": "AVX2", "avx512f": "AVX512", "avx512_vnni": "AVX512-VNNI", "avx_vnni": "AVX-VNNI",
    "avx512_bf16": "AVX512-BF16", "amx_int8": "AMX-INT8", "amx_bf16": "AMX-BF16", "asimd": "NEON",
    "asimddp": "DOTPROD", "i8mm": "I8MM", "bf16": "BF16", "sve": "SVE",
}  # fmt: skip


class Machine(msgspec.Struct, frozen=True):
    """The hardware as this process may use it."""

    cpu: str
    features: tuple[str, ...]
    """Instruction sets that int8 and bfloat16 kernels use, such as AVX512-VNNI and AMX-INT8."""
    threads: ThreadPlan
    memory: int | None
    """Bytes of RAM."""
    memory_limit: int | None
    """Bytes that the cgroup allows; None: no limit."""
    system: str
    python: str
    gpus: tuple[Gpu, ...] = ()
    """NVIDIA's, where they were asked for (see `burnish.runtime.gpu`)."""


def machine(root: Path = _ROOT) -> Machine:
    """This machine; a test lays out another below `root`."""
    cpu, features = _cpu(root)
    return Machine(
        cpu=cpu or platform.processor() or platform.machine(),
        features=features,
        threads=plan_threads(root=root),
        memory=_memory(root),
        memory_limit=memory_limit(root),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
    )


def versions() -> dict[str, str]:
    """Versions of what decides how fast and how right a model runs; nothing is imported for it."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        version = installed(name)
        if version is not None:
            found[name] = version
    return found


def installed(package: str) -> str | None:
    """The version of a distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def rss(root: Path = _ROOT) -> int | None:
    """Bytes of memory that this process holds now; None where the system does not tell (not Linux)."""
    return _status(root, "VmRSS")


def peak_rss(root: Path = _ROOT) -> int | None:
    """The most that this process has held."""
    return _status(root, "VmHWM")


def reset_peak() -> bool:
    """Let `peak_rss` count from now on; False where the system cannot. Source: proc_pid_clear_refs(5)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _status(root: Path, key: str) -> int | None:
    match = re.search(rf"^{key}:\s+(\d+) kB", _read(root / "proc/self/status"), re.MULTILINE)
    return int(match.group(1)) * 1024 if match else None


def _cpu(root: Path) -> tuple[str, tuple[str, ...]]:
    text = _read(root / "proc/cpuinfo")
    model = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    names = set(flags.group(1).split()) if flags else set()
    features = tuple(label for flag, label in _FEATURES.items() if flag in names)
    return (model.group(1).strip() if model else ""), features


def _memory(root: Path) -> int | None:
    match = re.search(r"^MemTotal:\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    if match:
        return int(match.group(1)) * 1024
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
