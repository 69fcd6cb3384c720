"""What passes may ask the orchestration for: calibration ranges, arrays of inner values, speed ratios.

Each is a plain callable in `Context`, so that a pass stays a pure graph rewrite.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, final

import numpy as np
import onnx_ir as ir

from burnish.checking import model_file
from burnish.costs import Costs, Ratio, load_costs
from burnish.errors import ModelError
from burnish.feeds import Assignment, assignments, make_feeds, sizes_of, typical_sizes
from burnish.kv_cache import InPlace
from burnish.lending import judge
from burnish.manifest import Manifest
from burnish.model import expose, signature, to_bytes
from burnish.passes.base import Arrays, Context, Range
from burnish.passes.runner import Progress
from burnish.target import Target

if TYPE_CHECKING:
    from burnish.calibration import Calibration


@final
class Workbench:
    """Builds the `Context` of a recipe run.

    Args:
        interface: inputs, meanings and ranges of the model.
        target: what the model is for; speeds are compared only where it runs on this machine.
        samples: real inputs, a few; the first is the typical one.
        data: all samples, for calibration, one in memory at a time; default: `samples`.
        typical: sizes of dynamic dims to measure speed at, by name (default: batch 1, others 128).
        calibration: how ranges are found.
        progress: told of calibration batches.
        seed: of random inputs, where there are no samples.
        threads: intra-op threads that the result will run with, and speeds are compared at; None: what this
            machine allows.

    Raises:
        InputError: `typical` names a dim that no input has (DIM_UNKNOWN).
    """

    def __init__(
        self,
        interface: Manifest,
        target: Target,
        *,
        samples: Sequence[Arrays] = (),
        data: Iterable[Arrays] | None = None,
        typical: Mapping[str, int] | None = None,
        calibration: Calibration | None = None,
        progress: Progress | None = None,
        seed: int = 0,
        threads: int | None = None,
    ) -> None:
        self._interface = interface
        self._target = target
        self._samples = samples
        self._data = samples if data is None else data
        self._as_asked = bool(typical)
        self._sizes = typical_sizes(interface.inputs, interface.dims, given=typical)
        self._calibration = calibration
        self._progress = progress
        self._seed = seed
        self._threads = threads
        self._ratios: dict[tuple[bytes, ...], Ratio] = {}

    def context(self, *, measured: bool) -> Context:
        """A context whose callables are there when there is something to run them on."""
        can_measure = self.can_measure
        return Context(
            target=self._target,
            calibrate=self.calibrate if self._samples else None,
            probe=self.probe,
            compare_speed=self.compare_speed if measured and can_measure else None,
            costs=self.costs() if can_measure else None,
        )

    def costs(self) -> Costs:
        """What the cost tables know for the target on machines like this, at the typical sizes.

        Raises:
            CostTableError: one of the tables cannot be used.
        """
        from burnish.calibrating import run_here

        sizes = dict(self._sizes)
        if self._samples and not self._as_asked:
            sizes |= sizes_of(self._interface.inputs, self._samples[0])
        return load_costs(run_here(self._target.name, self._threads).key, sizes)

    @property
    def can_measure(self) -> bool:
        """Speeds measured here say something about the target."""
        return runs_here(self._target)

    def calibrate(self, model: ir.Model, names: Sequence[str]) -> Mapping[str, Range]:
        """The range of each named value over all data."""
        from burnish.calibration import Calibration

        method = self._calibration or Calibration()
        data = self._fitting(model, self._data)
        ranges = method.ranges(model, names, data, self._interface, self._progress)
        return {name: Range(low, high) for name, (low, high) in ranges.items()}

    def probe(self, model: ir.Model, names: Sequence[str]) -> Arrays:
        """The arrays of inner values for one typical input.

        Raises:
            ModelError: the model runs at none of the sizes that were tried.
        """
        return self.probe_at(model, names)[1]

    def probe_at(self, model: ir.Model, names: Sequence[str]) -> tuple[Assignment, Arrays]:
        """The same, and the sizes of the dynamic dims in that input."""
        reference = judge(expose(model, names))
        for feeds in self._fitting(model, self.typical_feeds()):
            try:
                return sizes_of(self._interface.inputs, feeds), reference(feeds, names)
            except ModelError as error:
                failure = error
        raise failure

    def _fitting(self, model: ir.Model, samples: Iterable[Arrays]) -> Iterable[Arrays]:
        """All samples; of a model that updates its cache in place, those that it takes."""
        return _Fitting(samples, self._promise(model), model)

    def _promise(self, model: ir.Model) -> InPlace | None:
        return InPlace.of(model.metadata_props, signature(model, self._interface))

    def compare_speed(self, a: ir.Model, b: ir.Model, feeds: Arrays) -> Ratio:
        """Time of `a` divided by time of `b`, interleaved in one run, onnxruntime's optimiser on."""
        from burnish.runtime.timing import compare_speed

        # Asked once: a pass that is run again (to find a wrong rewrite) must decide as it did before.
        key = tuple(sha256(to_bytes(model)).digest() for model in (a, b))
        if key not in self._ratios:
            with model_file(a) as first, model_file(b) as second:
                self._ratios[key] = compare_speed(
                    first, second, feeds, threads=self._threads, provider=self._target.name
                )
        return self._ratios[key]

    def typical_feeds(self) -> Iterator[Mapping[str, np.ndarray]]:
        """The first sample; without samples random inputs, typical sizes first, then any that run."""
        if self._samples and not self._as_asked:
            yield self._samples[0]
            return
        specs, dims = self._interface.inputs, self._interface.dims
        for sizes in (self._sizes, *assignments(specs, dims)):
            yield make_feeds(specs, sizes, seed=self._seed)


def runs_here(target: Target) -> bool:
    """This machine has what the target needs, so that its speed can be measured."""
    from burnish.runtime.providers import availability

    return target.provider == "CPUExecutionProvider" or availability(target.name).usable


@final
class _Fitting:
    """Samples as a model takes them, made anew whenever they are iterated."""

    def __init__(self, samples: Iterable[Arrays], promise: InPlace | None, model: ir.Model) -> None:
        self._samples, self._promise, self._metadata = samples, promise, model.metadata_props

    def __iter__(self) -> Iterator[Arrays]:
        if self._promise is None:
            return iter(self._samples)
        return self._promise.fitting(self._metadata, self._samples)

    def __length_hint__(self) -> int:
        return operator.length_hint(self._samples, 0)
