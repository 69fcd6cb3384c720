"""The header of a GGUF file, read with every length checked against the file before it is believed.

Nothing of the file reaches a library before this walk is done: no count, length or offset of a hostile or
damaged header can make anything allocate more than the file's own size allows. One walk both checks and
reads, so that no second reader can see another file than the one that was checked. The layout is that of
ggml/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import mmap
import struct
from collections.abc import Mapping
from typing import Any, Final, final

from burnish.errors import ExportError, shown
from burnish.exporter.needs import need

Buffer = bytes | mmap.mmap
Value = bool | int | float | str | list[int] | list[float] | list[bool] | list[str]

_SCALARS: Final = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
"""struct's letter for each scalar type of GGUF."""
_STRING, _ARRAY = 8, 9
_VERSIONS: Final = (2, 3)
_MAX_PAIRS: Final = 100_000
_MAX_TENSORS: Final = 1_000_000
_MAX_ELEMENTS: Final = 8_000_000
"""Of all arrays together; the largest vocabularies have some 300 thousand tokens and as many merges."""
_MAX_NAME: Final = 1024  # bytes; the specification allows 64 for a tensor
_MAX_RANK: Final = 4
_MAX_ALIGNMENT: Final = 1 << 20
_SMALLEST_PAIR: Final = 13  # bytes: an empty key, a type, one byte of value
_SMALLEST_TENSOR: Final = 24  # bytes: an empty name, a rank, a type and an offset


@final
@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is, and what it is; the data is not read."""

    name: str
    shape: tuple[int, ...]
    """Outermost dim first, as numpy and torch have it (the file has it the other way round)."""
    kind: int
    """The number of its GGML type."""
    start: int
    """Offset of its data in the file."""
    nbytes: int

    @property
    def type_name(self) -> str:
        """Such as `Q4_1`."""
        return str(need("gguf").GGMLQuantizationType(self.kind).name)


@final
@dataclasses.dataclass(frozen=True)
class Header:
    """What a GGUF file says before its weights."""

    name: str
    """What messages call the file."""
    metadata: Mapping[str, Value]
    tensors: Mapping[str, TensorInfo]


def bad(what: str, hint: str, code: str = "GGUF_INVALID") -> ExportError:
    """The error of a GGUF file that cannot be used."""
    return ExportError(what, hint, code=code)


def read_header(buffer: Buffer, name: str) -> Header:
    """Read and check the header of a GGUF file.

    Args:
        buffer: the whole file.
        name: what messages call it.

    Raises:
        ExportError: GGUF_INVALID (not a GGUF, big-endian, damaged), GGUF_TRUNCATED, GGUF_TENSOR_TYPE.
    """
    cursor = _Cursor(buffer, name)
    _check_magic(buffer, name)
    cursor.at = 4
    version = cursor.number("I")
    if version not in _VERSIONS:
        raise _bad_version(name, version)
    tensors, pairs = cursor.number("Q"), cursor.number("Q")
    cursor.check_count(pairs, _MAX_PAIRS, _SMALLEST_PAIR, "metadata entries")
    cursor.check_count(tensors, _MAX_TENSORS, _SMALLEST_TENSOR, "tensors")
    metadata: dict[str, Value] = {}
    for _ in range(pairs):
        key = cursor.text(_MAX_NAME)
        if key in metadata:
            raise cursor.damaged(f"has the metadata key {shown(key)!r} twice")
        metadata[key] = cursor.value(cursor.number("I"))
    found = [_tensor_entry(cursor) for _ in range(tensors)]
    return Header(name, metadata, _placed(cursor, found, _alignment(cursor, metadata)))


def _check_magic(buffer: Buffer, name: str) -> None:
    if bytes(buffer[:4]) == b"GGUF":
        return
    if not buffer:
        raise bad(f"{name} is empty.", "Download it again.")
    old = bytes(buffer[:4]) in (b"lmgg", b"tjgg", b"fmgg")
    raise bad(
        f"{name} is not a GGUF file: it starts with {bytes(buffer[:4])!r}.",
        "It is an older GGML format; convert the original model with llama.cpp again."
        if old
        else "Give a file that llama.cpp's converter wrote, or a Hugging Face folder.",
    )


def _bad_version(name: str, version: int) -> ExportError:
    swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
    if swapped in (1, *_VERSIONS):
        return bad(
            f"{name} is a big-endian GGUF file.",
            "Convert it: gguf-convert-endian FILE little (from the gguf package).",
        )
    return bad(
        f"{name} has GGUF version {version}; known are {_VERSIONS[0]} and {_VERSIONS[1]}.",
        "Convert the original model again with a current llama.cpp.",
    )


@final
class _Cursor:
    """A place in the file; whatever is read there is checked to be inside it first."""

    def __init__(self, buffer: Buffer, name: str) -> None:
        self.buffer, self.name, self.at = buffer, name, 0
        self._left = _MAX_ELEMENTS

    def need(self, nbytes: int) -> int:
        """Step over that many bytes, and return where they start."""
        start = self.at
        if nbytes > len(self.buffer) - start:
            raise truncated(self.name, f"its header goes on after byte {len(self.buffer)}")
        self.at += nbytes
        return start

    def damaged(self, why: str) -> ExportError:
        return bad(f"{self.name} {why}.", "The file is damaged; download or convert it again.")

    def number(self, letter: str) -> Any:
        form = struct.Struct("<" + letter)
        return form.unpack_from(self.buffer, self.need(form.size))[0]

    def check_count(self, count: int, most: int, smallest: int, what: str) -> None:
        if count > most:
            raise self.damaged(f"claims {count} {what}; at most {most} are accepted")
        if count * smallest > len(self.buffer) - self.at:
            raise truncated(self.name, f"{count} {what} do not fit into {len(self.buffer)} bytes")

    def text(self, most: int | None = None) -> str:
        length = self.number("Q")
        if most is not None and length > most:
            raise self.damaged(f"has a name of {length} bytes at byte {self.at}")
        start = self.need(length)
        try:
            return str(self.buffer[start : self.at], "utf-8")
        except UnicodeDecodeError:
            raise self.damaged(f"has text at byte {start} that is not UTF-8") from None

    def value(self, kind: int) -> Value:
        if kind in _SCALARS:
            found: Value = self.number(_SCALARS[kind])
            return found
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array(self.number("I"), self.number("Q"))
        raise self.damaged(f"has a metadata value of the unknown type {kind}")

    def _array(self, kind: int, count: int) -> Value:
        if kind not in _SCALARS and kind != _STRING:
            raise self.damaged(f"has a metadata array of the type {kind}, which is not supported")
        size = 8 if kind == _STRING else struct.calcsize(_SCALARS[kind])
        self.check_count(count, self._left, size, "array elements")
        self._left -= count
        if kind == _STRING:
            return [self.text() for _ in range(count)]
        form = struct.Struct(f"<{count}{_SCALARS[kind]}")
        return list(form.unpack_from(self.buffer, self.need(form.size)))


def truncated(name: str, why: str) -> ExportError:
    """The error of a file that ends too early."""
    return bad(f"{name} is truncated: {why}.", "Download or copy it again.", "GGUF_TRUNCATED")


def _tensor_entry(cursor: _Cursor) -> TensorInfo:
    """One line of the tensor table, its offset still relative to the data."""
    name = cursor.text(_MAX_NAME)
    rank = cursor.number("I")
    if not 1 <= rank <= _MAX_RANK:
        raise cursor.damaged(f"gives tensor {shown(name)!r} {rank} dims")
    shape = tuple(reversed([cursor.number("Q") for _ in range(rank)]))
    kind = cursor.number("I")
    nbytes = _nbytes(cursor, name, shape, kind)
    return TensorInfo(name, shape, kind, cursor.number("Q"), nbytes)


@functools.cache
def _block_sizes() -> dict[int, tuple[int, int]]:
    """(elements, bytes) of a block of each GGML type."""
    return {int(kind): size for kind, size in need("gguf").GGML_QUANT_SIZES.items()}


def _nbytes(cursor: _Cursor, name: str, shape: tuple[int, ...], kind: int) -> int:
    sizes = _block_sizes()
    if kind not in sizes:
        raise bad(
            f"Tensor {shown(name)!r} of {cursor.name} has the unknown type {kind}.",
            "Known are those of the gguf package: update it, or convert the model to another type.",
            "GGUF_TENSOR_TYPE",
        )
    if not all(shape) or math.prod(shape) > 2**48:
        raise cursor.damaged(f"gives tensor {shown(name)!r} the dims {list(shape)}")
    elements, nbytes = sizes[kind]
    if shape[-1] % elements:
        raise cursor.damaged(
            f"gives tensor {shown(name)!r} rows of {shape[-1]} elements in blocks of {elements}"
        )
    return int(math.prod(shape) // elements * nbytes)


def _alignment(cursor: _Cursor, metadata: Mapping[str, Value]) -> int:
    found = metadata.get("general.alignment", 32)
    if isinstance(found, bool) or not isinstance(found, int) or not 0 < found <= _MAX_ALIGNMENT:
        raise cursor.damaged(f"aligns its tensors to {shown(found)} bytes")
    return found


def _placed(cursor: _Cursor, entries: list[TensorInfo], alignment: int) -> dict[str, TensorInfo]:
    """The table with offsets in the file; every tensor lies inside it, and no two share a byte."""
    data = -(-cursor.at // alignment) * alignment
    placed: dict[str, TensorInfo] = {}
    end = 0
    for entry in sorted(entries, key=lambda each: each.start):
        if entry.name in placed:
            raise cursor.damaged(f"has tensor {shown(entry.name)!r} twice")
        if entry.start % alignment or entry.start < end:
            where = "off its alignment" if entry.start % alignment else "inside another"
            raise cursor.damaged(f"puts tensor {shown(entry.name)!r} at {entry.start}, {where}")
        end = entry.start + entry.nbytes
        if data + end > len(cursor.buffer):
            short = data + end - len(cursor.buffer)
            raise truncated(cursor.name, f"{short} bytes of tensor {shown(entry.name)!r} are missing")
        placed[entry.name] = dataclasses.replace(entry, start=data + entry.start)
    return placed
