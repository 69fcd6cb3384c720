"""Samples for calibration: `.npz` and `.npy` files, folders of them, iterables of dicts, random."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from burnish.errors import CalibrationError
from burnish.feeds import assignments, dtype_of, make_feeds
from burnish.manifest import DimRange, Manifest, TensorSpec

Feeds = dict[str, npt.NDArray[np.generic]]
"""One array for each input of the model, by name."""

_LENGTHS: Final = (16, 32, 64, 128)  # of dynamic dims other than the batch, in random samples


def read_samples(
    source: str | Path | Iterable[Mapping[str, npt.NDArray[np.generic]]],
    specs: Sequence[TensorSpec],
) -> Iterator[Feeds]:
    """Samples one after the other; nothing is read before it is asked for.

    Args:
        source: a `.npz` file (one sample: an array for each input), a `.npy` file (a sample of a model
            with one input), a folder of such files (in the order of their names), or an iterable of dicts.
        specs: the model's inputs.

    Raises:
        CalibrationError: a file is missing (CALIB_MISSING), is no array file (CALIB_FORMAT), or a folder
            holds none (CALIB_EMPTY).
    """
    if isinstance(source, str | Path):
        for path in _files(Path(source)):
            yield _read(path, specs)
        return
    for number, sample in enumerate(source):
        if not isinstance(sample, Mapping):
            raise CalibrationError(
                f"Calibration sample {number} is a {type(sample).__name__}, not a dict of arrays.",
                "Give a list of dicts, one for each sample: [{'x': array}].",
                code="CALIB_FORMAT",
            )
        yield {name: np.asarray(array) for name, array in sample.items()}


def random_samples(manifest: Manifest, *, count: int = 16, seed: int = 0) -> list[Feeds]:
    """Made-up samples at several sizes of the dynamic dims, in turn.

    They say little about real ranges; whoever uses them must say so.
    """
    sizes = assignments(manifest.inputs, manifest.dims, sizes=_LENGTHS)
    return [
        make_feeds(manifest.inputs, sizes[number % len(sizes)], seed=seed + number) for number in range(count)
    ]


def check_sample(
    number: int,
    sample: Mapping[str, npt.NDArray[np.generic]],
    specs: Sequence[TensorSpec],
    dims: Mapping[str, DimRange] | None = None,
) -> None:
    """Check one sample against the model's inputs; without specs, only that its floats are finite.

    Args:
        number: of the sample, from 0.
        sample: an array for each input.
        specs: the model's inputs.
        dims: the ranges of dynamic dims, by name: an array may be empty where one that may be 0 is (the
            cache of a decoder, before the first token).

    Raises:
        CalibrationError: CALIB_MISSING, CALIB_UNKNOWN, CALIB_DTYPE, CALIB_SHAPE, CALIB_EMPTY or
            CALIB_NONFINITE, naming the sample's number (from 0) and the input.
    """
    known = {spec.name for spec in specs}
    if unknown := sorted(sample.keys() - known) if specs else []:
        raise _error(number, unknown[0], "is not an input of the model", "CALIB_UNKNOWN")
    sizes: dict[str, int] = {}
    for spec in specs:
        if spec.name not in sample:
            raise _error(number, spec.name, "is missing", "CALIB_MISSING")
        _check_array(number, spec, np.asarray(sample[spec.name]), sizes, dims or {})
    for name, array in sample.items():
        if np.asarray(array).dtype.kind in "fc" and not np.isfinite(array).all():
            raise _error(number, name, "holds NaN or infinity", "CALIB_NONFINITE")


def _check_array(
    number: int,
    spec: TensorSpec,
    array: npt.NDArray[np.generic],
    sizes: dict[str, int],
    dims: Mapping[str, DimRange],
) -> None:
    wanted = dtype_of(spec.dtype)
    if array.dtype != wanted:
        why = f"has dtype {array.dtype}, the model wants {wanted}"
        raise _error(number, spec.name, why, "CALIB_DTYPE")
    if not array.size and not _may_be_empty(array.shape, spec, dims):
        raise _error(number, spec.name, f"is empty, shape {list(array.shape)}", "CALIB_EMPTY")
    if spec.shape is not None and not _fits(array.shape, spec, sizes):
        shown = ", ".join("?" if dim is None else str(dim) for dim in spec.shape)
        why = f"has shape {list(array.shape)}, the model wants [{shown}]"
        also = [f"{dim} = {sizes[dim]}" for dim in spec.shape if isinstance(dim, str) and dim in sizes]
        why += f" with {', '.join(also)}" if also and len(array.shape) == len(spec.shape) else ""
        raise _error(number, spec.name, why, "CALIB_SHAPE")


def _may_be_empty(shape: tuple[int, ...], spec: TensorSpec, dims: Mapping[str, DimRange]) -> bool:
    """True when every axis of size 0 is a dim that may be 0; of another rank it says nothing."""
    if len(shape) != len(spec.shape or ()):
        return False
    empty = [dim for dim, size in zip(spec.shape or (), shape, strict=True) if size == 0]
    return all(isinstance(dim, str) and dim in dims and dims[dim].min == 0 for dim in empty)


def _fits(shape: tuple[int, ...], spec: TensorSpec, sizes: dict[str, int]) -> bool:
    """True when rank, fixed dims and named dims (equal over all inputs of a sample) fit."""
    dims = spec.shape or ()
    if len(shape) != len(dims):
        return False
    for dim, size in zip(dims, shape, strict=True):
        wanted = sizes.setdefault(dim, size) if isinstance(dim, str) else dim
        if wanted is not None and wanted != size:
            return False
    return True


def _error(number: int, name: str, why: str, code: str) -> CalibrationError:
    return CalibrationError(
        f"Input {name!r} of calibration sample {number} {why}.",
        "Give each sample one array for each input, with the model's dtype and shape.",
        code=code,
    )


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix in (".npz", ".npy"))
        if not found:
            raise CalibrationError(
                f"Folder {path} holds no .npz or .npy file.",
                "Save each sample with numpy.savez, one array for each input.",
                code="CALIB_EMPTY",
            )
        return found
    if not path.is_file():
        raise CalibrationError(
            f"There are no calibration samples at {path}.",
            "Give a .npz file or a folder of them.",
            code="CALIB_MISSING",
        )
    return [path]


def _read(path: Path, specs: Sequence[TensorSpec]) -> Feeds:
    try:
        with path.open("rb") as stream:  # np.load leaves a broken archive open
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {_only_input(path, specs): loaded}
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CalibrationError(
            f"{path} cannot be read as numpy arrays: {error}.",
            "Save it with numpy.savez, without object arrays.",
            code="CALIB_FORMAT",
        ) from error


def _only_input(path: Path, specs: Sequence[TensorSpec]) -> str:
    if len(specs) == 1:
        return specs[0].name
    raise CalibrationError(
        f"{path} holds one array without a name; the model has {len(specs)} inputs.",
        "Save a .npz file with an array for each input.",
        code="CALIB_MISSING",
    )
