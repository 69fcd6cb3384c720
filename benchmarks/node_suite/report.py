"""The rows and the report of the node suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from burnish.benchmarks.node_suite.cases import Variant
from burnish.benchmarks.node_suite.judge import Kind


class Row(msgspec.Struct):
    """What became of all cases of a variant under one tool."""

    tool: str
    version: str
    variant: Variant
    runnable: int = 0
    """Cases that onnxruntime runs before any tool touched them, with the same result twice."""
    counts: dict[Kind, int] = {}
    failures: dict[str, str] = {}
    """By case: its kind, and what was said."""

    def add(self, case: str, kind: Kind, detail: str) -> None:
        """Count one case."""
        self.runnable += 1
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if kind != "same":
            self.failures[case] = f"{kind}: {detail}"[:300]


_KINDS: tuple[Kind, ...] = ("same", "different", "invalid", "exception", "crash")


def cells(row: Row) -> list[str]:
    """The row as a table shows it."""
    return [
        f"{row.tool} {row.version}",
        row.variant,
        *map(str, [row.runnable, *(row.counts.get(k, 0) for k in _KINDS)]),
    ]


HEADS = ("tool", "variant", "runnable", *_KINDS)


_ABOUT = (
    "Every node test of onnx that onnxruntime runs, as it is, with one input frozen to an initializer, and "
    "with all of them, is optimised by each tool and run again, onnxruntime's own optimiser off. "
    "*different*: an output is gone, or off by more than 1e-4 of its largest magnitude (float16: than two "
    "steps of its type); *invalid*: it does not load or run any more; *crash*: the tool's process died, or "
    "took two minutes. Written by `make bench-node-suite`."
)


def markdown(rows: Sequence[Row], versions: Mapping[str, Any]) -> str:
    """The table, and the first failures of each tool."""
    lines = [
        "# ONNX's node tests before and after optimising", "",
        _ABOUT,
        "", ", ".join(f"{name} {version}" for name, version in versions.items()), "",
        f"| {' | '.join(HEADS)} |", "| --- | --- |" + " ---: |" * (len(HEADS) - 2),
        *(f"| {' | '.join(cells(row))} |" for row in rows), "",
    ]  # fmt: skip
    for row in rows:
        if row.failures:
            lines += ["", f"## {row.tool}, {row.variant}", ""]
            lines += [f"- `{case}`: {_one_line(why)}" for case, why in sorted(row.failures.items())[:_SHOWN]]
            more = len(row.failures) - _SHOWN
            lines += [f"- and {more} more, in node_suite.json"] if more > 0 else []
    return "\n".join(lines) + "\n"


_SHOWN = 10


def _one_line(text: str) -> str:
    return " ".join(text.replace("`", "'").split())[:160]
