"""The tensors of a CTranslate2 model.bin (version 6): names, aliases, values that stay memory-mapped.

Source: CTranslate2, python/ctranslate2/specs/model_spec.py, `ModelSpec._serialize`.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any, Final, final

import numpy as np

from burnish.benchmarks.kit import KitError

_VERSION: Final = 6
_TYPES: Final[dict[int, np.dtype[Any]]] = {
    0: np.dtype("<f4"), 1: np.dtype("i1"), 2: np.dtype("<i2"), 3: np.dtype("<i4"), 4: np.dtype("<f2"),
}  # fmt: skip


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file by name, aliases included; views of the memory-mapped file.

    Raises:
        KitError: it is not a CTranslate2 file of version 6, or it is damaged (KIT_MEMBER).
    """
    with path.open("rb") as file:
        cursor = _Cursor(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        return _read(cursor)
    except (struct.error, ValueError, KeyError) as error:
        raise KitError(
            f"{path.name} is not a CTranslate2 model of version {_VERSION}: {error}.",
            "Fetch it again.",
            code="KIT_MEMBER",
        ) from error


def _read(cursor: _Cursor) -> dict[str, np.ndarray]:
    if (version := cursor.number("<I")) != _VERSION:
        raise ValueError(f"version {version}")
    cursor.text()  # the class of the model's specification
    cursor.number("<I")  # its revision
    found = {}
    for _ in range(cursor.number("<I")):
        name = cursor.text()
        found[name] = cursor.tensor()
    for _ in range(cursor.number("<I")):
        alias = cursor.text()
        found[alias] = found[cursor.text()]
    return found


@final
class _Cursor:
    """A place in the file."""

    def __init__(self, buffer: mmap.mmap) -> None:
        self._buffer, self._at = buffer, 0

    def number(self, form: str) -> int:
        value: int = struct.unpack_from(form, self._buffer, self._at)[0]
        self._at += struct.calcsize(form)
        return value

    def text(self) -> str:
        length = self.number("<H")  # its final NUL counts
        start = self._at
        self._at += length
        return self._buffer[start : start + length - 1].decode()

    def tensor(self) -> np.ndarray:
        shape = [self.number("<I") for _ in range(self.number("<B"))]
        dtype = _TYPES[self.number("<B")]
        nbytes = self.number("<I")
        start = self._at
        self._at += nbytes
        return np.frombuffer(self._buffer, dtype, nbytes // dtype.itemsize, start).reshape(shape)
