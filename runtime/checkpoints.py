"""Where an interrupted calibration goes on: one small file, written whole, that knows what it belongs to."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, final

import numpy as np
import numpy.typing as npt

from burnish.errors import OutputError
from burnish.files import write_file
from burnish.reader import open_regular

State = Mapping[str, npt.NDArray[np.generic]]
Key = Mapping[str, str]
"""What a checkpoint belongs to: hash of the model, method, names of values, versions."""

LOG: Final = logging.getLogger("burnish.calibration")

_MAGIC: Final = b"burnish calibration 1\n"
_SLOWER: Final = 20  # times as long as a write took passes between two
_LARGEST: Final = 1 << 32  # bytes of a file that is worth looking into
_UNREADABLE: Final = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)


class Progress(NamedTuple):
    """How far a calibration has come."""

    done: int
    """Samples."""
    data: str
    """The hash of those samples, in their order."""
    states: Mapping[str, State]
    """What is known of each value."""


@final
class Checkpoint:
    """The file of one calibration.

    Args:
        path: where it is; its folder is made.
        key: what it belongs to; a file that says something else is ignored.
        every: seconds that pass between two writes, at least.
    """

    def __init__(self, path: Path, key: Key, *, every: float = 5.0) -> None:
        self.path, self._key, self._every = path, dict(key), every
        self._next = time.monotonic() + every

    def load(self) -> Progress | None:
        """What the last run left; None where it left nothing that can be used, which is logged."""
        try:
            with open_regular(self.path) as file:
                raw = file.read(_LARGEST)
            key, found = _decode(raw)
        except FileNotFoundError:
            return None
        except _UNREADABLE as error:
            self.ignore(f"it cannot be read: {' '.join(str(error).split()) or type(error).__name__}")
            return None
        differing = [name for name in self._key | key if key.get(name) != self._key.get(name)]
        if differing:
            self.ignore(f"it belongs to another {', '.join(sorted(differing))}")
            return None
        return found

    def ignore(self, why: str) -> None:
        """Say that the file is of no use; the calibration starts at the first sample."""
        LOG.warning("The checkpoint %s is ignored: %s.", self.path, why)

    def save(self, progress: Callable[[], Progress], *, now: bool = False) -> None:
        """Write, if it is time to (or `now`); where that fails it is logged, and the work goes on.

        Args:
            progress: puts together what is written; not called when it is not time to.
            now: write at any time.
        """
        if not now and time.monotonic() < self._next:
            return
        started = time.monotonic()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self.path, _encode(self._key, progress()))
        except (OSError, OutputError) as error:
            LOG.warning("No checkpoint is written: %s", str(error).partition("\n")[0])
            self._next = float("inf")
            return
        ended = time.monotonic()
        self._next = ended + max(self._every, _SLOWER * (ended - started))

    def remove(self) -> None:
        """Remove the file: the calibration is done."""
        with contextlib.suppress(OSError):  # it was never written, or somebody was faster
            self.path.unlink()


def _encode(key: Key, progress: Progress) -> bytes:
    header = {
        "key": key, "done": progress.done, "data": progress.data, "names": list(progress.states)
    }  # fmt: skip
    arrays: dict[str, Any] = {
        f"{number}/{part}": np.asarray(array)
        for number, state in enumerate(progress.states.values())
        for part, array in state.items()
    }
    body = io.BytesIO()
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez_compressed(body, **arrays)
    return _MAGIC + hashlib.sha256(body.getbuffer()).digest() + body.getvalue()


def _decode(raw: bytes) -> tuple[dict[str, str], Progress]:
    """Key and progress of a file's bytes.

    Raises:
        ValueError, KeyError, TypeError, EOFError, BadZipFile: they are not as `_encode` makes them.
    """
    digest, body = raw[len(_MAGIC) : len(_MAGIC) + 32], raw[len(_MAGIC) + 32 :]
    if not raw.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
        raise ValueError("it is damaged, or no checkpoint")
    with np.load(io.BytesIO(body), allow_pickle=False) as file:
        header = json.loads(file["header"].tobytes())
        states: list[dict[str, npt.NDArray[np.generic]]] = [{} for _ in header["names"]]
        for name in file.files:
            number, slash, part = name.partition("/")
            if slash:
                states[int(number)][part] = file[name]
    named = dict(zip(header["names"], states, strict=True))
    return dict(header["key"]), Progress(int(header["done"]), str(header["data"]), named)
