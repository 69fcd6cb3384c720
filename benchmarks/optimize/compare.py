"""One model by every tool: optimised, judged, timed, each step in processes of their own."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import final

from burnish.benchmarks.optimize.judge import judge_all
from burnish.benchmarks.optimize.making import MakingError, file_bytes, made, sizes_of
from burnish.benchmarks.optimize.rows import SOURCE, Result, Row
from burnish.benchmarks.optimize.stopwatch import time_all
from burnish.benchmarks.optimize.table import Subject
from burnish.benchmarks.optimize.tools import ALONE, OURS, PEERS, optimise

Tell = Callable[[str], None]


@final
@dataclasses.dataclass(frozen=True)
class Settings:
    """How to compare."""

    output: Path
    """Folder of the models and, while they are needed, of the results."""
    python: Path | None = None
    """Of the peers' environment; None: burnish alone."""
    limit_s: float = 900.0
    """Of any one step; a tool that takes longer has failed."""
    seconds: float = 40.0
    """To time all results of one model."""
    target: str = "cpu"
    """What burnish optimises for, and where all results are timed."""
    jobs: int = 1
    """Tools that work at the same time: more than one spoils what they cost."""

    @property
    def tools(self) -> tuple[str, ...]:
        """Who takes part."""
        return (*PEERS, *OURS) if self.python is not None else OURS


def compare(subject: Subject, settings: Settings, tell: Tell = lambda _: None) -> Result:
    """Make the model, let every tool optimise it, judge and time what comes out.

    Args:
        subject: which model.
        settings: how.
        tell: is told what is being done.
    """
    result = Result(subject.name, subject.family, target=settings.target)
    try:
        tell("making the model")
        source = made(subject, settings.output / "models", limit_s=2 * settings.limit_s)
    except MakingError as error:
        result.failure = str(error)
        return result
    result.size = file_bytes(source)
    work = settings.output / "work" / subject.name
    shutil.rmtree(work, ignore_errors=True)
    try:
        _compare(result, subject, source, work, settings, tell)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return result


def _compare(result: Result, subject: Subject, source: Path, work: Path, settings: Settings,
             tell: Tell) -> None:  # fmt: skip
    sizes = sizes_of(subject, source)
    paths, rows = {SOURCE: source}, {SOURCE: Row(SOURCE)}
    for tool in settings.tools:
        # A folder each: what lies beside a result (its data, its sidecar) is its own.
        folder = work / re.sub(r"\W+", "-", tool)
        folder.mkdir(parents=True)
        paths[tool] = folder / "model.onnx"

    def optimised(tool: str) -> Row:
        tell(tool)
        return optimise(
            tool, source, paths[tool], sizes=sizes, ort_type=subject.ort_type, python=settings.python,
            limit_s=settings.limit_s, target=settings.target,
        )  # fmt: skip

    with ThreadPoolExecutor(settings.jobs) as pool:
        rows |= zip(settings.tools, pool.map(optimised, settings.tools), strict=True)
    result.rows = list(rows.values())
    tell("judging")
    there = {tool: path for tool, path in paths.items() if not rows[tool].failure}
    result.compared = judge_all(source, there, rows, limit_s=settings.limit_s)
    if not rows[SOURCE].right:
        result.failure = f"the source: {rows[SOURCE].failure}"
        return
    tell("timing")
    runnable = {tool: path for tool, path in there.items() if rows[tool].right and tool != ALONE}
    time_all(
        runnable, result, sizes=sizes, seconds=settings.seconds, limit_s=settings.limit_s,
        target=settings.target,
    )  # fmt: skip
