"""Check a model file before any library parses it: what it is, whether it is whole, what it refers to.

Imports neither onnx nor onnx-ir: the runtime uses it on the way to onnxruntime.
"""

from __future__ import annotations

import dataclasses
import errno
import mmap
import os
from pathlib import Path
from typing import BinaryIO, Final, final

from burnish.errors import ModelError, shown
from burnish.external_data import check_external
from burnish.reader import open_regular
from burnish.sniff import HEAD, refuse_other_formats
from burnish.tensors import check_tensor
from burnish.wire import Buffer, Found, Limits, Walk

# What onnxruntime 1.31 loads; below opset 7 it guarantees nothing, but most operators run.
OPSETS: Final = range(1, 27)
IR_VERSIONS: Final = range(3, 14)
_DEFAULT_LIMITS: Final = Limits()


@final
@dataclasses.dataclass(frozen=True)
class ModelFile:
    """What a checked model file says of itself."""

    path: Path
    size: int
    """Bytes of the model file, without its data files."""
    ir_version: int
    opsets: dict[str, int]
    """Version by domain; the default domain is the empty string."""
    data: dict[str, int]
    """Bytes of each external data file, by path relative to the model's folder."""


def check_model_file(path: str | Path, *, limits: Limits = _DEFAULT_LIMITS) -> ModelFile:
    """Check a model file and its external data; the file is memory-mapped, weights are not read.

    Raises:
        ModelError: MODEL_PATH, MODEL_PARSE, MODEL_SIZE, MODEL_DEPTH, MODEL_UTF8, FORMAT_UNKNOWN,
            PICKLE_REFUSED, OPSET_UNSUPPORTED, TENSOR_SIZE, TENSOR_DTYPE.
        ExternalDataError: EXT_PATH, EXT_MISSING, EXT_BOUNDS.
    """
    with _open(path) as file:
        size = _checked_size(file, path, limits)
        buffer: Buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        return _check(buffer, Path(path), os.fstat(file.fileno()), limits)


def read_model_file(path: str | Path, *, limits: Limits = _DEFAULT_LIMITS) -> tuple[bytes, ModelFile]:
    """The bytes of a model file, checked as `check_model_file` does: what was checked is what is returned.

    Raises:
        ModelError, ExternalDataError: as `check_model_file`.
    """
    with _open(path) as file:
        _checked_size(file, path, limits)
        data = file.read(limits.max_bytes + 1)
        return data, _check(data, Path(path), os.fstat(file.fileno()), limits)


def _open(path: str | Path) -> BinaryIO:
    try:
        return open_regular(path, follow=True)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        folder = isinstance(error, OSError) and error.errno == errno.EISDIR
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ModelError(
            f"Cannot read {shown(path)}: {why}.",
            "Give the .onnx file inside; an artifact folder holds a burnish.json."
            if folder
            else "Give the path of an .onnx file that you may read.",
            code="MODEL_PATH",
        ) from error


def _checked_size(file: BinaryIO, path: str | Path, limits: Limits) -> int:
    size = os.fstat(file.fileno()).st_size
    if size > limits.max_bytes:
        head = file.read(HEAD)
        file.seek(max(0, size - HEAD))
        refuse_other_formats(shown(path), head, file.read(HEAD))
        raise ModelError(
            f"{shown(path)} has {size} bytes; at most {limits.max_bytes} fit into one protobuf.",
            "Save it with external data: onnx.save(model, path, save_as_external_data=True).",
            code="MODEL_SIZE",
        )
    return size


def _check(buffer: Buffer, path: Path, info: os.stat_result, limits: Limits) -> ModelFile:
    name = shown(path)
    refuse_other_formats(name, buffer[:HEAD], buffer[-HEAD:])
    walk = Walk(buffer, name, limits)
    for tensor in walk.run():
        check_tensor(tensor, name)
    found = walk.found
    if not found.graphs:
        raise ModelError(
            f"{name} holds no graph: it is not an ONNX model, or it is truncated.",
            "Give the .onnx file; copy or export it again.",
            code="MODEL_PARSE",
        )
    _check_versions(found, name)
    data = check_external(found.external, path, (info.st_dev, info.st_ino))
    return ModelFile(path, len(buffer), found.ir_version, _by_domain(found.opsets, name), data)


def _check_versions(found: Found, name: str) -> None:
    if found.ir_version not in IR_VERSIONS:
        raise _unsupported(name, f"has IR version {found.ir_version}", "IR versions", IR_VERSIONS)
    if not found.opsets:
        raise _unsupported(name, "says no opset version", "opsets", OPSETS)
    _by_domain(found.opsets, name)
    for domain, version in (*found.opsets, *found.function_opsets):
        if domain in ("", "ai.onnx") and version not in OPSETS:
            raise _unsupported(name, f"needs opset {version}", "opsets", OPSETS)


def _by_domain(imports: list[tuple[str, int]], name: str) -> dict[str, int]:
    versions: dict[str, int] = {}
    for domain, version in imports:
        domain = "" if domain == "ai.onnx" else domain
        if versions.setdefault(domain, version) != version:
            what = f"imports domain '{shown(domain) or 'ai.onnx'}' twice, as {versions[domain]} and {version}"
            raise _unsupported(name, what, "opsets", OPSETS)
    return versions


def _unsupported(name: str, what: str, kind: str, supported: range) -> ModelError:
    return ModelError(
        f"{name} {what}; supported are {kind} {supported[0]} to {supported[-1]} (onnxruntime 1.31).",
        "Export it with a supported opset_version, or convert it with onnx.version_converter.",
        code="OPSET_UNSUPPORTED",
    )
