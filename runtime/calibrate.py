"""Ranges of a model's values over calibration data, in one pass and in bounded memory.

Held at any time: one sample, some of its wanted values, and what a method keeps of each value, which has a
fixed size. The model is run as it is written (onnxruntime's optimiser off), so that a value is the same to
the last bit whatever else is computed in that run: neither the memory budget nor an interruption changes a
range. Histograms lie on a grid that does not depend on the data, so the order of the samples does not matter
either, except to the moving average.
"""

from __future__ import annotations

import hashlib
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, final

import numpy as np
import numpy.typing as npt

from burnish.errors import CalibrationError
from burnish.manifest import DimRange, TensorSpec
from burnish.runtime import machine, memory
from burnish.runtime.calibrators import PERCENT, Calibrator, need_method, new_calibrator
from burnish.runtime.checkpoints import Checkpoint, Progress
from burnish.runtime.groups import Feeds, Group, Groups, Sizes
from burnish.runtime.histogram import Bounds, Gains
from burnish.runtime.reference import ModelSource, Reference
from burnish.runtime.samples import check_sample, sample_label

Open = Callable[[Sequence[str]], Reference]
"""Opens the model with (at least) those outputs, as `Reference(..., frugal=True)`."""

_KEPT: Final = 8  # sessions that stay open; each holds a graph


def calibrate(
    model: ModelSource | Open,
    samples: Iterable[Feeds],
    names: Sequence[str],
    *,
    method: str = "minmax",
    percent: float = PERCENT,
    gains: Mapping[str, Gains] | None = None,
    specs: Sequence[TensorSpec] = (),
    dims: Mapping[str, DimRange] | None = None,
    sizes: Sizes | None = None,
    memory_budget: int | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    threads: int = 1,
) -> dict[str, Bounds]:
    """The range of each named float output of the model over the samples.

    Args:
        model: bytes or path of a model whose outputs include `names` (`burnish.model.expose` adds them); or
            what opens it with the outputs of a group, so that not all are computed in one run.
        samples: feeds; iterated once, one held at a time (`operator.length_hint` says how many there are).
        names: outputs to range.
        method: one of `burnish.runtime.calibrators.METHODS`.
        percent: for `percentile`, the share of values that the range holds.
        gains: for `layerwise-percentile`, what the channels of a value are worth.
        specs: the model's inputs, to check every sample against; empty: not checked beforehand.
        dims: the ranges of its dynamic dims: an input may be empty where one that may be 0 is.
        sizes: measures the bytes of the named values; needed to compute them in groups.
        memory_budget: bytes that this process may have in memory meanwhile; None: with `sizes`, values are
            computed in as many groups as fit into what is free.
        checkpoint: where to go on, and what to go on from later; removed at the end. Samples that are an
            iterator cannot be started again where the checkpoint turns out to be of other data.
        progress: told ("calibrate", samples done, samples in all or 0 where unknown) after each sample.
        threads: intra-op threads, where `model` is bytes or a path.

    Raises:
        CalibrationError: there is no such method (CALIB_METHOD); a sample does not fit (see `check_sample`);
            a value of the model is not finite (CALIB_NONFINITE); there is no sample (CALIB_EMPTY); or the
            budget cannot be kept (CALIB_MEMORY). The message names the sample and the input or value.
        ModelError: the model does not load or run.
    """
    need_method(method, percent)
    machine.reset_peak()
    run = _Run(
        _opened_once(model, threads) if isinstance(model, bytes) or not callable(model) else model,
        {name: new_calibrator(method, percent=percent, gains=(gains or {}).get(name)) for name in names},
        Groups(names, sizes, memory_budget),
    )
    total = operator.length_hint(samples, 0)
    for feeds in run.unseen(samples, checkpoint):
        check_sample(run.done, feeds, specs, dims)
        run.observe(feeds)
        if checkpoint is not None:
            checkpoint.save(run.progress)
        if progress is not None:
            progress("calibrate", run.done, total)
    return run.ended(checkpoint)


def _opened_once(model: ModelSource, threads: int) -> Open:
    reference = Reference(model, threads=threads, frugal=True)
    return lambda names: reference


@final
class _Run:
    """What was observed so far, and the sessions that compute more."""

    def __init__(self, model: Open, found: dict[str, Calibrator], groups: Groups) -> None:
        self.found, self.done = found, 0
        self._open, self._groups = model, groups
        self._sessions: dict[Group, Reference] = {}
        self._data = hashlib.sha256()
        self._fresh = {name: each.state() for name, each in found.items()}

    def progress(self) -> Progress:
        """As a checkpoint keeps it."""
        states = {name: each.state() for name, each in self.found.items()}
        return Progress(self.done, self._data.hexdigest(), states)

    def unseen(self, samples: Iterable[Feeds], checkpoint: Checkpoint | None) -> Iterator[Feeds]:
        """The samples that the checkpoint has not seen; those that it has are read, to compare their hash."""
        known = checkpoint.load() if checkpoint is not None else None
        rest = iter(samples)
        if known is not None and checkpoint is not None and known.states.keys() == self.found.keys():
            for feeds in itertools.islice(rest, known.done):
                self._count(feeds)
            why = "it has seen other data" if self._data.hexdigest() != known.data else self._restored(known)
            if why:
                checkpoint.ignore(why)
                self._forget()
                rest = iter(samples)
        return rest

    def _restored(self, known: Progress) -> str:
        """Go on from what was known; says what is wrong with it."""
        try:
            for name, state in known.states.items():
                self.found[name].restore(state)
        except (KeyError, ValueError, TypeError) as error:
            return f"its content is not that of a calibrator ({error})"
        return ""

    def _forget(self) -> None:
        self.done, self._data = 0, hashlib.sha256()
        for name, state in self._fresh.items():
            self.found[name].restore(state)

    def observe(self, feeds: Feeds) -> None:
        """Run the model on a sample, group by group, and look at its values."""
        groups = self._groups.of(feeds, self.done)
        for stale in self._sessions.keys() - set(groups):
            del self._sessions[stale]
        where = sample_label(self.done, feeds)
        for group in groups:
            for name, array in self._session(group).each(feeds, group):
                _observe(self.found[name], array, f"Value {name!r} on {where}")
                del array
            memory.give_back()
        self._groups.check(self.done)
        self._count(feeds)

    def ended(self, checkpoint: Checkpoint | None) -> dict[str, Bounds]:
        """The range of every value; the checkpoint has had its use."""
        if not self.done:
            raise CalibrationError(
                "There is no calibration sample.", "Give at least one.", code="CALIB_EMPTY"
            )
        found = {name: _bounds(name, seen) for name, seen in self.found.items()}
        if checkpoint is not None:
            checkpoint.remove()
        return found

    def _session(self, group: Group) -> Reference:
        if group not in self._sessions:
            if len(self._sessions) >= _KEPT:
                self._sessions.popitem()  # the newest: the groups of a sample come in turn, so the first stay
            self._sessions[group] = self._open(group)
        return self._sessions[group]

    def _count(self, feeds: Feeds) -> None:
        self.done += 1
        for name in sorted(feeds):
            array = np.ascontiguousarray(feeds[name])
            self._data.update(f"{name} {array.dtype} {array.shape};".encode())
            if array.dtype.kind in "OSU":
                self._data.update(repr(array.tolist()).encode())
            else:
                self._data.update(array.reshape(-1).view(np.uint8).data)


def _observe(seen: Calibrator, array: npt.NDArray[np.generic], where: str) -> None:
    if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise CalibrationError(
            f"{where} is not finite.",
            "Leave that sample out, or look at the model: it computes NaN or infinity.",
            code="CALIB_NONFINITE",
        )
    seen.observe(array)


def _bounds(name: str, seen: Calibrator) -> Bounds:
    found = seen.bounds()
    if found is None:
        raise CalibrationError(
            f"Value {name!r} was empty on every calibration sample.",
            "Give samples that are not empty.",
            code="CALIB_EMPTY",
        )
    return found
