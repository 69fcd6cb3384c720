"""burnish against the other optimizers, on the same files: nodes, equality, speed, cost of optimising."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from burnish.benchmarks import peer_runner
from burnish.benchmarks.measure import interleave
from burnish.checking import DifferentialChecker
from burnish.errors import BurnishError
from burnish.feeds import make_feeds
from burnish.model import node_count
from burnish.passes.base import Numerics
from burnish.runtime.options import IN_TURNS
from burnish.runtime.session import Session
from burnish.sources import Source, open_source

TOOLS: Final = ("OnnxSlim", "onnxsim", "onnxscript optimize_for_ort", "onnxruntime EXTENDED")
_LIMIT_S: Final = 600


class PeerRow(msgspec.Struct):
    """One optimizer on one model. `error` is against the source (optimiser off), None where it fails."""

    tool: str
    nodes: int | None = None
    max_rel_error: float | None = None
    failure: str = ""
    optimise_s: float | None = None
    peak_mb: float | None = None
    min_ms: float | None = None
    p50_ms: float | None = None
    speedup: float | None = None


def compare(
    source: Path, peers_python: Path | None, output: Path, *, sizes: Mapping[str, int]
) -> list[PeerRow]:
    """Optimise `source` by every tool, check each result, and time all results in one interleaved run.

    Args:
        source: the raw model.
        peers_python: Python of the peers' environment; None: burnish alone.
        output: folder that gets the optimised models.
        sizes: dynamic dims to time at.
    """
    output.mkdir(parents=True, exist_ok=True)
    original = open_source(source)
    results: dict[str, Path] = {"source": source}
    rows = {"source": PeerRow("source", node_count(original.model), 0.0)}
    for tool in TOOLS if peers_python else ():
        target = output / f"{source.stem}.{tool.partition(' ')[0].lower()}.onnx"
        rows[tool] = _peer(tool, source, target, peers_python)
        results[tool] = target
    for name, measured in (("burnish", True), ("burnish, not measured", False)):
        target = output / f"{source.stem}.burnish{'' if measured else '-unmeasured'}.onnx"
        rows[name] = _burnish(name, source, target, measured)
        results[name] = target
    runnable = {name: path for name, path in results.items() if not rows[name].failure}
    for name, path in runnable.items():
        _check(rows[name], original, path)
    _time({n: p for n, p in runnable.items() if not rows[n].failure}, rows, original, sizes)
    return list(rows.values())


def _peer(tool: str, source: Path, target: Path, python: Path | None) -> PeerRow:
    command = [str(python), peer_runner.__file__, tool, str(source), str(target)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return PeerRow(tool, failure=f"no result in {_LIMIT_S} s")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return PeerRow(tool, failure=last[:200])
    cost = json.loads(done.stdout.splitlines()[-1])
    return PeerRow(tool, optimise_s=cost["seconds"], peak_mb=cost["peak_mb"])


def _burnish(name: str, source: Path, target: Path, measured: bool) -> PeerRow:
    """In a process of its own, like the peers: `peak_mb` then means the same."""
    command = [
        sys.executable, "-P", "-m", "burnish.benchmarks.self_runner", str(source), str(target),
        "measured" if measured else "unmeasured",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    if done.returncode != 0:
        return PeerRow(name, failure=done.stderr.strip()[-200:])
    cost = json.loads(done.stdout.splitlines()[-1])
    return PeerRow(name, optimise_s=cost["seconds"], peak_mb=cost["peak_mb"])


def _check(row: PeerRow, original: Source, path: Path) -> None:
    try:
        result = open_source(path)
        row.nodes = node_count(result.model)
        checker = DifferentialChecker(original.manifest)
        verdict = checker(original.model, result.model, Numerics.ROUNDING)
    except BurnishError as error:
        row.failure = error.what[:200]
        return
    row.failure = verdict.failure
    row.max_rel_error = None if verdict.failure else verdict.difference.max_rel


def _time(
    paths: Mapping[str, Path], rows: Mapping[str, PeerRow], original: Source, sizes: Mapping[str, int]
) -> None:
    feeds = make_feeds(original.manifest.inputs, sizes, seed=0)
    sessions = {name: Session(path, threads=1, options=IN_TURNS) for name, path in paths.items()}
    calls = {name: functools.partial(session, feeds) for name, session in sessions.items()}
    timed = interleave(calls, runs=40, warmup=3)
    for name, measurement in timed.items():
        rows[name].min_ms, rows[name].p50_ms = measurement.min_ms, measurement.p50_ms
        rows[name].speedup = timed["source"].min_ms / measurement.min_ms


_HEADS: Final = (
    "optimizer",
    "nodes",
    "max error",
    "optimise s",
    "peak MB",
    "min ms",
    "p50 ms",
    "speed-up",
    "",
)


def _cells(row: PeerRow) -> tuple[str, ...]:
    return (
        row.tool, _cell(row.nodes, "d"), _cell(row.max_rel_error, ".1e"), _cell(row.optimise_s, ".1f"),
        _cell(row.peak_mb, ".0f"), _cell(row.min_ms, ".2f"), _cell(row.p50_ms, ".2f"),
        _cell(row.speedup, ".2f"), row.failure,
    )  # fmt: skip


def markdown(rows: Sequence[PeerRow], title: str) -> str:
    """The rows as a Markdown section."""
    lines = [_HEADS, ("---",) * len(_HEADS), *map(_cells, rows)]
    return f"## {title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def table(rows: Sequence[PeerRow], title: str) -> Any:
    """The rows as a rich table."""
    from rich.table import Table

    result = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in _HEADS:
        result.add_column(name, justify="left" if name in ("optimizer", "") else "right")
    for row in rows:
        result.add_row(*_cells(row))
    return result


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
