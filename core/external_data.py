"""External data of a model, checked before any library opens it: inside the model's folder and long enough.

Refused: absolute paths, `..`, symlinks in any component, hard links, pipes and devices, the model file itself
as its own data, offsets and lengths beyond the file or against the dims, tensors that overlap partly. Each of
CVE-2022-25882, 2024-27318, 2026-27489, 2026-34446, 2026-34447 and 2026-49114 was one of these.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final, final

from burnish.errors import ExternalDataError, shown
from burnish.reader import open_inside, safe_relative
from burnish.tensors import byte_size
from burnish.wire import Tensor

_ABSENT: Final = (errno.ENOENT, errno.ENOTDIR)
_SPANS = list[tuple[int, int, str]]


def check_external(tensors: Sequence[Tensor], model: Path, identity: tuple[int, int]) -> dict[str, int]:
    """Check where every external tensor of a model is; return the size in bytes of each data file.

    Args:
        tensors: those whose data is external.
        model: path of the model file; locations start in its folder.
        identity: device and inode of the model file, which cannot be its own data file.

    Returns:
        Data files by path relative to the model's folder, in order of first use.

    Raises:
        ExternalDataError: EXT_PATH, EXT_MISSING or EXT_BOUNDS.
    """
    resolver = _Resolver(model, identity)
    for tensor in tensors:
        resolver.check(tensor)
    resolver.check_overlaps()
    return resolver.sizes


@final
class _Resolver:
    def __init__(self, model: Path, identity: tuple[int, int]) -> None:
        self._model, self._name, self._identity = model, shown(model), identity
        self.sizes: dict[str, int] = {}
        self._spans: dict[str, _SPANS] = {}

    def check(self, tensor: Tensor) -> None:
        entries = dict(tensor.entries)
        location = entries.get("location", "")
        relative = safe_relative(location)
        if relative is None or len(entries) != len(tensor.entries):
            why = f"names the data file '{shown(location)}'" if location else "names no data file"
            raise self._error(
                tensor,
                f"{why}, which is not a plain path inside the model's folder",
                "Move the data beside the model, and name it by a plain relative path.",
                "EXT_PATH",
            )
        offset, length = (self._number(tensor, key, entries) for key in ("offset", "length"))
        size = byte_size(tensor, self._name)
        if length not in (0, size):
            raise self._bounds(tensor, location, f"its length is {length} bytes, but its dims need {size}")
        available = self._size_of(tensor, relative)
        if offset + size > available:
            raise self._bounds(
                tensor, location, f"it ends at byte {offset + size}, but the file has {available}"
            )
        if size:
            self._spans.setdefault(str(relative), []).append((offset, offset + size, tensor.label))

    def check_overlaps(self) -> None:
        """Tensors may share all of their bytes (tied weights) or none."""
        for location, spans in self._spans.items():
            ordered = sorted(set(spans))
            for (start, end, label), after in itertools.pairwise(ordered):
                if after[0] < end and (start, end) != after[:2]:
                    raise self._bounds(
                        Tensor(after[2]), location, f"it overlaps with {label}, which ends at byte {end}"
                    )

    def _number(self, tensor: Tensor, key: str, entries: dict[str, str]) -> int:
        text = entries.get(key, "0")
        if text.isascii() and text.isdigit() and len(text) < 20:
            return int(text)
        why = f"its {key} is '{shown(text, 40)}', which is not a number of bytes"
        raise self._bounds(tensor, entries.get("location", ""), why)

    def _size_of(self, tensor: Tensor, relative: PurePosixPath) -> int:
        key = str(relative)
        if key not in self.sizes:
            try:
                with open_inside(self._model.parent, relative) as file:
                    info = os.fstat(file.fileno())
            except OSError as error:
                raise self._unreadable(tensor, key, error) from error
            if (info.st_dev, info.st_ino) == self._identity:
                raise self._error(
                    tensor, f"names the model file itself ('{shown(key)}') as its data file",
                    "Export the model again, or rename the files as they were.", "EXT_PATH",
                )  # fmt: skip
            self.sizes[key] = info.st_size
        return self.sizes[key]

    def _unreadable(self, tensor: Tensor, location: str, error: OSError) -> ExternalDataError:
        if error.errno in _ABSENT:
            why, code = f"needs the data file '{shown(location)}', which is not there", "EXT_MISSING"
            hint = f"Copy it into '{shown(self._model.parent)}', under that name."
        else:
            why = f"needs the data file '{shown(location)}', but {error.strerror}"
            hint, code = "Copy the data itself beside the model (cp -L follows links).", "EXT_PATH"
        return self._error(tensor, why, hint, code)

    def _bounds(self, tensor: Tensor, location: str, why: str) -> ExternalDataError:
        hint = "The data file is cut, or belongs to another model; copy or export both again."
        return self._error(
            tensor, f"does not fit its data file '{shown(location)}': {why}", hint, "EXT_BOUNDS"
        )

    def _error(self, tensor: Tensor, why: str, hint: str, code: str) -> ExternalDataError:
        label = tensor.label[:1].upper() + tensor.label[1:]
        return ExternalDataError(f"{label} of {self._name} {why}.", hint, code=code)
