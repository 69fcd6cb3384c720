"""`burnish bisect`: find the one rewrite that is wrong."""

from __future__ import annotations

import click

from burnish.cli.common import console, emit, json_option, parse_pairs, progress
from burnish.cli.rewriting import sizes_of
from burnish.target import TARGETS


@click.command()
@click.argument("model", type=click.Path())
@click.option("-r", "--recipe", metavar="TEXT|FILE", help="Passes in order (default: those of optimize).")
@click.option("--inputs", metavar="SAMPLES", help="An .npz file, or a folder of them: judge on these alone.")
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    metavar="NAME.onnx",
    help="Write the part before the rewrite; beside it NAME.after.onnx, NAME.npz and NAME.txt.",
)
@click.option("-t", "--target", type=click.Choice(list(TARGETS)), default="cpu", show_default=True)
@click.option(
    "--dim",
    multiple=True,
    callback=parse_pairs,
    metavar="NAME=N",
    help="Size of a dynamic dim to measure speed at, where passes do.",
)
@click.option("--measured/--no-measured", default=True, help="Whether passes may time alternatives.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random inputs.")
@json_option
def bisect(
    model: str, recipe: str | None, inputs: str | None, output: str | None, *, target: str,
    dim: dict[str, str], measured: bool, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Find the single rewrite of a recipe that changes a result of MODEL beyond what its pass promises.

    What is left of the model is a few nodes before the rewrite, the same after it, and the values that both
    start from: attach the files to a bug report. Exit status 1 when there is one, 0 when nothing differs.

    \b
    burnish bisect model.onnx
    burnish bisect model.onnx --recipe fold-constants,fuse-gelu --inputs feeds.npz --output bug.onnx
    """
    from burnish.bisecting import bisect as run

    with progress() as tell:
        found = run(
            model, recipe, inputs=inputs, output=output, target=target, measured=measured,
            typical=sizes_of(dim), seed=seed, progress=tell,
        )  # fmt: skip
    if as_json:
        emit({"differs": found is not None, "found": found})
    out = console(as_json=as_json)
    out.print("Nothing differs." if found is None else found.report, soft_wrap=True)
    if found is not None:
        click.get_current_context().exit(1)
