"""Measurements that mean something on a shared machine: in turns, in one run, with percentiles and memory.

Taking turns is done by `burnish.runtime.timing`; here its samples become numbers to report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from burnish.manifest import TensorSpec
from burnish.runtime import machine as _machine
from burnish.runtime import timing
from burnish.runtime.probe import Answer, Request, probe

Call = Callable[[], object]


class Measurement(msgspec.Struct, frozen=True):
    """Times of one callable, in milliseconds a call."""

    min_ms: float
    median_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    n: int
    """Samples; p99 says little below 100."""
    warmup: int
    """Untimed calls before the first sample."""


class SpeedRatio(msgspec.Struct, frozen=True):
    """How many times faster something is than what it is compared with (1: the same)."""

    median: float
    """Median over the rounds of (time of the other / own time), both of the same round."""
    best: float
    """Smallest time of the other / smallest own time."""
    low: float
    """Quartile of the rounds' ratios below the median: how far noise reaches."""
    high: float
    """Quartile above it."""


def interleave(
    callables: Mapping[str, Call],
    *,
    runs: int = 100,
    warmup: int = 3,
    seconds: float | None = None,
) -> dict[str, Measurement]:
    """Measure each callable; they take turns, and the order rotates from round to round.

    Args:
        callables: by name.
        runs: samples of each, at most.
        warmup: untimed calls of each at the start.
        seconds: stop after these (but not before 5 rounds); None: all `runs`.
    """
    samples = timing.interleave(callables, runs=runs, warmup=warmup, seconds=seconds)
    return {name: measurement(times, warmup) for name, times in samples.items()}


def measurement(seconds: Sequence[float], warmup: int = 0) -> Measurement:
    """The summary of samples in seconds."""
    ms = np.asarray(seconds) * 1e3
    p50, p90, p99 = (float(value) for value in np.percentile(ms, [50, 90, 99]))
    return Measurement(
        min_ms=float(ms.min()),
        median_ms=float(np.median(ms)),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        mean_ms=float(ms.mean()),
        n=len(ms),
        warmup=warmup,
    )


def speed_ratio(other: Sequence[float], own: Sequence[float]) -> SpeedRatio:
    """How many times faster `own` is, from samples of the same rounds."""
    ratios = np.asarray(other) / np.asarray(own)
    low, median, high = (float(value) for value in np.percentile(ratios, [25, 50, 75]))
    return SpeedRatio(median, timing.best_ratio(other, own), low, high)


def compare_speed(
    a: Call, b: Call, *, runs: int = 100, warmup: int = 3, seconds: float | None = None
) -> SpeedRatio:
    """How many times faster `b` is than `a`, taking turns."""
    samples = timing.interleave({"a": a, "b": b}, runs=runs, warmup=warmup, seconds=seconds)
    return speed_ratio(samples["a"], samples["b"])


def peak_memory(
    model: str,
    sizes: Mapping[str, int],
    *,
    provider: str = "cpu",
    threads: int | None = None,
    inputs: Sequence[TensorSpec] = (),
) -> Answer:
    """Bytes that loading and running a model adds to a process, at its peak, seen in a fresh process.

    Args:
        model: the path of an `.onnx` file or an artifact folder.
        sizes: of the dynamic dims.
        provider: burnish's name.
        threads: intra-op threads; None: what this machine allows.
        inputs: what the inputs mean, where the model does not say.
    """
    return probe(
        Request(provider, model=model, shapes=dict(sizes), inputs=tuple(inputs), threads=threads, runs=3)
    )


def machine() -> dict[str, Any]:
    """This machine, as a report writes it."""
    return dict(msgspec.to_builtins(_machine.machine()))


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    return _machine.versions()
