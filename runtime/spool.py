"""An iterator of samples on disk, so that it can be read again and never is in memory as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np

from burnish.errors import CalibrationError
from burnish.files import write_scratch
from burnish.runtime.histogram import Array
from burnish.runtime.readers import Feeds
from burnish.runtime.samples import Dataset

_PIECE: Final = 1 << 24  # bytes copied at once

_Layout = list[tuple[str, np.dtype[np.generic], tuple[int, ...]]]


def spooled(samples: Iterable[Feeds], folder: Path) -> Dataset:
    """The same samples, written one after the other into a folder, and read from there.

    Args:
        samples: iterated once, at once.
        folder: an empty one; a file for each sample.

    Raises:
        CalibrationError: an array holds Python objects (CALIB_DTYPE).
        OutputError: there is no room for them (DISK_FULL).
    """
    layouts: list[_Layout] = []
    for sample in samples:
        arrays = {name: _plain(name, array, len(layouts)) for name, array in sample.items()}
        write_scratch(folder / str(len(layouts)), _pieces(arrays), folder)
        layouts.append([(name, array.dtype, array.shape) for name, array in arrays.items()])
    return Dataset(lambda: _read(folder, layouts), len(layouts))


def _plain(name: str, array: Array, number: int) -> Array:
    if array.dtype.hasobject:
        raise CalibrationError(
            f"Input {name!r} of calibration sample {number} holds Python objects, which stay in memory.",
            "Give the samples as a list instead of an iterator.",
            code="CALIB_DTYPE",
        )
    return np.require(array, requirements="C")


def _pieces(arrays: Feeds) -> Iterator[bytes]:
    for array in arrays.values():
        flat = array.reshape(-1).view(np.uint8)
        for start in range(0, flat.size, _PIECE):
            yield flat[start : start + _PIECE].tobytes()


def _read(folder: Path, layouts: list[_Layout]) -> Iterator[Feeds]:
    for number, layout in enumerate(layouts):
        feeds: Feeds = {}
        with (folder / str(number)).open("rb") as file:
            for name, dtype, shape in layout:
                size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
                feeds[name] = np.frombuffer(file.read(size), dtype).reshape(shape)
        yield feeds
