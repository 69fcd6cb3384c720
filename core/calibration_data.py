"""The data that a call of `quantize` was given, as samples: a few in memory, all one after the other."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias, final

import numpy as np

from burnish.checking import runnable
from burnish.errors import CalibrationError
from burnish.files import scratch_folder
from burnish.kv_cache import Arrays, InPlace
from burnish.runtime.readers import Feeds
from burnish.runtime.samples import Dataset, check_sample, open_dataset, random_samples
from burnish.runtime.spool import spooled
from burnish.sources import Source

Samples: TypeAlias = Iterable[Mapping[str, np.ndarray]] | str | os.PathLike[str]
"""Feeds by input name (a list, or an iterator); or a path of files of samples; or `random`."""

_RANDOM_SAMPLES: Final = 16
_HELD: Final = 8  # samples on which lossy steps are judged


@final
@dataclasses.dataclass(frozen=True)
class GivenData:
    """Samples, and what has to be said of them."""

    first: Sequence[Arrays] = ()
    """At most 8, held in memory: rewrites are judged on them."""
    every: Iterable[Arrays] = ()
    """All of them, to be iterated as often as needed."""
    notes: tuple[str, ...] = ()


@contextlib.contextmanager
def given_data(data: Samples | None, source: Source, seed: int) -> Iterator[GivenData]:
    """The samples, checked as far as they are held; an iterator is kept on disk until the end of the block.

    Args:
        data: feeds by input name, an iterator of them, a path of files, or `random`; None: there are none.
        source: the model.
        seed: of random samples.

    Raises:
        CalibrationError: there is no sample (CALIB_EMPTY), or one of the first does not fit (CALIB_*).
    """
    if data is None:
        yield GivenData()
    elif isinstance(data, str) and data == "random":
        note = "calibrated on RANDOM inputs: the accuracy on real data is unknown"
        made_up = random_samples(source.manifest, count=_RANDOM_SAMPLES, seed=seed)
        found = runnable(source.model, source.manifest, made_up, seed=seed)
        yield GivenData(found[:_HELD], found, (note,))
    else:
        with _dataset(data, source) as dataset:
            yield _checked(dataset, source)


@contextlib.contextmanager
def _dataset(data: Samples, source: Source) -> Iterator[Dataset]:
    where = Path(data) if isinstance(data, (str, os.PathLike)) else data
    dataset = open_dataset(where, source.manifest.inputs, source.attachments)
    if not isinstance(where, Iterator):
        yield dataset
        return
    with scratch_folder(Path(tempfile.gettempdir(), "samples")) as folder:
        yield spooled(dataset, folder)


def _checked(dataset: Dataset, source: Source) -> GivenData:
    specs, promise = source.manifest.inputs, InPlace.of(source.model.metadata_props, source.manifest)
    if promise is not None:  # caches as long as the past get the room that the model wants
        metadata, names = source.model.metadata_props, {spec.name for spec in specs}

        def fitted(sample: Feeds) -> Feeds:
            return promise.fit(metadata, sample) if names == sample.keys() else sample

        dataset = dataset.mapped(fitted)
    first = list(itertools.islice(dataset, _HELD))
    if not first:
        raise CalibrationError(
            "The calibration data holds no sample.", "Give at least one.", code="CALIB_EMPTY"
        )
    for number, sample in enumerate(first):
        check_sample(number, sample, specs, source.manifest.dims)
    return GivenData(first, dataset)
