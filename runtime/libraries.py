"""Which shared libraries a provider needs, which of them are missing, and the pip line that brings each.

A provider library is never opened here: outside onnxruntime its start-up code has no host to talk to. Its
ELF dynamic section is read instead, and each library it names is tried alone.
Source: System V ABI, chapter 5 (Dynamic Section); lists seen in onnxruntime-gpu 1.31.1.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import io
import mmap
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import onnxruntime as ort

CUDNN: Final = "libcudnn.so.9"
"""The CUDA provider opens it when a node needs it, so it is not among the needed ones."""
CUDA_FIX: Final = 'pip install "onnxruntime-gpu[cuda,cudnn]"'
TENSORRT_FIX: Final = 'pip install "tensorrt-cu13>=10,<11"'
OPENVINO_FIX: Final = "pip install onnxruntime-ep-openvino"
DRIVER_FIX: Final = "install the NVIDIA driver (libcuda.so.1 comes with it, not with pip)"

_NOT_FOUND: Final = re.compile(r"^([^\s:]+): cannot open shared object file")
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NEEDED, _DT_STRTAB = 1, 5


def provider_library(name: str) -> Path:
    """Where onnxruntime keeps the library of a provider (`cuda`, `tensorrt`)."""
    return Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{name}.so"


def needed(library: Path) -> tuple[str, ...]:
    """The libraries that a 64-bit little-endian ELF file names as needed, in order.

    Anything else (a file that is not there, Windows, macOS) needs nothing that is known here.
    """
    try:
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _needed(data) if data[:6] == b"\x7fELF\x02\x01" else ()
    except (OSError, ValueError, OverflowError, struct.error):
        return ()


def missing(library: Path) -> tuple[str, ...]:
    """Names of needed libraries that cannot be loaded now, the ones below them included."""
    found = (_culprit(name) for name in needed(library))
    return tuple(dict.fromkeys(name for name in found if name is not None))


def loads(name: str) -> bool:
    """True when that shared library can be loaded now (always, where that is not known: not Linux)."""
    return _culprit(name) is None


def fixes(names: tuple[str, ...]) -> tuple[str, ...]:
    """What to run or install for those missing libraries, without repetition."""
    return tuple(dict.fromkeys(_fix(name) for name in names))


@functools.cache
def preload() -> str:
    """Load CUDA, cuDNN and TensorRT from their pip packages, once; what onnxruntime said about it.

    `onnxruntime.preload_dlls` prints what it misses; that text is returned, not shown. It knows nothing of
    TensorRT, whose package `tensorrt_libs` is loaded here, for all to see.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        ort.preload_dlls()
    for library in tensorrt_packages():
        if library.name in needed(provider_library("tensorrt")):
            with contextlib.suppress(OSError):
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    return said.getvalue().strip()


def tensorrt_packages() -> tuple[Path, ...]:
    """The libraries of TensorRT's pip package, `libnvinfer` before its parser, or none."""
    spec = importlib.util.find_spec("tensorrt_libs")
    folders = spec.submodule_search_locations if spec is not None else None
    found = (path for folder in folders or () for path in Path(folder).glob("libnv*.so.*"))
    return tuple(sorted(found, key=lambda path: ("infer" not in path.name, path.name)))


def _culprit(name: str) -> str | None:
    """The library that is in the way of loading `name`: itself or one below it; None when it loads."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        ctypes.CDLL(name)
    except OSError as error:
        match = _NOT_FOUND.match(str(error))
        return match.group(1) if match else name
    return None


def _fix(name: str) -> str:
    if name.startswith("libcuda.so"):
        return DRIVER_FIX
    if name.startswith(("libnvinfer", "libnvonnxparser")):
        return TENSORRT_FIX
    if name.startswith(("libcu", "libnvrtc", "libnvJitLink")):
        return CUDA_FIX
    return f"install the system library {name}"


def _needed(data: mmap.mmap) -> tuple[str, ...]:
    headers = list(_program_headers(data))
    entries = [
        entry
        for kind, offset, _, size in headers
        if kind == _PT_DYNAMIC
        for entry in struct.iter_unpack("<qQ", data[offset : offset + size])
    ]
    names = [value for tag, value in entries if tag == _DT_NEEDED]
    tables = [value for tag, value in entries if tag == _DT_STRTAB]
    base = _file_offset(tables[0], headers) if tables else None
    if base is None:
        return ()
    return tuple(data[base + at : data.find(b"\0", base + at)].decode("ascii") for at in names)


def _program_headers(data: mmap.mmap) -> Iterator[tuple[int, int, int, int]]:
    """(type, offset in the file, virtual address, size in the file) of each segment."""
    (start,) = struct.unpack_from("<Q", data, 0x20)
    size, count = struct.unpack_from("<HH", data, 0x36)
    for index in range(count):
        kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", data, start + index * size)
        yield kind, offset, address, length


def _file_offset(address: int, headers: list[tuple[int, int, int, int]]) -> int | None:
    for kind, offset, start, size in headers:
        if kind == _PT_LOAD and start <= address < start + size:
            return offset + address - start
    return None
