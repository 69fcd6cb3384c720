"""`burnish calibrate-costs`: measure which operators are faster on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from burnish.cli.common import console, emit, json_option, progress
from burnish.target import TARGETS

if TYPE_CHECKING:
    from burnish.calibrating import Calibration, Change


@click.command()
@click.option("-t", "--target", type=click.Choice(list(TARGETS)), default="cpu", show_default=True)
@click.option("--only", metavar="PATTERN", help="Operators to measure, such as '*LayerNormalization'.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.0),
    help="Stop after these; the next call goes on.  [default: none]",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Of the sessions.  [default: physical cores within the cgroup's limit]",
)
@click.option("--again", is_flag=True, help="Measure what the table knows already, too.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The table to write.  [default: costs.json in $BURNISH_CACHE or ~/.cache/burnish]",
)
@json_option
def calibrate_costs(
    target: str,
    *,
    only: str | None,
    seconds: float | None,
    threads: int | None,
    again: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure fused operators against other ways to write them, and keep the results in a cost table.

    `burnish optimize` and `burnish quantize` go by that table where it decides, and time only the rest. A
    table ships with burnish; what is measured here wins over it. It holds for this class of machines, this
    number of threads and this release of onnxruntime. All of it takes about ten minutes; what is measured is
    kept as it comes, so the command may be stopped and called again.

    \b
    burnish calibrate-costs
    burnish calibrate-costs --only 'Skip*' --seconds 60
    """
    from burnish.calibrating import calibrate_costs as calibrate

    with progress() as tell:
        result = calibrate(
            target, only=only, seconds=seconds, threads=threads, again=again, output=output, progress=tell
        )
    _show(result, as_json=as_json)
    if as_json:
        emit(result)


def _show(result: Calibration, *, as_json: bool) -> None:
    out, run = console(as_json=as_json), result.run
    out.print(_table(result))
    for change in result.changed:
        out.print(f"Not as shipped: {_changed(change)}", soft_wrap=True)
    for line in result.failed:
        out.print(f"Not measured: {line}", soft_wrap=True)
    left = f", {result.left} sizes left for the next call" if result.left else ""
    out.print(f"{result.measured} measured, {result.known} known before{left}.")
    where = f"{run.target}, {run.machine}, onnxruntime {run.onnxruntime} ({run.cpu})"
    out.print(f"Written: {result.path}: {len(run.costs)} costs for {where}", soft_wrap=True)


def _table(result: Calibration) -> object:
    """One line for each form: at how many sizes it wins, and by how much."""
    from rich.table import Table

    from burnish.calibrating import summaries

    table = Table(box=None, pad_edge=False)
    table.add_column("operator", overflow="fold", min_width=16)
    table.add_column("against", overflow="fold", min_width=12)
    for name in ("sizes", "faster", "slower", "even", "median", "best", "worst"):
        table.add_column(name, justify="right")
    for summary in summaries(result.run):
        op = summary.op.removeprefix("com.microsoft::")
        variant = f" ({summary.variant})" if summary.variant else ""
        counts = (summary.sizes, summary.faster, summary.slower, summary.even)
        speeds = (f"{speed:.2f}×" for speed in (summary.median, summary.best, summary.worst))
        table.add_row(f"{op}{variant}", summary.instead, *map(str, counts), *speeds)
    return table


def _changed(change: Change) -> str:
    form = change.form
    variant = f" ({form.variant})" if form.variant else ""
    sizes = "×".join(map(str, form.size))
    return f"{form.op}{variant} {sizes}: {change.now} the time of {form.instead}; shipped: {change.shipped}"
