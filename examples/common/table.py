"""The table that ends every example, and the same as JSON."""

import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from burnish.benchmarks.demo.report import machine
from burnish.benchmarks.measure import interleave
from common.ways import THREADS, Way


class Row(msgspec.Struct, frozen=True):
    """One way to run the model."""

    name: str
    kilobytes: float
    metric: float
    p50_ms: float
    speedup: float
    """Against torch, by medians."""


class Result(msgspec.Struct, frozen=True):
    """What an example found out."""

    title: str
    metric: str
    """What the metric is, with its unit."""
    timed: str
    """What one timed call is."""
    rows: tuple[Row, ...]
    remarks: tuple[str, ...] = ()


def compare(
    title: str,
    ways: Sequence[Way],
    *,
    metric: tuple[str, Callable[[Way], float]],
    timed: tuple[str, Callable[[Way], object]],
    folder: Path,
    remarks: Sequence[str] = (),
    seconds: float = 10.0,
) -> Result:
    """Judge each way, time all of them in turns in one run, print the table and write `result.json`.

    Args:
        title: of the table.
        ways: to run the model; the first is what the others are compared with.
        metric: what it is called, and its value for a way.
        timed: what one call is, and the call.
        folder: gets `result.json`.
        remarks: lines to print below.
        seconds: for timing.
    """
    calls = {way.name: (lambda way=way: timed[1](way)) for way in ways}
    times = interleave(calls, runs=200, seconds=seconds)
    base = times[ways[0].name].p50_ms
    rows = [
        Row(way.name, way.size / 1e3, metric[1](way), p50 := times[way.name].p50_ms, base / p50)
        for way in ways
    ]
    notes = (*remarks, *(f"{ways[-1].name}: {note}" for note in ways[-1].notes))
    result = Result(title, metric[0], timed[0], tuple(rows), notes)
    (folder / "result.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    show(result)
    return result


def show(result: Result) -> None:
    """Print the table and what its figures mean."""
    table = Table()
    table.add_column("")
    for head in ("size kB", result.metric, "p50 ms", "speed-up"):
        table.add_column(head, justify="right")
    for row in result.rows:
        table.add_row(
            row.name, f"{row.kilobytes:,.1f}", f"{row.metric:.2f}", f"{row.p50_ms:.3f}", f"{row.speedup:.2f}×"
        )
    on = machine()
    threads = f"{THREADS} thread{'s' if THREADS > 1 else ''}"
    out = Console(width=110)
    out.print(result.title, table, sep="\n", highlight=False)
    out.print(
        f"p50: {result.timed}; in turns in one run, {threads} of {on['cpu']}, {platform.system()}.",
        *result.remarks, sep="\n", highlight=False,
    )  # fmt: skip
