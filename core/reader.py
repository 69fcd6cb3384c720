"""The one reader: opens regular files only, wherever a path came from. The one writer is `burnish.files`."""

from __future__ import annotations

import collections
import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final, final

from burnish.disk import Chunk
from burnish.manifest import FileRecord

_NOFOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
_READ: Final = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_LARGE: Final = 1 << 16  # bytes that are worth a thread
_AHEAD: Final = 8  # pieces that may be written but not hashed yet
_NONBLOCK: Final = getattr(os, "O_NONBLOCK", 0)  # opening a pipe must not wait for its writer


def open_regular(path: str | Path, *, follow: bool = False, folder: int | None = None) -> BinaryIO:
    """Open a regular file for reading; never blocks on a pipe, follows no symlink unless asked.

    Args:
        path: the file.
        follow: follow symlinks; for a path that the user gave, never for one that a file names.
        folder: descriptor of the folder that a relative path starts from.

    Raises:
        OSError: it cannot be opened, or is a folder (EISDIR), a symlink (ELOOP), a pipe or device (EINVAL).
    """
    flags = _READ | _NONBLOCK | (0 if follow else _NOFOLLOW)
    descriptor = os.open(path, flags, dir_fd=folder)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def open_inside(folder: str | Path, relative: PurePosixPath) -> BinaryIO:
    """Open a regular file below a folder that no symlink leads to and that has no second (hard) link.

    The path is walked with one descriptor a component, so that nothing can be exchanged in between.

    Args:
        folder: where the path starts; it may itself be reached by a symlink.
        relative: as `safe_relative` returns it.

    Raises:
        OSError: as `open_regular`; ELOOP for a symlink in any component, EMLINK for a hard link.
    """
    if os.open not in os.supports_dir_fd:  # Windows
        for count in range(1, len(relative.parts) + 1):
            _refuse_symlink(Path(folder, *relative.parts[:count]), None)
        return _single(open_regular(Path(folder, relative)), relative)
    here = os.open(folder, _READ | os.O_DIRECTORY)
    try:
        for part in relative.parts[:-1]:
            _refuse_symlink(part, here)
            below = os.open(part, _READ | os.O_DIRECTORY | _NOFOLLOW, dir_fd=here)
            os.close(here)
            here = below
        _refuse_symlink(relative.name, here)
        return _single(open_regular(relative.name, folder=here), relative)
    finally:
        os.close(here)


def _refuse_symlink(path: str | Path, folder: int | None) -> None:
    """For its message: O_NOFOLLOW alone reports a symlink to a folder as a missing one."""
    if stat.S_ISLNK(os.stat(path, dir_fd=folder, follow_symlinks=False).st_mode):
        raise OSError(errno.ELOOP, "it is a symbolic link", str(path))


def _single(file: BinaryIO, path: PurePosixPath) -> BinaryIO:
    if os.fstat(file.fileno()).st_nlink == 1:
        return file
    file.close()
    raise OSError(errno.EMLINK, "it is a hard link to a file that may be elsewhere", str(path))


def safe_relative(text: str) -> PurePosixPath | None:
    """A path inside a folder, as a file may name it; None where it could lead out, on any system."""
    path = PurePosixPath(text)
    parts = path.parts
    windows = "\\" in text or text[1:2] == ":" or any(part.endswith((".", " ")) for part in parts)
    if not parts or path.is_absolute() or "\0" in text or windows:
        return None
    return None if ".." in parts else path


def chunks_of(file: BinaryIO, size: int = 1 << 19) -> Iterator[bytes]:
    """A file from its start, piece by piece."""
    file.seek(0)
    while chunk := file.read(size):
        yield chunk


def record_of(chunks: Iterable[Chunk]) -> FileRecord:
    """Size and sha256 of bytes that come in pieces."""
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
    return FileRecord(size, digest.hexdigest())


@final
class hashed:  # noqa: N801 - used as a function
    """Bytes on their way to a file, in pieces, measured as they pass: large ones by a second thread."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self._chunks, self._digest, self._size = chunks, hashlib.sha256(), 0

    def __iter__(self) -> Iterator[Chunk]:
        with ThreadPoolExecutor(1) as thread:
            pending: collections.deque[Future[None]] = collections.deque()
            for chunk in self._chunks:
                self._size += len(chunk)
                if len(chunk) < _LARGE and not pending:
                    self._digest.update(chunk)
                else:
                    pending.append(thread.submit(self._digest.update, chunk))
                yield chunk
                while len(pending) > _AHEAD or (pending and pending[0].done()):
                    pending.popleft().result()

    @property
    def record(self) -> FileRecord:
        """Size and sha256 of what has passed, once all has."""
        return FileRecord(self._size, self._digest.hexdigest())


def sidecar_path(model: Path) -> Path:
    """Where the manifest of a plain `.onnx` file is: `NAME.burnish.json` beside it."""
    return model.with_name(f"{model.stem}.burnish.json")
