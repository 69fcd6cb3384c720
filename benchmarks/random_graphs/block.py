"""A block of graphs in a process of its own, as one may end onnxruntime's: that is a finding, not an end.

`python -m burnish.benchmarks.random_graphs.block FOLDER SEED …` prints a JSON line a graph; with `--source`
in place of the folder, the graphs are run as they are, and nothing is made of them.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from burnish.benchmarks.optimize.children import module, run
from burnish.benchmarks.random_graphs.campaign import Found, Tally, as_npz, check_seed
from burnish.benchmarks.random_graphs.examine import Failure
from burnish.benchmarks.random_graphs.generate import SIZES, generate
from burnish.benchmarks.random_graphs.oracles import cases, onnxruntime
from burnish.errors import ModelError
from burnish.files import write_file

_LIMIT_S: Final = 60.0  # for each graph of a block
_SOURCE: Final = "--source"
_NAME: Final = "burnish.benchmarks.random_graphs.block"


class Done(msgspec.Struct):
    """What was done with some graphs."""

    seeds: list[int] = []
    counts: dict[str, int] = {}
    notes: dict[str, int] = {}
    failures: list[dict[str, Any]] = []


def check_block(seeds: Sequence[int], folder: Path) -> Done:
    """Ask everything of those graphs; a process that dies costs the graph at fault, and the rest goes on.

    Args:
        seeds: the graphs.
        folder: for the models of failures.
    """
    waiting, parts = list(seeds), list[Done]()
    while waiting:
        names = map(str, waiting)
        ended = run(module(_NAME, str(folder), *names), limit_s=_LIMIT_S * len(waiting))
        answers = list(ended.answers(Done))
        parts += answers
        for answer in answers:
            waiting.remove(answer.seeds[0])
        if waiting:
            parts.append(_dead(waiting.pop(0), ended.failure, folder))
    return _together(parts)


def _dead(seed: int, why: str, folder: Path) -> Done:
    """A graph at which the process died: burnish's fault, if the graph alone does not do that."""
    alone = run(module(_NAME, _SOURCE, str(seed)), limit_s=_LIMIT_S)
    if alone.failure:
        note = f"graph {seed} itself ends onnxruntime's process: {alone.failure}"
        return Done([seed], {"graphs": 1}, {note: 1})
    tally = Tally(Counter(graphs=1))
    tally.found.append(Found(seed, "all of it", Failure("crash", why), model=generate(seed).model))
    return _done(seed, tally, folder)


def _together(parts: Sequence[Done]) -> Done:
    counts, notes = Counter[str](), Counter[str]()
    for part in parts:
        counts.update(part.counts)
        notes.update(part.notes)
    return Done(
        [seed for part in parts for seed in part.seeds], dict(counts), dict(notes),
        [failure for part in parts for failure in part.failures],
    )  # fmt: skip


def _done(seed: int, tally: Tally, folder: Path) -> Done:
    failures = [
        {
            "seed": found.seed, "check": found.check, "kind": found.failure.kind, "pass": found.step,
            "detail": found.failure.detail, "oracle": found.failure.oracle,
            "model": str(keep(found, folder)),
        }
        for found in tally.found
    ]  # fmt: skip
    return Done([seed], dict(tally.counts), dict(tally.notes), failures)


def keep(found: Found, folder: Path) -> Path:
    """Write a failure: the model, its inputs, and what is wrong."""
    step = found.step.partition("{")[0] or found.check.replace(" ", "-")
    path = folder / f"{found.seed}-{step}.onnx"
    folder.mkdir(parents=True, exist_ok=True)
    write_file(path, found.model)
    write_file(path.with_suffix(".npz"), as_npz(found.feeds))
    return path


def check_one(seed: int, folder: Path) -> Done:
    """Ask everything of one graph, in this process."""
    tally = Tally()
    check_seed(seed, tally)
    return _done(seed, tally, folder)


def run_source(seed: int) -> None:
    """Run a graph on the inputs that it is judged on, and make nothing of it."""
    model = generate(seed).model
    with contextlib.suppress(ModelError):
        run_as_is = onnxruntime(model)
        cases(run_as_is, model, SIZES, seed)
        cases(run_as_is, model, SIZES[:2], seed, special=True)


def main(folder: str, *seeds: str) -> None:
    """Print a line for each graph; or only run each as it is."""
    for seed in map(int, seeds):
        if folder == _SOURCE:
            run_source(seed)
        else:
            print(msgspec.json.encode(check_one(seed, Path(folder))).decode(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
