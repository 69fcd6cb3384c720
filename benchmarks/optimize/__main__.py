"""`python -m burnish.benchmarks.optimize`: what `make bench-optimize` and `make bench` run."""

from __future__ import annotations

import functools
import signal
import sys
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.status import Status

from burnish.benchmarks.optimize.compare import Settings, compare
from burnish.benchmarks.optimize.rows import Result, keep, read_results
from burnish.benchmarks.optimize.table import Subject
from burnish.target import TARGETS

_OUTPUT: Final = Path("build/bench-optimize")


@click.command()
@click.argument("models", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--only", multiple=True, metavar="PATTERN", help="Models of the table to compare on, such as 'ocr*'."
)
@click.option(
    "--peers", type=click.Path(path_type=Path), help="Python of an environment with requirements/peers.txt."
)
@click.option("--output", type=click.Path(path_type=Path), default=_OUTPUT, show_default=True,
              help="Folder of the exported models, which are made once.")  # fmt: skip
@click.option(
    "--rows", type=click.Path(path_type=Path), help="Where results are kept as they come [OUTPUT/rows.jsonl]."
)
@click.option(
    "--results", type=click.Path(path_type=Path), help="Folder that gets optimize.md and .json [OUTPUT]."
)
@click.option("--limit", default=900.0, show_default=True, help="Seconds after which a tool has failed.")
@click.option("--seconds", default=40.0, show_default=True, help="To time all results of one model.")
@click.option("-t", "--target", type=click.Choice(list(TARGETS)), default="cpu", show_default=True,
              help="What burnish optimises for, and where results are timed.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True,
              help="Tools at work at the same time; seconds are then no costs.")  # fmt: skip
@click.option("--force", is_flag=True, help="Do again what is done.")
def main(
    models: tuple[Path, ...], only: tuple[str, ...], peers: Path | None, output: Path, rows: Path | None,
    results: Path | None, limit: float, seconds: float, target: str, jobs: int, force: bool,
) -> None:  # fmt: skip
    """Optimise models by burnish and six others; compare nodes, correctness, speed and cost.

    On the table of real-size models, those of it that --only names, or MODELS (files). Each model's results
    are kept as they come, and what is done is not done again. The report is written from all results kept.
    """
    from burnish.benchmarks.optimize.report import write_report
    from burnish.benchmarks.optimize.table import chosen

    human = Console(stderr=True)
    kept = rows or output / "rows.jsonl"
    done = {} if force else read_results(kept)
    # A run that is ended ends the processes that it started too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    settings = Settings(output.absolute(), peers.absolute() if peers else None, limit, seconds, target, jobs)
    wanted = [each for each in chosen(only, models) if not _done(done.get(each.name), settings)]
    _run(wanted, settings, kept, human)
    folder = results or output
    write_report(read_results(kept), folder)
    human.print(f"Written: optimize.json and optimize.md in {folder}", highlight=False)


def _done(result: Result | None, settings: Settings) -> bool:
    """True where every tool that takes part has its row, or there is no model for any."""
    if result is None:
        return False
    return bool(result.failure) or all(result.row(tool) is not None for tool in settings.tools)


def _run(wanted: list[Subject], settings: Settings, kept: Path, human: Console) -> None:
    for number, subject in enumerate(wanted, start=1):
        with human.status("") as status:
            head = f"[{number}/{len(wanted)}] {subject.name}: "
            result = compare(subject, settings, functools.partial(_tell, status, head))
        keep(result, kept)
        _show(result)


def _tell(status: Status, head: str, step: str) -> None:
    status.update(head + step)


def _show(result: Result) -> None:
    from rich.table import Table

    from burnish.benchmarks.optimize.report import HEADS, cells

    table = Table(title=f"\n{result.model}", title_justify="left", box=None, pad_edge=False)
    for name in HEADS[:-1]:
        table.add_column(name, justify="left" if name == "tool" else "right", no_wrap=True)
    for row in result.rows:
        table.add_row(*cells(row)[:-1])
    console = Console(highlight=False, markup=False)
    console.print(table)
    for who, why in ((result.model, result.failure), *((row.tool, row.failure) for row in result.rows)):
        if why:
            console.print(f"{who}: {why}")


if __name__ == "__main__":
    main()
