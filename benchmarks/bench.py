"""Models and providers side by side: one run, in turns, at the same sizes; memory in fresh processes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, final

import msgspec

from burnish.artifact import Artifact
from burnish.benchmarks.measure import (
    Measurement,
    SpeedRatio,
    machine,
    measurement,
    peak_memory,
    speed_ratio,
    versions,
)
from burnish.errors import InputError, ModelError, nearest
from burnish.feeds import dynamic_dims, is_batch, make_feeds, typical_sizes
from burnish.manifest import Manifest
from burnish.model_file import check_model_file
from burnish.runtime.options import IN_TURNS
from burnish.runtime.session import Session
from burnish.runtime.timing import interleave
from burnish.sources import open_artifact

Progress = Callable[[str, int, int], None]
"""(what is being done, steps done, steps in all)."""

_WARMUP: Final = 3


class Case(msgspec.Struct, frozen=True):
    """One model on one provider at one batch size."""

    name: str
    model: str
    provider: str
    why: str
    """Why it runs on that provider."""
    batch: int
    """The batch size asked for."""
    sizes: dict[str, int]
    """Of all dynamic dims."""
    file_bytes: int
    """The model with its external data."""
    times: Measurement
    speedup: SpeedRatio
    """Against the first case at this batch size."""
    items_per_second: float
    """Batch by median time."""
    peak_bytes: int | None = None
    """Memory that loading and running adds to a process; None: not measured."""


class BenchReport(msgspec.Struct, frozen=True):
    """What `burnish bench` measured."""

    cases: tuple[Case, ...]
    machine: dict[str, Any]
    versions: dict[str, str]
    threads: int


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How to measure."""

    providers: tuple[str, ...] = ("cpu",)
    batches: tuple[int, ...] = (1,)
    dims: Mapping[str, int] = {}
    """Sizes of dynamic dims; others: batch-like ones the batch, the rest 128."""
    threads: int | None = None
    runs: int = 100
    seconds: float = 10.0
    """Timing of one batch size stops after these (but not before 5 rounds)."""
    memory: bool = True
    seed: int = 0


@final
@dataclasses.dataclass(frozen=True)
class _Entry:
    """One model on one provider."""

    path: str
    provider: str
    artifact: Artifact

    @property
    def manifest(self) -> Manifest:
        return self.artifact.manifest


def bench(models: Sequence[str], settings: Settings, *, progress: Progress | None = None) -> BenchReport:
    """Measure every model on every provider, all in turns, for one batch size after the other.

    Raises:
        ModelError, ArtifactError: a model cannot be used.
        ProviderError: a provider cannot run a model.
        InputError: a size does not fit, or no model has a dim of that name.
    """
    tell = progress or _silent
    tell("Loading", 0, 1)
    entries = _entries(models, settings.providers)
    _check_dims(entries, settings)
    cases: list[Case] = []
    with contextlib.ExitStack() as stack:
        sessions = {
            name: stack.enter_context(
                Session(entry.artifact, entry.provider, threads=settings.threads, options=IN_TURNS)
            )
            for name, entry in entries.items()
        }
        for number, batch in enumerate(settings.batches):
            tell(f"Timing at batch {batch}", number, len(settings.batches))
            cases += _time_batch(entries, sessions, settings, batch)
        threads = next(iter(sessions.values())).threads.intra_op
    if settings.memory:
        for number, case in enumerate(cases):
            tell(f"Memory of {case.name}", number, len(cases))
            cases[number] = _with_memory(case, entries[case.name], settings.threads)
    return BenchReport(tuple(cases), machine(), versions(), threads)


def _time_batch(
    entries: Mapping[str, _Entry], sessions: Mapping[str, Session], settings: Settings, batch: int
) -> list[Case]:
    sizes = {name: _sizes(entry.manifest, settings, batch) for name, entry in entries.items()}
    calls = {
        name: _call(sessions[name], entry.manifest, sizes[name], settings.seed)
        for name, entry in entries.items()
    }
    samples = interleave(calls, runs=settings.runs, warmup=_WARMUP, seconds=settings.seconds)
    first = next(iter(samples.values()))
    cases = []
    for name, entry in entries.items():
        times = measurement(samples[name], _WARMUP)
        case = Case(
            name=name,
            model=entry.path,
            provider=sessions[name].provider,
            why=sessions[name].choice.why,
            batch=batch,
            sizes=sizes[name],
            file_bytes=_file_bytes(entry.artifact),
            times=times,
            speedup=speed_ratio(first, samples[name]),
            items_per_second=_batch_of(sizes[name]) * 1e3 / times.median_ms,
        )
        cases.append(case)
    return cases


def _call(session: Session, manifest: Manifest, sizes: Mapping[str, int], seed: int) -> Callable[[], object]:
    feeds = make_feeds(manifest.inputs, sizes, seed=seed)
    return lambda: session(feeds)


def _with_memory(case: Case, entry: _Entry, threads: int | None) -> Case:
    """The case with its peak memory.

    Raises:
        ModelError: the model runs here, but not in a process of its own (WORKER_CRASH).
    """
    answer = peak_memory(
        case.model, case.sizes, provider=case.provider, threads=threads, inputs=entry.manifest.inputs
    )
    if not answer.ok:
        raise ModelError(
            f"{case.name} failed in a process of its own: {answer.why}.",
            "Use --no-memory to leave that out.",
            code="WORKER_CRASH",
        )
    return msgspec.structs.replace(case, peak_bytes=answer.run_bytes)


def _entries(models: Sequence[str], providers: Sequence[str]) -> dict[str, _Entry]:
    """By what tells them apart: the file's name, or its path; with the provider where there are several."""
    short = [Path(model).name for model in models]
    names = short if len(set(short)) == len(short) else [str(model) for model in models]
    entries = {}
    for name, model in zip(names, models, strict=True):
        artifact = open_artifact(Path(model))
        for provider in providers:
            label = f"{name} ({provider})" if len(providers) > 1 else name
            entries[label] = _Entry(str(model), provider, artifact)
    return entries


def _check_dims(entries: Mapping[str, _Entry], settings: Settings) -> None:
    """A size that no model has is a mistake; so is a batch for a model that has no batch dim."""
    dims = {name: dynamic_dims(entry.manifest.inputs) for name, entry in entries.items()}
    known = sorted({dim for names in dims.values() for dim in names})
    for dim in settings.dims:
        if dim not in known:
            hint = nearest(dim, known) if known else "Every size is fixed."
            raise InputError(f"No model has a dynamic dim {dim!r}.", hint, code="DIM_UNKNOWN")
    for name, names in dims.items():
        if settings.batches != (1,) and not any(map(is_batch, names)):
            raise InputError(
                f"{name} has no dynamic batch dim.",
                f"Leave --batch out, or use --dim; its dynamic dims: {', '.join(names) or 'none'}.",
                code="DIM_UNKNOWN",
            )


def _sizes(manifest: Manifest, settings: Settings, batch: int) -> dict[str, int]:
    names = dynamic_dims(manifest.inputs)
    own = {name: size for name, size in settings.dims.items() if name in names}
    return typical_sizes(manifest.inputs, manifest.dims, given=own, batch=batch)


def _batch_of(sizes: Mapping[str, int]) -> int:
    return next((size for name, size in sizes.items() if is_batch(name)), 1)


def _file_bytes(artifact: Artifact) -> int:
    if artifact.model_path is None:
        return 0
    file = check_model_file(artifact.model_path)
    return file.size + sum(file.data.values())


def _silent(_what: str, _done: int, _total: int) -> None:
    """Progress that nobody asked for."""
