"""`python -m burnish.benchmarks.demo`: what `make demo` runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.panel import Panel

from burnish.errors import BurnishError

# torch's workers otherwise spin on after a run, into the run of whoever is next; so many turns last from one
# operator to the next, and torch alone is as fast as before (measured: 23.9 ms with, 25.2 without).
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

DEMOS: Final = ("minilm", "digits")
_WIDTH: Final = 110


@click.command()
@click.option("--demo", type=click.Choice(DEMOS), default="minilm", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=Path("build/demo"), show_default=True,
              help="Gets the artifacts and report.json.")  # fmt: skip
@click.option("--runs", type=click.IntRange(4), default=100, show_default=True,
              help="How often each is timed.")  # fmt: skip
def main(demo: str, output: Path, runs: int) -> None:
    """Export a real model from PyTorch, optimise it, make it int8, and measure all of it."""
    human = Console(stderr=True, soft_wrap=True)
    try:
        _run(demo, output, runs, human)
    except BurnishError as error:
        human.print(f"[bold red]Error:[/] {error.what}\n{error.hint}", highlight=False)
        raise SystemExit(1) from error


def _run(demo: str, output: Path, runs: int, human: Console) -> None:
    # torch takes seconds to import: --help and a wrong option answer first.
    from burnish.benchmarks.demo import digits, minilm, report
    from burnish.benchmarks.demo.job import Job, Stages, run_job
    from burnish.benchmarks.demo.progress import Display
    from burnish.benchmarks.kit import KitError

    makers: dict[str, Callable[[Stages], Job]] = {"minilm": minilm.make_job, "digits": digits.make_job}
    fallback, machine = "", report.machine()
    with Display(human) as stages:
        try:
            job = makers[demo](stages)
        except KitError as error:
            fallback = error.what
            human.print(_instead(error))
            job = digits.make_job(stages)
        rows = run_job(job, output, stages, runs=runs)
    made = report.Report(
        rows, machine, report.all_versions(), job.name, job.shape, job.data,
        sum(len(batch.labels) for batch in job.held_out), stages.seconds,
        tuple(job.keep.reused), report.promises(rows) if job.name == "minilm" else {}, fallback,
    )  # fmt: skip
    report.write(made, output / "report.json")
    report.show(made, _wide())
    human.print(f"Artifacts and report.json are in {output}", highlight=False)


def _wide() -> Console:
    """stdout; wide enough for the table where it is not a terminal."""
    out = Console()
    return out if out.is_terminal else Console(width=max(out.width, _WIDTH))


def _instead(error: BurnishError) -> Panel:
    text = (
        f"[bold]The real model cannot be fetched.[/bold]\n{error.what}\n{error.hint}\n\n"
        "What follows is the same job on a SMALL net trained here on scikit-learn's digits."
    )
    return Panel(text, title="NOT MiniLM", border_style="yellow")


if __name__ == "__main__":
    main()
