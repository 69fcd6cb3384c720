"""Bytes on their way to the disk: written in pieces that the kernel likes, and waited for.

`burnish.files` decides what is written where, and in which order names are given.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, final

Chunk = bytes | memoryview
"""Some bytes of a file. A view stays valid for as long as it is held, and its bytes do not change."""

_SAFE: Final = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
# Of 2 MB and more Linux looks for huge pages to cache them in; on a machine that has been up for a while that
# took up to ten times as long as the copying.
_PIECE: Final = 1 << 19
_BEHIND: Final = 1 << 24  # bytes between two requests to write back
_SYNC_FILE_RANGE_WRITE: Final = 2  # linux/fs.h


@final
class Writer:
    """Writes to a descriptor from where it is; the disk starts on what is there while more is coming.

    Args:
        descriptor: open for writing; it stays open.
        ahead: ask for the write-back, so that a later fsync finds little left to wait for.
    """

    def __init__(self, descriptor: int, *, ahead: bool = True) -> None:
        self._descriptor, self._ahead = descriptor, ahead
        self._at = self._asked = 0

    def write(self, chunk: Chunk) -> None:
        """Write all of a chunk.

        Raises:
            OSError: as `os.write`.
        """
        view = memoryview(chunk)
        while view:
            written = os.write(self._descriptor, view[:_PIECE])
            view = view[written:]
            self._at += written
            if self._ahead and self._at - self._asked >= _BEHIND:
                _write_back()(self._descriptor, self._asked, self._at - self._asked)
                self._asked = self._at


@functools.cache
def _write_back() -> Callable[[int, int, int], object]:
    """What starts the write-back of a range of a file without waiting; nothing, where there is no such call.

    An error is not reported here: fsync reports it.
    """
    call = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None
    if call is None:
        return lambda descriptor, start, length: None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return lambda descriptor, start, length: call(descriptor, start, length, _SYNC_FILE_RANGE_WRITE)


def sync(folder: Path) -> None:
    """Make names in a folder durable, where the system can.

    Raises:
        OSError: as `os.fsync`.
    """
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY | _SAFE)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(descriptor)


def sync_tree(root: Path) -> None:
    """Make a folder, and all that is in it, durable.

    Raises:
        OSError: as `os.fsync`.
    """
    if os.name != "posix":
        return
    for folder, _, names in os.walk(root):
        for name in names:
            descriptor = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_NONBLOCK | _SAFE)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync(Path(folder))
