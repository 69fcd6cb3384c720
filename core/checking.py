"""The judge of every rewrite: run the model before and after on fresh random inputs, optimiser off.

Part of the orchestration (`burnish.api`): it knows both onnx-ir models and onnxruntime.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, final

import numpy as np
import onnx_ir as ir

from burnish.difference import Difference, worst
from burnish.errors import ModelError, OutputError
from burnish.fallback_sizes import fallback_sizes
from burnish.feeds import assignments, dynamic_dims, make_feeds
from burnish.files import write_scratch
from burnish.kv_cache import Case, InPlace
from burnish.lending import judge
from burnish.manifest import Manifest
from burnish.model import Split, expose, signature, to_bytes
from burnish.passes.base import Numerics
from burnish.passes.runner import Verdict
from burnish.region_check import compare_regions
from burnish.rounding_noise import MOST, furthest, limits
from burnish.runtime.options import CudaOptions, Options
from burnish.runtime.reference import ModelSource, Reference
from burnish.runtime.session import Session, executed_ops
from burnish.waypoints import Results, Waypoints, fitting, results, waypoints
from burnish.weights import weight_bytes

Arrays = Mapping[str, np.ndarray]

_HEAVY: Final = frozenset(
    {
        "Attention", "Conv", "ConvInteger", "DynamicQuantizeMatMul", "FusedConv", "FusedGemm",
        "FusedMatMul", "Gemm", "GroupQueryAttention", "LSTM", "MatMul", "MatMulInteger",
        "MatMulIntegerToFloat", "MatMulNBits", "MultiHeadAttention", "QAttention", "QGemm", "QLinearConv",
        "QLinearMatMul",
    }
)  # fmt: skip
"""Ops in which the time of a model goes, in float and in int8."""

EXACT: Final[Mapping[str, Options]] = {"cuda": Options(cuda=CudaOptions(tf32=False))}
"""Providers beside the CPU's whose results can be judged, and how they compute in float32 then."""

_PROMISE: Final = (
    "the cache is updated in place: not compared were what is computed for padding, and several new tokens "
    "for each of several rows that have a past"
)
_ENOUGH: Final = (
    4  # assignments of the dynamic dims that a check is meant to cover; topped up at fallback sizes
)
_DATA: Final = "model.onnx.data"
_ONE_PROTO: Final = 128_000_000
"""Bytes of weights above which a model goes through a file: in memory it would be there four times."""


@final
class DifferentialChecker:
    """Compares two models on several assignments of the dynamic dims; implements `Checker`.

    Args:
        interface: inputs, meanings and ranges of the models to compare.
        samples: real inputs, on which lossy and coarse steps are judged (random ones otherwise). Those run
            on the random ones too, where shapes and the places of NaN must fit.
        seed: of the random inputs; the same seed gives the same inputs.
        by_region: compare a model with what a pass made of it only where it was changed, if that can be.
        cases: compare on these alone, instead of on random inputs.
    """

    def __init__(
        self,
        interface: Manifest,
        *,
        samples: Sequence[Arrays] = (),
        seed: int = 0,
        by_region: bool = False,
        cases: Sequence[Case] | None = None,
    ) -> None:
        specs = interface.inputs
        self._interface, self._seed, self._given = interface, seed, cases is not None
        self._random: list[Case] = (
            [
                (sizes, make_feeds(specs, sizes, seed=seed + number))
                for number, sizes in enumerate(assignments(specs, interface.dims))
            ]
            if cases is None
            else list(cases)
        )
        self._real: list[Case] = [
            ({f"sample {number}": 1}, feeds) for number, feeds in enumerate(samples[:8])
        ]
        self._dynamic = bool(dynamic_dims(specs))
        self._dropped: list[str] = []
        self._runs_at_all = False
        self._in_place = False
        self._by_region = by_region
        self._waypoints: Waypoints | None = None
        self._cached: tuple[Results, bool, InPlace | None] | None = None
        self._source: Results | None = None

    def __call__(self, before: ir.Model, after: ir.Model, numerics: Numerics) -> Verdict:
        """The largest difference over all assignments; a model that does not load is infinitely far.

        Raises:
            ModelError: `before` does not load, or runs on none of the random inputs.
        """
        if self._by_region and not numerics.by_norm:
            verdict = self._at_changes(before, after, numerics.tolerance)
            if verdict is not None:
                return verdict
        return self._compare(before, after, numerics)

    def deployed(
        self, original: ir.Model, result: ir.Model, numerics: Numerics, provider: str = "cpu"
    ) -> Verdict:
        """Compare the end with the start, onnxruntime's own optimiser on: as the model is deployed.

        Args:
            original: runs on the CPU, optimiser off.
            result: runs on the provider, optimiser on.
            numerics: what is allowed.
            provider: `cpu`, or one in `EXACT`.

        Raises:
            ProviderError: that provider is not there, or leaves nodes to the CPU.
        """
        return self._compare(original, result, numerics, deployed=provider)

    def cases(self, before: ir.Model, after: ir.Model, numerics: Numerics) -> list[Case]:
        """What the two are compared on, as `before` takes it; those that are judged by come first."""
        promise = self._promise(before, after)
        cases, _ = self._cases(numerics.by_norm and bool(self._real), promise)
        if promise is None:
            return cases
        own = self._promise(before, before) or promise
        return [(sizes, own.fit(before.metadata_props, feeds)) for sizes, feeds in cases]

    def fitted(self, model: ir.Model, feeds: Arrays) -> Arrays:
        """The same feeds as that model takes them: one that updates a cache in place wants room in it."""
        promise = self._promise(model, model)
        return feeds if promise is None else promise.fit(model.metadata_props, feeds)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was not compared, and why: where the source itself does not run, and what nobody promises."""
        few = self._dynamic and len(self._random) < _ENOUGH and not self._given
        short = [f"compared at {len(self._random)} assignments of the dynamic dims, {_ENOUGH} are meant"]
        return (*self._dropped, *(short if few else ()), *([_PROMISE] if self._in_place else ()))

    def _at_changes(self, before: ir.Model, after: ir.Model, tolerance: float) -> Verdict | None:
        if before.metadata_props != after.metadata_props:  # a cache that is updated in place from here on
            return None
        if not self._runs_at_all:
            self._drop_impossible(before)
        cases = self.cases(before, after, Numerics.EXACT)
        known = self._waypoints if self._waypoints is not None and self._waypoints.cases is cases else None
        return compare_regions(before, after, cases, tolerance, known)

    def _compare(
        self, before: ir.Model, after: ir.Model, numerics: Numerics, *, deployed: str = ""
    ) -> Verdict:
        real = numerics.by_norm and bool(self._real)
        promise = self._promise(before, after)
        reference, cases, judges = self._reference(before, real, promise)
        sizes = tuple(assignment for assignment, _ in cases)
        try:
            actual = _outputs(after, cases, promise, deployed)
        except ModelError as error:
            nowhere = Difference("", np.inf, np.inf, np.inf)
            return Verdict(nowhere, sizes, None, f"the rewritten model fails: {error.what}")
        if not deployed:
            self._cached = (Results(after, actual), real, promise)
        lossy = numerics.by_norm
        found = [worst(a, b, lossy=lossy) for a, b in zip(reference, actual, strict=True)]
        index = max(_judging(found, judges), key=lambda i: found[i].judged(lossy=lossy))
        verdict = Verdict(found[index], sizes, cases[index][0])
        if numerics is not Numerics.ROUNDING or verdict.keeps(numerics) or not found[index].within(MOST):
            return verdict
        run = functools.partial(_run, model=before, promise=promise)
        allowed: Sequence[Mapping[str, float]] = [{} for _ in cases]
        with contextlib.suppress(ModelError):  # what does not run with moved weights allows nothing
            allowed = limits(before, cases, reference, run)
        index, apart, limit = furthest(reference, actual, allowed, numerics.tolerance)
        return Verdict(apart, sizes, cases[index][0], limit=limit)

    def _promise(self, before: ir.Model, after: ir.Model) -> InPlace | None:
        """In what the two must be equal, where one of them updates a cache in place; None: in all."""
        found = (
            InPlace.of(model.metadata_props, signature(model, self._interface)) for model in (after, before)
        )
        return next(filter(None, found), None)

    def _cases(self, real: bool, promise: InPlace | None) -> tuple[list[Case], int]:
        """What is compared; and how many cases, from the first on, are judged by."""
        if promise is None:
            cases = [*self._real, *self._random] if real else self._random
            return cases, len(self._real) if real else len(cases)
        first = promise.cases(self._real, self._make) if real else []
        self._in_place = True
        cases = [*first, *promise.cases(self._random, self._make)]
        more = promise.beyond(cases)
        cases += promise.cases([(more, self._make(more))], self._make) if more else []
        return cases, len(first) or len(cases)

    def _make(self, sizes: Mapping[str, int]) -> Arrays:
        return make_feeds(self._interface.inputs, sizes, seed=self._seed)

    def _reference(
        self, model: ir.Model, real: bool, promise: InPlace | None
    ) -> tuple[list[Arrays], list[Case], int]:
        if not self._runs_at_all:
            self._drop_impossible(model)
        cases, judges = self._cases(real, promise)
        for known, *key in filter(None, (self._cached, self._source and (self._source, False, None))):
            if key == [real, promise] and (outputs := known.of(model)) is not None:
                return outputs, cases, judges
        return _outputs(model, cases, promise), cases, judges

    def _drop_impossible(self, model: ir.Model) -> None:
        """Keep the assignments at which the source itself runs (sizes may be tied in unstated ways)."""
        promise = self._promise(model, model)
        if promise is not None:
            self._random = promise.cases(self._random, self._make)
        reference = _judge_on_the_way(model) if self._by_region and promise is None else judge(model)
        possible: list[Case] = []
        found: list[Arrays] = []
        failure = ModelError(
            "The model takes none of the inputs: many tokens for many rows that have a past.",
            "Give one token for each row, or one row.",
            code="MODEL_RUN",
        )
        for case in self._random:
            try:
                found.append(fitting(reference(case[1]), _ENOUGH))
            except ModelError as error:
                failure = error
                sizes = ", ".join(f"{name}={size}" for name, size in case[0].items())
                self._dropped.append(f"not compared at {sizes}, where the source fails: {_short(error.what)}")
            else:
                possible.append(case)
        if len(possible) < _ENOUGH and not self._given:
            more = _elsewhere(reference, self._interface, seed=self._seed)
            for case, values in itertools.islice(more, _ENOUGH - len(possible)):
                possible.append(case)
                found.append(fitting(values, _ENOUGH))
        if not possible:
            raise failure
        self._random, self._runs_at_all = possible, True
        self._source = None if promise is not None else results(model, found)
        if self._by_region and promise is None:
            self._waypoints = Waypoints(possible, model, found)


def _judge_on_the_way(model: ir.Model) -> Reference:
    """The model, with values on its way as further outputs, where that can be loaded."""
    if names := waypoints(model):
        with contextlib.suppress(ModelError):
            return judge(expose(model, names))
    return judge(model)


def runnable(
    model: ir.Model, interface: Manifest, samples: Sequence[Arrays], *, seed: int
) -> Sequence[Arrays]:
    """The random samples on which the model runs; where there are none, some at fallback sizes.

    Raises:
        ModelError: the model does not load, or runs nowhere.
    """
    reference, found = judge(model), []
    for feeds in samples:
        try:
            reference(feeds)
        except ModelError as error:
            failure = error
        else:
            found.append(feeds)
    found = found or [feeds for (_, feeds), _ in _elsewhere(reference, interface, seed=seed)]
    if not found:
        raise failure
    return found


def _elsewhere(reference: Reference, interface: Manifest, *, seed: int) -> Iterator[tuple[Case, Arrays]]:
    """Cases at fallback sizes of the dynamic dims, at which the source runs, and what it gives."""
    for number, sizes in enumerate(fallback_sizes(interface.inputs, interface.dims)):
        feeds = make_feeds(interface.inputs, sizes, seed=seed + 100 + number)
        with contextlib.suppress(ModelError):
            yield (sizes, feeds), reference(feeds)


def _judging(found: Sequence[Difference], judges: int) -> list[int]:
    """The cases whose difference counts: random ones beside real ones only where nothing fits."""
    return [i for i, apart in enumerate(found) if i < judges or math.isinf(apart.max_rel)]


def _outputs(
    model: ir.Model, cases: Sequence[Case], promise: InPlace | None, deployed: str = ""
) -> list[Arrays]:
    """What a model computes, as far as it promises anything; `deployed`: on that provider, as deployed."""
    if not deployed:
        return _run(judge(model), cases, model, promise)
    with model_file(model) as source:
        if deployed == "cpu":
            return _run(Reference(source, optimize=True), cases, model, promise)
        with Session(source, deployed, options=EXACT[deployed]) as session:
            return _run(session, cases, model, promise)


def _run(
    reference: Callable[[Arrays], Arrays], cases: Sequence[Case], model: ir.Model, promise: InPlace | None
) -> list[Arrays]:
    if promise is None:
        return [reference(feeds) for _, feeds in cases]
    fit = functools.partial(promise.fit, model.metadata_props)
    return [promise.promised(feeds, reference(fit(feeds))) for _, feeds in cases]


class model_file:  # noqa: N801 - a context manager, named as one
    """A model as onnxruntime takes it: bytes, or a temporary file where the weights are large.

    Raises:
        OutputError: there is no room for that file (DISK_FULL).
    """

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> ModelSource:
        if weight_bytes(self._model) < _ONE_PROTO:
            return to_bytes(self._model)
        self._folder = tempfile.TemporaryDirectory(prefix="burnish-")
        path = Path(self._folder.name) / "model.onnx"
        try:
            split = Split(self._model)
            write_scratch(path.with_name(_DATA), split.content(), path)
            write_scratch(path, [split.to_bytes(_DATA)], path)
        except OutputError as error:
            self._folder.cleanup()
            raise OutputError(
                f"No room for a temporary copy of the model in '{path.parent.parent}': {error.what}",
                "Free disk space there, or point TMPDIR to a place with room for its weights.",
                code="DISK_FULL",
            ) from error
        return path

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()


def executed(model: ir.Model) -> str:
    """What onnxruntime's CPU provider really runs, read from the graph that it executes."""
    with model_file(model) as source:
        ops = executed_ops(source)
    heavy = {op: count for op, count in ops.items() if op.rpartition("::")[2] in _HEAVY}
    return f"onnxruntime executes {sum(ops.values())} nodes, of them " + (
        ", ".join(f"{count} {op}" for op, count in heavy.items()) or "none of the heavy ops"
    )


def _short(what: str) -> str:
    """The part of onnxruntime's message that says what is wrong, without the place in its source code."""
    return what.rpartition("Status Message: ")[2][:160]
