"""Many random graphs; blocks that are done are kept and not done again.

python -m burnish.benchmarks.random_graphs --first 0 --count 10000 --output build/random-graphs
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from burnish._version import __version__
from burnish.benchmarks.random_graphs.campaign import Found, Tally, as_npz, check_seeds
from burnish.files import write_file

_BLOCK: Final = 100


def _blocks(first: int, count: int) -> Iterator[range]:
    """The seeds, cut at the multiples of the block's size."""
    start = first
    while start < first + count:
        end = min((start // _BLOCK + 1) * _BLOCK, first + count)
        yield range(start, end)
        start = end


def keep(found: Found, folder: Path) -> Path:
    """Write a failure: the model, its inputs, and what is wrong."""
    step = found.step.partition("{")[0] or found.check.replace(" ", "-")
    path = folder / f"{found.seed}-{step}.onnx"
    folder.mkdir(parents=True, exist_ok=True)
    write_file(path, found.model)
    write_file(path.with_suffix(".npz"), as_npz(found.feeds))
    return path


def _done(tally: Tally, folder: Path) -> dict[str, Any]:
    failures = [
        {
            "seed": found.seed, "check": found.check, "kind": found.failure.kind, "pass": found.step,
            "detail": found.failure.detail, "oracle": found.failure.oracle,
            "model": str(keep(found, folder)),
        }
        for found in tally.found
    ]  # fmt: skip
    return {"counts": dict(tally.counts), "notes": dict(tally.notes), "failures": failures}


@click.command()
@click.option("--first", type=int, default=0, show_default=True, help="The first graph's number.")
@click.option("--count", type=int, default=10_000, show_default=True, help="How many graphs.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("build/random-graphs"), show_default=True
)
@click.option("--force", is_flag=True, help="Do again what is done.")
def main(first: int, count: int, output: Path, force: bool) -> None:
    """Generate graphs, optimise them and judge the results; the exit status is 1 where one is wrong."""
    from rich.console import Console

    console, counts, notes = Console(), Counter[str](), Counter[str]()
    failures: list[dict[str, Any]] = []
    (output / "done").mkdir(parents=True, exist_ok=True)
    for seeds in _blocks(first, count):
        path = output / "done" / f"{__version__}-{seeds.start}-{seeds.stop}.json"
        if force or not path.exists():
            with console.status(f"graphs {seeds.start:,} to {seeds.stop - 1:,}; {len(failures)} failures"):
                done = _done(check_seeds(seeds), output / "failures")
            write_file(path, (json.dumps(done, indent=1) + "\n").encode())
        block = json.loads(path.read_text(encoding="utf-8"))
        counts.update(block["counts"])
        notes.update(block["notes"])
        failures += block["failures"]
    for name, number in counts.items():
        console.print(f"{number:>9,} {name}", highlight=False)
    for note, number in notes.items():
        console.print(f"{number:>9,} told apart: {note}", highlight=False)
    for failure in failures:
        guilty = failure["pass"] or failure["check"]
        console.print(
            f"graph {failure['seed']}: {guilty}: {failure['kind']}: {failure['detail']}", markup=False
        )
        console.print(f"  {failure['model']}", markup=False)
    console.print(f"{len(failures)} failures in {counts['graphs']:,} graphs")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
