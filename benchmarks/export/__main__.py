"""`python -m burnish.benchmarks.export`: what `make bench-export` runs."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from burnish.benchmarks.export.job import Request, Row
from burnish.benchmarks.export.sweep import read_rows, sweep

EXPORTERS: Final = ("burnish", "torch", "transformers", "optimum")
_RESULTS: Final = Path("benchmarks/results")
_COLOURS: Final = {"right": "green", "wrong": "red", "failed": "yellow", "left out": "dim"}


@click.command()
@click.option("--only", multiple=True, metavar="PATTERN", help="Cases to run, such as 'bert*'; default: all.")
@click.option("--more", is_flag=True, help="All architectures of the zoo, not only the table's: hours.")
@click.option("--exporters", default=",".join(EXPORTERS), show_default=True)
@click.option("--peers", type=click.Path(path_type=Path), help="Python of the environment with optimum-onnx.")
@click.option("--jobs", default=2, show_default=True, help="Exports at a time.")
@click.option("--timeout", default=300.0, show_default=True, help="Seconds for one case of one exporter.")
@click.option("--force", is_flag=True, help="Do again what is done.")
@click.option("--failures", is_flag=True, help="Do again what is not right.")
@click.option("--rows", type=click.Path(path_type=Path), default=Path("build/bench-export.jsonl"),
              show_default=True, help="Where every result is kept as it comes.")  # fmt: skip
@click.option("--results", type=click.Path(path_type=Path), default=_RESULTS, show_default=True,
              help="Folder that gets export.json and export.md.")  # fmt: skip
def main(
    only: tuple[str, ...], more: bool, exporters: str, peers: Path | None, jobs: int, timeout: float,
    force: bool, failures: bool, rows: Path, results: Path,
) -> None:  # fmt: skip
    """Export small random models of every architecture by every exporter, and judge what comes out.

    Results are kept as they come; what is done is not done again, so that a run may be interrupted. The
    report is written from all results at the end.
    """
    from burnish.benchmarks.export.cases import chosen
    from burnish.benchmarks.export.report import write_report

    human = Console(stderr=True)
    rows.parent.mkdir(parents=True, exist_ok=True)
    done = {} if force else read_rows(rows)
    python = str(peers.absolute()) if peers else None
    wanted = [
        Request(case, exporter, timeout, python)
        for exporter in exporters.split(",")
        for case in chosen(only, more=more)
        if _due(done.get((case, exporter)), failures=failures)
    ]
    _run(wanted, rows, jobs, human)
    write_report(read_rows(rows), results, chosen((), more=more))
    human.print(f"Written: export.json and export.md in {results}", highlight=False)


def _due(row: Row | None, *, failures: bool) -> bool:
    return row is None or (failures and row.status in ("wrong", "failed"))


def _run(wanted: list[Request], rows: Path, jobs: int, human: Console) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=human, transient=True) as bar:
        task = bar.add_task("Exporting", total=len(wanted))

        def done(row: Row) -> None:
            bar.advance(task)
            colour = _COLOURS[row.status]
            bar.console.print(
                f"[{colour}]{row.status:8}[/] {row.exporter:12} {row.case:44} {row.seconds or 0:6.1f} s  ",
                row.failure[:160], sep="", highlight=False, markup=True,
            )  # fmt: skip

        sweep(wanted, rows, jobs=jobs, done=done)


if __name__ == "__main__":
    main()
