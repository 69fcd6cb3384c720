"""Are the results valid, and equal to the source? In a process of its own: a bad graph may crash onnxruntime.

`python -m burnish.benchmarks.optimize.judge SOURCE RESULT …` prints a JSON line a result.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
import onnx_ir as ir
import onnxruntime as ort

from burnish.benchmarks.optimize.children import module, run
from burnish.benchmarks.optimize.rows import Row
from burnish.checking import DifferentialChecker
from burnish.model import histogram, node_count
from burnish.passes.base import Numerics
from burnish.sources import open_source

_KEPT: Final = 200  # characters of a reason


class Judgement(msgspec.Struct):
    """What was found about a result."""

    path: str
    nodes: int | None = None
    ops: dict[str, int] = {}
    valid: bool = False
    equal: bool = False
    error: float | None = None
    failure: str = ""
    note: str = ""
    """Of a difference that the source's own rounding noise allows."""
    compared: int = 0
    """Assignments of the dynamic dims."""


def judge_all(source: Path, results: Mapping[str, Path], rows: Mapping[str, Row], *, limit_s: float) -> int:
    """Fill in nodes, valid, equal, error, failure of the rows; how many assignments were compared at most.

    Args:
        source: what they must be equal to.
        results: paths by tool.
        rows: by tool.
        limit_s: seconds for all of them; a crash costs the result at fault, and the rest goes on.
    """
    waiting, compared = dict(results), 0
    while waiting:
        paths = [str(path) for path in waiting.values()]
        ended = run(module("burnish.benchmarks.optimize.judge", str(source), *paths), limit_s=limit_s)
        found = {each.path: each for each in ended.answers(Judgement)}
        for tool in [tool for tool, path in waiting.items() if str(path) in found]:
            judgement = found[str(waiting.pop(tool))]
            _enter(judgement, rows[tool])
            compared = max(compared, judgement.compared)
        if waiting:
            tool = next(iter(waiting))
            rows[tool].failure = f"judging it: {ended.failure or 'no answer'}"
            del waiting[tool]
    return compared


def _enter(found: Judgement, row: Row) -> None:
    row.nodes, row.ops, row.valid, row.equal = found.nodes, found.ops, found.valid, found.equal
    row.error, row.failure, row.note = found.error, found.failure, found.note


def main(source: str, *results: str) -> None:
    """Judge each result."""
    original = open_source(source)
    checker = DifferentialChecker(original.manifest)
    for path in results:
        found = Judgement(path)
        try:
            _judge(found, original.model, checker)
        except Exception as error:  # noqa: BLE001 - whatever it is, the row says it
            found.failure = f"{type(error).__name__}: {' '.join(str(error).split())}"[:_KEPT]
        print(msgspec.json.encode(found).decode(), flush=True)


def _judge(found: Judgement, original: ir.Model, checker: DifferentialChecker) -> None:
    _load(found.path)
    found.valid = True
    result = ir.load(found.path)
    found.nodes, found.ops = node_count(result), histogram(result)
    numerics = Numerics.ROUNDING.on(original)
    verdict = checker(original, result, numerics)
    found.compared, found.failure = len(verdict.assignments), " ".join(verdict.failure.split())[:_KEPT]
    if not verdict.failure:
        found.error = verdict.difference.max_rel
        found.equal, found.note = verdict.keeps(numerics), "; ".join(verdict.notes(numerics))
    if not found.equal and not found.failure:
        found.failure = f"differs at {verdict.difference.name} ({_sizes(verdict.failed_at)})"


def _sizes(assignment: Mapping[str, int] | None) -> str:
    return ", ".join(f"{name}={size}" for name, size in (assignment or {}).items()) or "fixed sizes"


def _load(path: str) -> None:
    """In onnxruntime, which must have a kernel for every node."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main(*sys.argv[1:])
