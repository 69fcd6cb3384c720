"""How fast the results run on their target: in turns, in one process, onnxruntime's optimiser on, one thread.

`python -m burnish.benchmarks.optimize.stopwatch REQUEST` takes and prints JSON.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import psutil

from burnish.benchmarks.measure import Measurement, interleave
from burnish.benchmarks.optimize.children import module, run
from burnish.benchmarks.optimize.rows import SOURCE, Result
from burnish.errors import BurnishError
from burnish.feeds import make_feeds, typical_sizes
from burnish.runtime.options import IN_TURNS
from burnish.runtime.profiling import Profile
from burnish.runtime.session import Session
from burnish.runtime.timing import ready
from burnish.sources import open_artifact

_RUNS: Final = 100
_PROFILED: Final = 10
_LOADED: Final = 3.0  # bytes of a session a byte of its file: weights, packed weights, room to run
_SHARE: Final = 0.6  # of the free memory
# A fused attention does more than multiply: left out, so that the share is too small rather than too large.
_PRODUCTS: Final = re.compile(r"MatMul|Gemm|Conv|LSTM|GRU")


class Request(msgspec.Struct):
    """What to time: paths by tool, the source among them."""

    paths: dict[str, str]
    sizes: dict[str, int]
    seconds: float
    target: str = "cpu"


class Times(msgspec.Struct):
    """What came of it, by tool."""

    sizes: dict[str, int]
    timed: dict[str, Measurement]
    failed: dict[str, str]
    products: float | None = None
    """The part of the source's run that its matrix products and convolutions take, 0 to 1."""


def time_all(
    paths: Mapping[str, Path], result: Result, *, sizes: Mapping[str, int], seconds: float, limit_s: float,
    target: str = "cpu",
) -> None:  # fmt: skip
    """Fill in the times of the rows, and the sizes of the dynamic dims that they are of.

    Where so many sessions do not fit into memory, they are timed in groups, the source in each.

    Args:
        paths: of what to time, by tool; the source among them.
        result: with a row for each tool.
        sizes: of dynamic dims that are not 1 (batch) or 128.
        seconds: to spend on all of them.
        limit_s: after which a process is killed.
        target: where they run.
    """
    room = int(_SHARE * psutil.virtual_memory().available / (_LOADED * max(1, result.size)))
    result.sizes = dict(sizes)
    tools = [tool for tool in paths if tool != SOURCE]
    for group in _groups(tools, max(2, room)):
        share = seconds * len(group) / max(1, len(tools))
        request = Request({tool: str(paths[tool]) for tool in (SOURCE, *group)}, dict(sizes), share, target)
        _time(request, result, limit_s)


def _groups(tools: Sequence[str], room: int) -> list[list[str]]:
    """As few groups as hold `room` sessions each, one of which is the source's; of about the same size."""
    count = -(-len(tools) // (room - 1))
    return [list(tools[start::count]) for start in range(count)]


def _time(request: Request, result: Result, limit_s: float) -> None:
    """Where the process dies, each is timed with the source alone, so that the one at fault is found."""
    text = msgspec.json.encode(request).decode()
    ended = run(module("burnish.benchmarks.optimize.stopwatch", text), limit_s=limit_s)
    times = next(ended.answers(Times), None)
    others = [tool for tool in request.paths if tool != SOURCE]
    if times is not None:
        _enter(times, result)
    elif len(others) <= 1:
        for row in result.rows:
            if row.tool in others:
                row.failure = f"not timed: {ended.failure or 'no answer'}"
    else:
        for tool in others:
            paths = {name: request.paths[name] for name in (SOURCE, tool)}
            seconds = request.seconds / len(others)
            _time(Request(paths, request.sizes, seconds, request.target), result, limit_s)


def _enter(times: Times, result: Result) -> None:
    result.sizes, result.products = times.sizes, times.products
    base = times.timed.get(SOURCE)
    for row in result.rows:
        if why := times.failed.get(row.tool):
            row.failure = row.failure or f"not timed: {why}"
        if measured := times.timed.get(row.tool):
            row.min_ms, row.p50_ms = round(measured.min_ms, 4), round(measured.p50_ms, 4)
            if base is not None:
                row.speedup = round(base.min_ms / measured.min_ms, 4)
                row.p50_speedup = round(base.p50_ms / measured.p50_ms, 4)


def _share_of_products(profile: Profile) -> float:
    """Of whole runs, profiling included: what it adds is not in the products."""
    products = sum(op.ms for op in profile.ops if _PRODUCTS.search(op.op))
    return round(products / profile.run_ms, 4)


def main(text: str) -> None:
    """Time what the request names."""
    request = msgspec.json.decode(text, type=Request)
    known = open_artifact(Path(request.paths[SOURCE])).manifest
    sizes = typical_sizes(known.inputs, known.dims, given=request.sizes)
    feeds = make_feeds(known.inputs, sizes, seed=0)
    calls: dict[str, Callable[[], object]] = {}
    failed: dict[str, str] = {}
    products = None
    for tool, path in request.paths.items():
        try:
            session = Session(Path(path), request.target, threads=1, options=IN_TURNS)
            if tool == SOURCE and request.target == "cpu":  # elsewhere a kernel's time is that of its launch
                products = _share_of_products(session.profile(feeds, _PROFILED))
            call = ready(session, feeds)
            call()
            calls[tool] = call
        except BurnishError as error:
            failed[tool] = error.what[:200]
    timed = interleave(calls, runs=_RUNS, warmup=2, seconds=request.seconds) if calls else {}
    print(msgspec.json.encode(Times(sizes, timed, failed, products)).decode())


if __name__ == "__main__":
    main(*sys.argv[1:])
