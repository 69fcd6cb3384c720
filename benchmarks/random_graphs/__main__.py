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
import msgspec

from burnish._version import __version__
from burnish.benchmarks.random_graphs.block import check_block
from burnish.files import write_file

_BLOCK: Final = 100


def _blocks(first: int, count: int) -> Iterator[range]:
    """The seeds, cut at the multiples of the block's size."""
    start = first
    while start < first + count:
        end = min((start // _BLOCK + 1) * _BLOCK, first + count)
        yield range(start, end)
        start = end


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
                done = check_block(seeds, output / "failures")
            write_file(path, msgspec.json.format(msgspec.json.encode(done), indent=1) + b"\n")
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
