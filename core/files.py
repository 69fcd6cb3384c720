"""The one writer: a file or folder is written whole or not at all, whatever fails and whenever it is killed.

Temporary names in the same folder, fsync, rename, fsync of the folder. A writer holds a lock (flock) on its
temporary files; what a dead one left is removed by the next writer in that folder. A symlink given as an
output is followed. The one reader is `burnish.reader`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from burnish.disk import Chunk, Writer, sync, sync_tree
from burnish.errors import OutputError, shown

Data = bytes | Iterable[Chunk]
"""The content of a file: at once, or in chunks, so that a large one is never in memory as a whole."""

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEMP: Final = re.compile(r"\.burnish-(\d+)-[0-9a-f]{16}\.tmp")
_FORGOTTEN: Final = 3600.0  # seconds; after that an unlocked temp whose pid is in use again goes too
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_SAFE: Final = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_READ: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _SAFE
_RENAME_EXCHANGE: Final = 2  # linux/fs.h
_AT_FDCWD: Final = -100


def write_file(path: str | Path, data: Data) -> None:
    """Write one file: afterwards it is there as a whole, or the previous one is untouched.

    Raises:
        OutputError: OUTPUT_PATH (folder missing, not writable, or the path is a folder), or DISK_FULL.
    """
    write_together({path: data})


def write_together(files: Mapping[str | Path, Data], *, remove: Iterable[Path] = ()) -> None:
    """Write files that belong together; all contents are on disk before the first takes its name.

    They take their names in the order of the mapping, so put what others refer to first, under a name that no
    earlier version uses; `remove` is deleted last. Then every moment has the old or the new version whole.

    Raises:
        OutputError: OUTPUT_PATH or DISK_FULL; new files of an unfinished write are taken back.
    """
    targets = [_target(path) for path in files]
    temps = [_temp(target) for target in targets]
    for folder in dict.fromkeys(target.parent for target in targets):
        _sweep(folder)
    with contextlib.ExitStack() as locks:
        try:
            for target, temp, data in zip(targets, temps, files.values(), strict=True):
                locks.callback(os.close, _write_temp(temp, target, data))
            if os.name == "nt":  # an open file cannot be renamed there
                locks.close()
            _give_names(temps, targets)
        finally:
            for temp in temps:
                _discard(temp)
    for path in remove:
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def staged_folder(path: str | Path, *, owned: Container[str] = ()) -> Iterator[Path]:
    """Write a folder: yields an empty one beside it, which replaces it as a whole at the end of the block.

    On Linux the two are exchanged in one step (renameat2); where the file system cannot, the old one is
    renamed first, and put back by the next writer if this one dies in between. When the block fails, nothing
    has changed.

    Args:
        path: the folder; its parent must exist.
        owned: relative paths that an existing folder may hold; it is not replaced if it holds anything else.

    Raises:
        OutputError: OUTPUT_PATH (also: the folder holds files of others) or DISK_FULL.
    """
    target = _target(path, folder=True)
    temp, aside = _temp(target), target.with_name(f".burnish-old-{target.name}")
    _recover(target, aside)
    _check_owned(target, owned)
    _sweep(target.parent)
    try:
        with contextlib.ExitStack() as locks:
            with _reporting(target):
                os.mkdir(temp)
                if os.name == "posix":
                    locks.callback(os.close, _lock(os.open(temp, os.O_RDONLY | _SAFE)))
            with _reporting(target, temp):
                yield temp
            with _reporting(target):
                sync_tree(temp)
                _swap(temp, target, aside)
                sync(target.parent)
    finally:
        _recover(target, aside)
        _discard(temp)


def need_place(path: str | Path, *, folder: bool, owned: Container[str] = ()) -> None:
    """Refuse at once what `write_file` or `staged_folder` would refuse after the work is done.

    Raises:
        OutputError: OUTPUT_PATH.
    """
    target = _target(path, folder=folder)
    if folder:
        _check_owned(target, owned)


@contextlib.contextmanager
def scratch_folder(beside: str | Path) -> Iterator[Path]:
    """A folder beside an output for large files on the way to it; removed at the end of the block.

    What a writer that died left of one goes when the next writes there.

    Raises:
        OutputError: OUTPUT_PATH or DISK_FULL, naming the output.
    """
    target = Path(os.path.realpath(beside))
    temp = _temp(target)
    _sweep(target.parent)
    try:
        with contextlib.ExitStack() as locks:
            with _reporting(target):
                os.mkdir(temp)
                if os.name == "posix":
                    locks.callback(os.close, _lock(os.open(temp, os.O_RDONLY | _SAFE)))
            yield temp
    finally:
        _discard(temp)


def write_scratch(path: Path, data: Iterable[Chunk], output: str | Path) -> None:
    """Write a file of a scratch folder, without waiting for the disk; errors name the output it is for.

    Raises:
        OutputError: OUTPUT_PATH or DISK_FULL.
    """
    with _reporting(Path(output)):
        descriptor = os.open(path, _CREATE | _SAFE, 0o666)
    try:
        writer = Writer(descriptor, ahead=False)
        for chunk in data:
            with _reporting(Path(output)):
                writer.write(chunk)
    finally:
        os.close(descriptor)


def _target(path: str | Path, *, folder: bool = False) -> Path:
    """Where a path really leads, if a file (or folder) can be written there."""
    if "\0" in str(path):
        raise _refused(path, "holds a NUL character", "Choose another name.")
    target = Path(os.path.realpath(path))
    with _reporting(target):
        if not stat.S_ISDIR(os.stat(target.parent).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "its parent is not a folder")
        mode = os.lstat(target).st_mode if os.path.lexists(target) else None
    if mode is None or (stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode)):
        return target
    what = "a folder" if stat.S_ISDIR(mode) else "a file" if folder else "not a regular file"
    raise _refused(path, f"is {what}", "Choose another path for the output.")


def _check_owned(target: Path, owned: Container[str]) -> None:
    for folder, folders, files in os.walk(target):
        for name in (*files, *(n for n in folders if Path(folder, n).is_symlink())):
            inside = Path(folder, name).relative_to(target).as_posix()
            if inside not in owned and not _TEMP.fullmatch(name):
                raise _refused(
                    target,
                    f"exists and holds '{shown(inside)}', which burnish did not write",
                    "Choose another folder, or move that file away first.",
                )


def _refused(path: str | Path, why: str, hint: str) -> OutputError:
    return OutputError(f"Cannot write '{shown(path)}': it {why}.", hint, code="OUTPUT_PATH")


@contextlib.contextmanager
def _reporting(target: Path, temp: Path | None = None) -> Iterator[None]:
    """Turn an OSError of writing `target` into its typed error; of staging, only what concerns `temp`."""
    try:
        yield
    except OutputError as error:
        what = error.what.replace(str(temp), str(target)) if temp else error.what
        raise OutputError(what, error.hint, code=error.code) from error
    except OSError as error:
        foreign = temp is not None and not str(error.filename).startswith(str(temp))
        if foreign and error.errno not in _FULL:
            raise
        why = error.strerror or str(error)
        if error.errno in _FULL:
            raise OutputError(
                f"No room to write '{shown(target)}': {why}.",
                "Free disk space or choose another place; what was there before is unchanged.",
                code="DISK_FULL",
            ) from error
        raise OutputError(
            f"Cannot write '{shown(target)}': {why}.",
            "Choose a path in an existing folder that you may write to.",
            code="OUTPUT_PATH",
        ) from error


def _temp(target: Path) -> Path:
    return target.with_name(f".burnish-{os.getpid()}-{secrets.token_hex(8)}.tmp")


def _write_temp(temp: Path, target: Path, data: Data) -> int:
    """Write and sync a temporary file; return its descriptor, which holds the lock."""
    with _reporting(target):
        descriptor = _lock(os.open(temp, _CREATE | _SAFE, 0o666))
    try:
        writer = Writer(descriptor)
        for chunk in (data,) if isinstance(data, bytes) else data:
            with _reporting(target):
                writer.write(chunk)
        with _reporting(target):
            if os.name == "posix" and target.exists():
                os.fchmod(descriptor, stat.S_IMODE(target.stat().st_mode) & 0o777)
            os.fsync(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _give_names(temps: list[Path], targets: list[Path]) -> None:
    """Rename; when one fails, take back the new files, unless one that was there is replaced already."""
    new = [not target.exists() for target in targets]
    try:
        for temp, target in zip(temps, targets, strict=True):
            with _reporting(target):
                os.replace(temp, target)
                sync(target.parent)
    except BaseException:
        named = [i for i, temp in enumerate(temps) if not temp.exists()]
        for i in named if all(new[i] for i in named) else ():
            _discard(targets[i])
        raise


def _lock(descriptor: int) -> int:
    """Mark what is open as in use until it is closed, or its process has died."""
    if sys.platform != "win32":
        import fcntl

        with contextlib.suppress(OSError):  # a file system without locks: pid and age must do
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def _sweep(folder: Path) -> None:
    """Remove what dead writers of this user left in a folder."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _TEMP.fullmatch(entry.name)
            if match and _is_abandoned(entry, int(match[1])):
                _discard(Path(entry.path))


def _is_abandoned(entry: os.DirEntry[str], pid: int) -> bool:
    with contextlib.suppress(OSError):
        info = entry.stat(follow_symlinks=False)
        if hasattr(os, "getuid") and info.st_uid != os.getuid():
            return False
        old = time.time() - info.st_mtime > _FORGOTTEN
        return (old or not _is_alive(pid)) and not _is_locked(entry.path)
    return False


def _is_alive(pid: int) -> bool:
    if sys.platform == "win32":
        return True  # os.kill would end it there; age decides
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _is_locked(path: str) -> bool:
    """True while the writer lives, also in another container, where its pid says nothing."""
    if sys.platform == "win32":
        return False
    import fcntl

    descriptor = os.open(path, _READ)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _discard(path: Path) -> None:
    """Remove, with a second attempt when the first is interrupted."""
    try:
        _remove(path)
    finally:
        if os.path.lexists(path):
            _remove(path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _recover(target: Path, aside: Path) -> None:
    """Finish what a writer that died between two renames began."""
    if aside.exists():
        with contextlib.suppress(OSError):
            if target.exists():
                _discard(aside)
            else:
                os.rename(aside, target)


def _swap(temp: Path, target: Path, aside: Path) -> None:
    if not target.exists():
        try:
            os.rename(temp, target)
            return
        except OSError:
            if not target.exists():  # otherwise another writer was faster: replace what it wrote
                raise
    if not _exchange(temp, target):
        os.rename(target, aside)
        os.rename(temp, target)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two paths in one step; False where the system or file system cannot."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if not rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE):
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(b))
