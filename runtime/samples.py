"""Samples for calibration: files that a reader knows, folders of them, iterables of dicts, random."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias, final

import numpy as np
import numpy.typing as npt

from burnish.errors import CalibrationError, shown
from burnish.feeds import assignments, dtype_of, make_feeds
from burnish.manifest import DimRange, Manifest, TensorSpec
from burnish.runtime.readers import Attachments, Feeds, reader_for, sample_files

Source: TypeAlias = "str | Path | Iterable[Mapping[str, npt.NDArray[np.generic]]]"

_LENGTHS: Final = (16, 32, 64, 128)  # of dynamic dims other than the batch, in random samples


@final
class Sample(dict[str, npt.NDArray[np.generic]]):
    """Feeds that know the file they come from."""

    def __init__(self, feeds: Mapping[str, npt.NDArray[np.generic]], origin: str) -> None:
        super().__init__(feeds)
        self.origin = origin


def sample_label(number: int, sample: Mapping[str, npt.NDArray[np.generic]]) -> str:
    """How messages call a sample: its number (from 0), and the file it comes from."""
    origin = f" ({shown(sample.origin)})" if isinstance(sample, Sample) else ""
    return f"calibration sample {number}{origin}"


@final
class Dataset:
    """Samples that can be iterated again and again, one in memory at a time.

    Args:
        again: starts anew.
        hint: how many there are, as far as that is known.
    """

    def __init__(self, again: Callable[[], Iterator[Feeds]], hint: int = 0) -> None:
        self._again, self._hint = again, hint

    def __iter__(self) -> Iterator[Feeds]:
        return self._again()

    def __length_hint__(self) -> int:
        return self._hint

    def mapped(self, change: Callable[[Feeds], Feeds | None]) -> Dataset:
        """The samples that `change` makes of these; it may leave some out."""
        return Dataset(lambda: _changed(self, change), self._hint)


def _changed(samples: Iterable[Feeds], change: Callable[[Feeds], Feeds | None]) -> Iterator[Feeds]:
    for sample in samples:
        made = change(sample)
        if made is not None:
            yield Sample(made, sample.origin) if isinstance(sample, Sample) else made


def open_dataset(
    source: Source, specs: Sequence[TensorSpec], attachments: Attachments | None = None
) -> Dataset:
    """The samples of a source that can be read more than once: files, a folder, a list.

    Args:
        source: as for `read_samples`, but not an iterator (see `burnish.runtime.spool`).
        specs: the model's inputs.
        attachments: files of the artifact, by name: the tokenizer or preprocessor of its inputs.

    Raises:
        CalibrationError: the path cannot be used; as for `read_samples`.
    """
    if isinstance(source, str | Path):
        hint = len(sample_files(Path(source)))
    else:
        hint = operator.length_hint(source, 0)
    return Dataset(lambda: read_samples(source, specs, attachments), hint)


def read_samples(
    source: Source, specs: Sequence[TensorSpec], attachments: Attachments | None = None
) -> Iterator[Feeds]:
    """Samples one after the other; nothing is read before it is asked for.

    Args:
        source: a `.npz` file (one sample: an array for each input), a `.npy` file (a sample of a model
            with one input), an image, a recording, a text (a sample a line), a folder of such files (of
            one kind; in the order of their names), or an iterable of dicts.
        specs: the model's inputs.
        attachments: files of the artifact, by name: the tokenizer or preprocessor of its inputs.

    Raises:
        CalibrationError: a file is missing (CALIB_MISSING), cannot be read as what its name says
            (CALIB_FORMAT), or a folder holds none (CALIB_EMPTY); the model takes no such thing, or the
            artifact lacks the file that says how (CALIB_PROCESSOR).
        MissingDependencyError: the package that reads such files is not installed.
    """
    if isinstance(source, str | Path):
        yield from _of_files(sample_files(Path(source)), specs, attachments or {})
        return
    for number, sample in enumerate(source):
        if not isinstance(sample, Mapping):
            raise CalibrationError(
                f"Calibration sample {number} is a {type(sample).__name__}, not a dict of arrays.",
                "Give a list of dicts, one for each sample: [{'x': array}].",
                code="CALIB_FORMAT",
            )
        yield {name: np.asarray(array) for name, array in sample.items()}


def _of_files(
    paths: Sequence[Path], specs: Sequence[TensorSpec], attachments: Attachments
) -> Iterator[Feeds]:
    reader = reader_for(paths[0], specs, attachments)
    for path in paths:
        for sample in reader.read(path):
            yield Sample(sample, str(path))


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
    where = sample_label(number, sample)
    if unknown := sorted(sample.keys() - known) if specs else []:
        raise _error(where, unknown[0], "is not an input of the model", "CALIB_UNKNOWN")
    sizes: dict[str, int] = {}
    for spec in specs:
        if spec.name not in sample:
            raise _error(where, spec.name, "is missing", "CALIB_MISSING")
        _check_array(where, spec, np.asarray(sample[spec.name]), sizes, dims or {})
    for name, array in sample.items():
        if np.asarray(array).dtype.kind in "fc" and not np.isfinite(array).all():
            raise _error(where, name, "holds NaN or infinity", "CALIB_NONFINITE")


def _check_array(
    where: str,
    spec: TensorSpec,
    array: npt.NDArray[np.generic],
    sizes: dict[str, int],
    dims: Mapping[str, DimRange],
) -> None:
    wanted = dtype_of(spec.dtype)
    if array.dtype != wanted:
        why = f"has dtype {array.dtype}, the model wants {wanted}"
        raise _error(where, spec.name, why, "CALIB_DTYPE")
    if not array.size and not _may_be_empty(array.shape, spec, dims):
        raise _error(where, spec.name, f"is empty, shape {list(array.shape)}", "CALIB_EMPTY")
    if spec.shape is not None and not _fits(array.shape, spec, sizes):
        shown = ", ".join("?" if dim is None else str(dim) for dim in spec.shape)
        why = f"has shape {list(array.shape)}, the model wants [{shown}]"
        also = [f"{dim} = {sizes[dim]}" for dim in spec.shape if isinstance(dim, str) and dim in sizes]
        why += f" with {', '.join(also)}" if also and len(array.shape) == len(spec.shape) else ""
        raise _error(where, spec.name, why, "CALIB_SHAPE")


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


def _error(where: str, name: str, why: str, code: str) -> CalibrationError:
    return CalibrationError(
        f"Input {name!r} of {where} {why}.",
        "Give each sample one array for each input, with the model's dtype and shape.",
        code=code,
    )
