"""The tools: each optimises a model in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from burnish.benchmarks.optimize import peer_runner
from burnish.benchmarks.optimize.children import module, run, script
from burnish.benchmarks.optimize.rows import Row
from burnish.benchmarks.optimize.self_runner import WAYS

PEERS: Final = tuple(peer_runner.TOOLS)
OURS: Final = tuple(WAYS)
ALONE: Final = OURS[-1]
"""What it makes is what is made with checking; it is not timed."""


class Cost(msgspec.Struct):
    """What a run of a tool says of itself."""

    seconds: float
    peak_mb: float


def optimise(
    tool: str, source: Path, output: Path, *, sizes: Mapping[str, int], ort_type: str, python: Path | None,
    limit_s: float, target: str = "cpu",
) -> Row:  # fmt: skip
    """Let one tool make `output` of `source`; the row says what it cost, or why there is no output.

    Args:
        tool: one of `PEERS` or `OURS`.
        source: the model.
        output: where the result goes.
        sizes: of dynamic dims, for burnish, which measures at them.
        ort_type: what onnxruntime's Python optimiser is told.
        python: of the peers' environment; only peers need it.
        limit_s: seconds after which the tool is killed.
        target: what burnish optimises for; peers know none.
    """
    if tool in WAYS:
        given = msgspec.json.encode(dict(sizes)).decode()
        own = "burnish.benchmarks.optimize.self_runner"
        command = module(own, tool, str(source), str(output), given, target)
    elif python is None:
        return Row(tool, failure="not installed: give its Python with --peers")
    else:
        command = script(python, peer_runner.__file__, tool, str(source), str(output), ort_type)
    ended = run(command, limit_s=limit_s)
    cost = next(ended.answers(Cost), None)
    if ended.failure or cost is None:
        return Row(tool, failure=ended.failure or "said nothing")
    if not output.is_file():
        return Row(tool, failure="wrote no model")
    return Row(tool, seconds=cost.seconds, peak_mb=cost.peak_mb)
