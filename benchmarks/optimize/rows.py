"""What one tool made of one model, and the file that keeps it, a line a model."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

SOURCE = "source"
"""The name of the row that is the model as it was exported."""


class Row(msgspec.Struct, omit_defaults=True):
    """One tool on one model."""

    tool: str
    nodes: int | None = None
    """Left, those in subgraphs and functions included."""
    ops: dict[str, int] = {}
    """How many of each operator."""
    valid: bool = False
    """onnxruntime loads it, its own optimiser off."""
    equal: bool = False
    """It computes what the source computes, at every assignment that was compared."""
    error: float | None = None
    """The largest difference from the source, relative to its largest value."""
    failure: str = ""
    """Why it is not made, not valid, not equal, or not timed."""
    seconds: float | None = None
    """Loading, optimising and saving, imports not counted."""
    peak_mb: float | None = None
    """Of the whole process."""
    min_ms: float | None = None
    p50_ms: float | None = None
    speedup: float | None = None
    """Smallest time of the source by smallest own time, of the same run."""
    p50_speedup: float | None = None
    note: str = ""
    """Of a difference that the source's own rounding noise allows."""

    @property
    def right(self) -> bool:
        """Valid and equal."""
        return self.valid and self.equal


class Result(msgspec.Struct, omit_defaults=True):
    """All tools on one model."""

    model: str
    family: str
    """`transformer`, `convolution` or `other`."""
    size: int = 0
    """Bytes of the model's files."""
    sizes: dict[str, int] = {}
    """Of the dynamic dims where it was timed."""
    compared: int = 0
    """Assignments of the dynamic dims at which results were compared with the source."""
    products: float | None = None
    """The part of the source's run that its matrix products and convolutions take, 0 to 1."""
    target: str = "cpu"
    """What burnish optimised for, and where everything was timed."""
    failure: str = ""
    """Why there is no model: its export failed, or the source itself does not run."""
    rows: list[Row] = []

    def row(self, tool: str) -> Row | None:
        """That tool's."""
        return next((row for row in self.rows if row.tool == tool), None)


def read_results(path: Path) -> dict[str, Result]:
    """By model; the last line of each counts. A line cut short is none."""
    results: dict[str, Result] = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(msgspec.DecodeError):
            result = msgspec.json.decode(line, type=Result)
            results[result.model] = result
    return results


def keep(result: Result, path: Path) -> None:
    """Add a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell() and not _ends_whole(file.name):
            file.write(b"\n")
        file.write(msgspec.json.encode(result) + b"\n")


def _ends_whole(name: str) -> bool:
    """False where a run was interrupted while it wrote: what comes next must not join that line."""
    with open(name, "rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"
