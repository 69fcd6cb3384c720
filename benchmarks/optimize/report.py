"""optimize.md and optimize.json, from the results that were kept; never written by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from burnish.benchmarks.measure import machine, versions
from burnish.benchmarks.optimize.rows import SOURCE, Result, Row
from burnish.benchmarks.optimize.summary import CHECKED, DEFAULT, Beside, Claim, Summary, claims, geomean
from burnish.benchmarks.optimize.table import SUBJECTS
from burnish.benchmarks.optimize.tools import ALONE, OURS, PEERS
from burnish.files import write_file
from burnish.runtime.gpu import Gpu, gpus
from burnish.target import get_target

HEADS: Final = (
    "tool", "nodes", "valid", "equal", "error", "seconds", "peak MB", "min ms", "p50 ms", "speed-up", "",
)  # fmt: skip


def write_report(results: Mapping[str, Result], folder: Path) -> None:
    """Write optimize.json (everything) and optimize.md.

    Args:
        results: by model.
        folder: gets both.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ordered = [results[name] for name in SUBJECTS if name in results]
    ordered += [result for name, result in results.items() if name not in SUBJECTS]
    found = claims(Summary.of(ordered))
    facts = {
        "claims": [claim._asdict() for claim in found], "models": ordered, "machine": machine(),
        "gpus": _gpus(ordered), "versions": versions(),
    }  # fmt: skip
    write_file(folder / "optimize.json", msgspec.json.format(msgspec.json.encode(facts), indent=1) + b"\n")
    write_file(folder / "optimize.md", "\n".join(markdown(ordered)).encode())


def markdown(results: Sequence[Result]) -> Iterator[str]:
    """The report, section by section."""
    summary = Summary.of(results)
    yield f"# burnish beside six other optimisers\n\n{_introduction(results)}"
    yield from _missing(results)
    yield f"## Summary\n\n{_claims(claims(summary))}"
    yield _tallies(summary)
    yield from _nodes(summary)
    yield from _speed(summary)
    yield from _cost(summary)
    yield from _failures(results)
    for result in results:
        yield _model(result)


def _gpus(results: Sequence[Result]) -> tuple[Gpu, ...]:
    """Those of this machine, where anything ran on one."""
    return gpus() if any(get_target(result.target).device == "cuda" for result in results) else ()


def _introduction(results: Sequence[Result]) -> str:
    targets = ", ".join(sorted({result.target for result in results}))
    devices = [*(gpu.name for gpu in _gpus(results)), machine()["cpu"]]
    libraries = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"""\
{", ".join(devices)}. Written by `make bench-optimize`.

- Models: `torch.onnx.export(dynamo=True)` with its defaults, at the published sizes, random weights; MiniLM
  with its own; files that others exported.
- **valid**: onnxruntime loads it, its own optimiser off. **equal**: what the source computes, at every
  assignment of the dynamic dims compared (four where any is dynamic), its optimiser off: within 1e-4, or what
  the source's own rounding explains (1e-3 at most; the row says so).
- **seconds**, **peak MB**: loading, optimising and saving, in a process of its own; imports are not in the
  seconds. `{DEFAULT}`: as it comes (every pass checked, what is slower taken back by measuring);
  `{CHECKED}`: checked, nothing timed; `{ALONE}`: neither.
- **ms**: onnxruntime on {targets}, its optimiser on, one thread, batch 1 × 128 where nothing else is said;
  all results of a model in turns in one run. **speed-up**: smallest time of the source by smallest own time.
- Best peer: of those whose result is valid and equal on that model.

{libraries}; peers: requirements/peers.txt.
"""


def _missing(results: Sequence[Result]) -> Iterator[str]:
    names = {result.model for result in results}
    absent = [name for name in SUBJECTS if name not in names]
    if absent:
        yield f"Not run ({len(absent)} of {len(SUBJECTS)}): {', '.join(absent)}.\n"
    failed = [result for result in results if result.failure]
    if failed:
        yield (
            "No model to compare on: " + "; ".join(f"{r.model} ({_safe(r.failure)})" for r in failed) + ".\n"
        )


def _claims(found: Sequence[Claim]) -> str:
    words = {True: "met", False: "**not met**", None: "not judged"}
    lines = [(claim.what, claim.figure, claim.aim, words[claim.met]) for claim in found]
    return _table(("", "figure", "aim", ""), lines)


def _tallies(summary: Summary) -> str:
    heads = ("tool", "made", "valid", "equal", "of", "nodes left", "speed-up", "seconds")
    lines = []
    for tool in (*PEERS, *OURS):
        each = summary.tally(tool)
        lines.append((
            tool, each.made, each.valid, each.equal, len(summary.results), _share(each.left),
            _cell(each.speedup, ".2f"), _cell(each.seconds, ".2f"),
        ))  # fmt: skip
    return f"Nodes left, speed-up over the source and seconds are geometric means.\n\n{_table(heads, lines)}"


def _nodes(summary: Summary) -> Iterator[str]:
    yield "## Nodes left\n"
    for way in OURS:
        found = summary.nodes(way)
        fewer = sum(each.ours < each.theirs for each in found)
        same = sum(each.ours == each.theirs for each in found)
        yield f"`{way}`: fewer than the best peer on {fewer} of {len(found)} models, as many on {same}.\n"
        behind = [
            (
                each.model,
                f"{each.ours:.0f}",
                f"{each.theirs:.0f}",
                each.peer,
                f"{each.ours - each.theirs:+.0f}",
                ", ".join(each.more),
            )
            for each in found
            if each.ours >= each.theirs
        ]
        if behind:
            yield _table(("model", way, "best peer", "which", "difference", "more of"), behind)


def _speed(summary: Summary) -> Iterator[str]:
    yield "## Latency\n"
    yield "The best of six peers is also the luckiest of six: equal graphs come out a little below 1.\n"
    lines = []
    for family in ("transformer", "convolution", "other"):
        part = summary.family(family)
        found = part.speed()
        peer = geomean(each.ours / each.theirs for each in found)
        raw = geomean(each.ours for each in found)
        most = _cell(part.ceiling(), ".3f")
        lines.append((family, len(found), _cell(peer, ".3f"), most, _cell(raw, ".3f")))
    heads = ("family", "models", "against the best peer", "at most", "against the raw file")
    yield _table(heads, lines)
    yield (
        "**at most**: against the best peer, if everything took no time but the products of the source "
        "(MatMul, Gemm, Conv, LSTM: their share of its run, by onnxruntime's profile). More is possible only "
        "where less is multiplied.\n"
    )
    slow = summary.slower()
    if slow:
        yield (
            "Slower than the raw file: "
            + ", ".join(f"{name} ({ratio:.2f} ×)" for name, ratio in slow)
            + ".\n"
        )
    behind = sorted((each for each in summary.speed() if each.ours < each.theirs), key=_ratio)
    if behind:
        heads = ("a peer is faster", DEFAULT, "best peer", "which", "ratio")
        yield _table(heads, [
            (b.model, f"{b.ours:.3f}", f"{b.theirs:.3f}", b.peer, f"{_ratio(b):.3f}") for b in behind
        ])  # fmt: skip


def _ratio(each: Beside) -> float:
    return each.ours / each.theirs


def _cost(summary: Summary) -> Iterator[str]:
    yield "## Cost\n\nSeconds by seconds of each peer (geometric mean where both end), and peak memory.\n"
    lines = []
    for way in OURS:
        found = summary.memory(way)
        within = sum(each.ours <= each.theirs for each in found)
        worst = max(found, key=_ratio, default=None)
        most = f"{worst.model}: {worst.ours:.0f} of {worst.theirs:.0f} MB" if worst else "-"
        times = (_cell(summary.time(way, peer), ".2f") for peer in PEERS)
        lines.append((way, *times, f"{within} of {len(found)}", most))
    yield _table(("", *PEERS, "within 1.3 × + 300 MB", "most"), lines)
    lines = []
    for tool in PEERS:
        found = summary.memory(tool)
        lines.append((tool, f"{sum(each.ours <= each.theirs for each in found)} of {len(found)}"))
    yield _table(("peer", "within 1.3 × + 300 MB"), lines)


def _failures(results: Sequence[Result]) -> Iterator[str]:
    lines = [
        (row.tool, result.model, _safe(row.failure))
        for tool in (*PEERS, *OURS)
        for result in results
        if (row := result.row(tool)) is not None and row.failure
    ]
    if lines:
        yield f"## What failed\n\n{_table(('tool', 'model', 'what'), lines)}"


def _model(result: Result) -> str:
    sizes = ", ".join(f"{name} {size}" for name, size in result.sizes.items())
    facts = (
        f"{result.size / 2**20:.1f} MB, {result.family}; timed at {sizes or 'its fixed sizes'}; compared at "
    )
    facts += f"{result.compared} assignments of its dims."
    if result.products is not None:
        facts += f" Products: {_share(result.products)} of the source's run."
    table = _table(HEADS, [cells(row) for row in result.rows])
    return f"## {result.model}\n\n{result.failure or facts}\n\n{table}"


def cells(row: Row) -> tuple[str, ...]:
    """A row as texts, one for each of `HEADS`."""
    made = row.tool == SOURCE or row.seconds is not None
    return (
        row.tool, _cell(row.nodes, "d"), _yes(row.valid) if made else "-", _yes(row.equal) if made else "-",
        _cell(row.error, ".0e"), _cell(row.seconds, ".2f"), _cell(row.peak_mb, ".0f"),
        _cell(row.min_ms, ".2f"), _cell(row.p50_ms, ".2f"), _cell(row.speedup, ".3f"),
        _safe(row.failure or row.note),
    )  # fmt: skip


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _safe(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _table(heads: Sequence[object], lines: Sequence[Sequence[object]]) -> str:
    every = [heads, ["---"] * len(heads), *lines]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in every)
