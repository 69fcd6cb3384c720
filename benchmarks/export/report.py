"""The table, from the rows that a sweep left: export.json and export.md, never written by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from burnish.benchmarks.export.cases import HAND_MADE
from burnish.benchmarks.export.explained import EXPLAINED
from burnish.benchmarks.export.job import Row
from burnish.benchmarks.export.judge import TOLERANCE
from burnish.benchmarks.export.judge_decode import TOKENS
from burnish.benchmarks.measure import machine, versions

EXPORTERS: Final = ("burnish", "torch", "transformers", "optimum")
TITLES: Final = {
    "burnish": "burnish", "torch": "torch.onnx.export", "transformers": "transformers.exporters",
    "optimum": "optimum-onnx",
}  # fmt: skip
Rows = Mapping[tuple[str, str], Row]
_LIBRARIES: Final = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")


class Summary(msgspec.Struct):
    """How one exporter did."""

    exporter: str
    right: int = 0
    wrong: int = 0
    failed: int = 0
    left_out: int = 0
    """Cases that cannot be built here: a package is missing."""
    parity: int = 0
    """Cases whose graph computes what the module does, a missing cache aside."""
    not_run: int = 0
    seconds: float = 0.0
    """Median processor seconds of what it exported."""

    @property
    def total(self) -> int:
        """Cases that it was judged on."""
        return self.right + self.wrong + self.failed


def write_report(rows: Rows, folder: Path, cases: Sequence[str]) -> None:
    """Write export.json (all rows) and export.md.

    Args:
        rows: by case and exporter.
        folder: gets both.
        cases: those of the table, in order; rows of others are left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = [rows[case, name] for case in cases for name in EXPORTERS if (case, name) in rows]
    groups = {title: summaries(rows, chosen) for title, chosen in _groups(cases)}
    facts = {
        "summary": groups, "explained": {c: t for c, t in EXPLAINED.items() if c in cases}, "rows": kept,
        "machine": machine(), "versions": _versions(),
    }  # fmt: skip
    (folder / "export.json").write_bytes(msgspec.json.format(msgspec.json.encode(facts), indent=1) + b"\n")
    (folder / "export.md").write_text("\n".join(_markdown(rows, cases)), encoding="utf-8")


def _versions() -> dict[str, str]:
    from importlib import metadata

    found = dict(versions())
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _groups(cases: Sequence[str]) -> list[tuple[str, list[str]]]:
    made = [case for case in cases if case.startswith(f"{HAND_MADE}/")]
    return [
        ("architectures of transformers", [c for c in cases if c not in made]),
        ("hand-made networks", made),
    ]


def summaries(rows: Rows, cases: Sequence[str]) -> list[Summary]:
    """Counts by exporter over these cases."""
    return [_summary(name, [rows.get((case, name)) for case in cases]) for name in EXPORTERS]


def _summary(exporter: str, found: Sequence[Row | None]) -> Summary:
    made = Summary(exporter, not_run=found.count(None))
    seconds = []
    for row in filter(None, found):
        made.right += row.status == "right"
        made.wrong += row.status == "wrong"
        made.failed += row.status == "failed"
        made.left_out += row.status == "left out"
        made.parity += row.parity
        if row.seconds is not None:
            seconds.append(row.seconds)
    made.seconds = sorted(seconds)[len(seconds) // 2] if seconds else 0.0
    return made


def _markdown(rows: Rows, cases: Sequence[str]) -> Iterator[str]:
    yield "# Export: burnish beside three exporters\n"
    yield _introduction()
    for title, chosen in _groups(cases):
        yield f"## {len(chosen)} {title}\n"
        yield _table(
            ("exporter", "fully right", "wrong", "failed", "of", "%", "graph right, cache aside", "median s"),
            [_counts(each) for each in summaries(rows, chosen)],
        )
    yield from _left_out(rows, cases)
    yield from _failures(rows, cases)
    for title, chosen in _groups(cases):
        yield f"## Each of the {title}\n"
        heads = (
            "case",
            "class",
            *(TITLES[name] for name in EXPORTERS),
            "s",
            "peak MB",
            "nodes",
            "sizes",
            "error",
        )
        yield _table(heads, [_line(rows, case) for case in chosen])


def _introduction() -> str:
    libraries = ", ".join(f"{name} {version}" for name, version in _versions().items())
    return f"{_INTRODUCTION}\n{libraries}\n"


_INTRODUCTION: Final = f"""\
Small random models; random weights are as large as trained ones are. Every exporter is told the same dims to
keep dynamic, runs in a process of its own, and is judged by the same judge:

- **parity** with the PyTorch module at every combination of batch 1, 2, 3 and lengths 1, 2, odd, longest (for
  decoders: past 0, 1, 11 by 1, 2, 7, 24 new tokens, rows padded on the left), in onnxruntime on the CPU with
  its optimiser off and on, within {TOLERANCE:g} of the largest value;
- **dims**: none of those declared is a number in the graph;
- **decode**: {TOKENS} tokens greedily, alone and as a batch of three of different lengths, with the graph's
  cache; every token is that of the module without one. A decoder exported without a cache is not fully right;
  its graph is judged all the same.

A graph that takes one token at a time (state-space models) is judged so, without padding.
transformers.exporters leaves the encoder of an encoder-decoder to its user: the judge runs it in PyTorch.
Seconds are of the processor (one thread), with whatever the exporter checks itself; MB are what exporting
added to the process at its peak. s, MB, nodes, sizes and error in the long tables are burnish's.
"""


def _counts(each: Summary) -> tuple[str, ...]:
    share = f"{100 * each.right / each.total:.1f}" if each.total else "-"
    return (
        TITLES[each.exporter], str(each.right), str(each.wrong), str(each.failed), str(each.total), share,
        str(each.parity), f"{each.seconds:.1f}",
    )  # fmt: skip


def _left_out(rows: Rows, cases: Sequence[str]) -> Iterator[str]:
    found = [row for case in cases if (row := rows.get((case, "burnish"))) and row.status == "left out"]
    if found:
        yield f"{len(found)} cases are left out, because packages are missing: " + ", ".join(
            f"{row.case} ({row.failure[:60]})" for row in found
        ) + "\n"  # fmt: skip
    missing = {name: n for name in EXPORTERS if (n := sum((case, name) not in rows for case in cases))}
    if missing:
        yield "Not run: " + ", ".join(f"{TITLES[name]} on {n}" for name, n in missing.items()) + ".\n"


def _failures(rows: Rows, cases: Sequence[str]) -> Iterator[str]:
    for name in EXPORTERS:
        bad = [row for case in cases if (row := rows.get((case, name))) and row.status in ("wrong", "failed")]
        if not bad:
            continue
        yield f"## What {TITLES[name]} does not get right\n"
        heads = ("case", "", "what", *(("why",) if name == "burnish" else ()))
        yield _table(heads, [_failure(row, explained=name == "burnish") for row in bad])


def _failure(row: Row, *, explained: bool) -> tuple[str, ...]:
    told = (EXPLAINED.get(row.case, ""),) if explained else ()
    return (row.case, row.status, _safe(row.failure), *told)


def _line(rows: Rows, case: str) -> tuple[str, ...]:
    found = [rows.get((case, name)) for name in EXPORTERS]
    own = found[0] or Row(case, "burnish")
    model = next((row.model for row in found if row and row.model), "")
    return (
        case, model, *(_mark(row) for row in found), _cell(own.seconds, ".1f"), _cell(own.peak_mb, ".0f"),
        _cell(own.nodes, "d"), str(own.compared), _cell(own.error, ".0e"),
    )  # fmt: skip


def _mark(row: Row | None) -> str:
    if row is None:
        return ""
    if row.status == "wrong" and row.parity and row.decode == "no cache":
        return "no cache"
    return row.status


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _safe(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _table(heads: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    all_lines = [heads, ["---"] * len(heads), *lines]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in all_lines)
