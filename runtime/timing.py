"""Time callables and models against each other in one run, in turns, so that both meet the same noise.

On a shared machine two separate measurements differ by up to three times (reference/runtime.md 0.10). In
turns, a slow moment of the machine hits neighbours alike, and the smallest time of each is the machine
undisturbed. This is the only implementation of taking turns; `burnish.benchmarks.measure` builds on it.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from burnish.costs import MARGIN, Ratio
from burnish.runtime.options import IN_TURNS
from burnish.runtime.session import Session
from burnish.runtime.source import Source

Arrays = Mapping[str, np.ndarray]
Call = Callable[[], object]

MIN_ROUNDS: Final = 5
_SAMPLE_S: Final = 2e-4  # a sample of many short calls is at least this long: the clock's own cost is 1e-7
_MAX_INNER: Final = 1000
_MANY: Final = 100_000
_ATTEMPTS: Final = 4
_CLOSE: Final = 0.03
_CLEAR: Final = 0.10
_PARTS: Final = 5  # of the rounds, each with a ratio of its own: how far they are apart is the noise


def interleave(
    callables: Mapping[str, Call],
    *,
    runs: int,
    warmup: int = 3,
    seconds: float | None = None,
    min_rounds: int = MIN_ROUNDS,
) -> dict[str, list[float]]:
    """Seconds a call of each callable, one sample a round, in an order that rotates from round to round.

    Each sample follows an untimed call of the same callable: threads of the one before it may still spin,
    and its data is in the caches. Samples with the same index are of the same round. Calls much shorter
    than 0.2 ms are timed several at once. Garbage collection is off meanwhile.

    Args:
        callables: by name.
        runs: rounds, at most.
        warmup: untimed calls of each before the first round.
        seconds: stop after these, once there are `min_rounds` rounds; None: all `runs`.
        min_rounds: rounds that are made even when time is up.
    """
    names = list(callables)
    inner = {name: _inner_calls(call, warmup) for name, call in callables.items()}
    samples: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds if seconds is not None else float("inf")
    with _no_collection():
        for number in range(runs):
            if number >= min_rounds and time.perf_counter() >= end:
                break
            turn = number % len(names)
            for name in (*names[turn:], *names[:turn]):
                samples[name].append(_sample(callables[name], inner[name]))
    return samples


def compare_speed(
    a: Source | Path,
    b: Source | Path,
    feeds: Arrays,
    *,
    threads: int | None = None,
    budget_s: float = 0.2,
    provider: str = "cpu",
) -> Ratio:
    """Time of model `a` divided by time of model `b`: more than 1 means that b is faster.

    Both run as deployed (onnxruntime's optimiser on), in turns, with their outputs bound; on a device that
    is not the CPU, inputs and outputs stay there. Two estimates must agree: the ratio of the smallest times,
    and the median ratio of the rounds. Until they do, up to three more budgets are spent; if they never do,
    the one closer to 1 is returned, so that noise does not pass for a gain. One more is also spent where
    noise hides whether a is slower.

    Args:
        a: a serialised model or a path; as `b`.
        b: the other model.
        feeds: the inputs, for both.
        threads: intra-op threads; None: what this machine allows.
        budget_s: seconds to spend on timing, without loading.
        provider: what both run on.

    Raises:
        ModelError: one of them cannot be loaded or run.
        ProviderError: the provider is not there, or would leave nodes to the CPU.
    """
    with (
        Session(a, provider, threads=threads, options=IN_TURNS) as first,
        Session(b, provider, threads=threads, options=IN_TURNS) as second,
    ):
        calls: dict[str, Call] = {"a": ready(first, feeds), "b": ready(second, feeds)}
        samples: dict[str, list[float]] = {"a": [], "b": []}
        for attempt in range(_ATTEMPTS):
            warmup = 3 if attempt == 0 else 1
            more = interleave(calls, runs=_MANY, seconds=budget_s, warmup=warmup)
            samples = {name: samples[name] + more[name] for name in calls}
            estimates = best_ratio(*samples.values()), paired_ratio(*samples.values())
            low, high = spread(*samples.values())
            settled = Ratio(estimates[0], low, high).exceeds(MARGIN) is not None
            if agree(*estimates) and (settled or attempt):
                break
    value = estimates[0] if agree(*estimates) else min(estimates, key=_distance)
    return Ratio(value, min(low, value), max(high, value), len(samples["a"]))


def ready(session: Session, feeds: Arrays) -> Call:
    """A call of the session on these inputs, with as little around it as an application can have.

    Raises:
        InputError, ModelError, SessionError: as for a call of the session.
    """
    if session.provider != "cpu":
        return session.resident(feeds)
    return functools.partial(session.bind(), feeds)


def spread(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """The smallest and the largest of the ratios of smallest times, each over a fifth of the rounds."""
    bounds = [len(a) * part // _PARTS for part in range(_PARTS + 1)]
    pairs = [(i, j) for i, j in itertools.pairwise(bounds) if j > i]
    ratios = [best_ratio(a[i:j], b[i:j]) for i, j in pairs]
    return min(ratios), max(ratios)


def best_ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """Smallest time of `a` by smallest time of `b`: noise of a machine only ever adds time."""
    return min(a) / min(b)


def paired_ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """Median over the rounds of time of `a` by time of `b` in that round."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def agree(one: float, other: float) -> bool:
    """True when two ratios are within 3 %, or say the same beyond 10 % (both faster or both slower)."""
    if abs(math.log(one / other)) < _CLOSE:
        return True
    return min(_distance(one), _distance(other)) > _CLEAR and (one > 1) == (other > 1)


def _distance(ratio: float) -> float:
    return abs(math.log(ratio))


def _inner_calls(call: Call, warmup: int) -> int:
    """Warm up, and find how many calls make one sample long enough for the clock."""
    fastest = float("inf")
    for _ in range(max(1, warmup)):
        fastest = min(fastest, _timed(call, 1))
    return max(1, min(_MAX_INNER, int(_SAMPLE_S / max(fastest, 1e-9))))


def _sample(call: Call, inner: int) -> float:
    call()
    return _timed(call, inner)


def _timed(call: Call, times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
