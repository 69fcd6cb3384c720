"""`burnish quantize`: make a model int8, where that is measured faster."""

from __future__ import annotations

from typing import Any

import click

from burnish.cli.common import emit, json_option, progress
from burnish.cli.rewriting import REWRITE_OPTIONS, report, sizes_of, with_options
from burnish.target import TARGETS


@click.command()
@click.argument("model", type=click.Path())
@click.option(
    "--scheme",
    type=click.Choice(["static", "dynamic"]),
    default="static",
    show_default=True,
    help="static: ranges of activations come from --data; dynamic: from each input.",
)
@click.option("--data", metavar="SAMPLES", help="Calibration data: a file, a folder of files, or 'random'.")
@click.option(
    "--calibration",
    type=click.Choice(["minmax", "moving-average", "percentile", "entropy", "mse", "layerwise-percentile"]),
    default="minmax",
    show_default=True,
    help="How ranges are read from the data.",
)
@click.option(
    "--percent",
    type=float,
    default=99.999,
    show_default=True,
    help="Of values that --calibration percentile keeps.",
)
@click.option(
    "--memory-budget",
    metavar="BYTES",
    help="What calibration may have in memory, such as 500MB or 2GiB (default: most of what is free).",
)
@click.option(
    "--resume/--no-resume",
    default=True,
    help="Go on where a calibration that was interrupted stopped, or start again.",
)
@click.option("-t", "--target", type=click.Choice(list(TARGETS)), default="cpu", show_default=True)
@with_options(REWRITE_OPTIONS)
@json_option
def quantize(model: str, output: str, as_json: bool, **options: Any) -> None:
    """Make MODEL (an .onnx file or an artifact) int8, where that is measured faster than float.

    Each .npz file of SAMPLES holds one array for each input, by name; images, recordings and texts become
    what an artifact's own preprocessor or tokenizer makes of them. Layers that int8 does not make faster
    stay float, and the receipt says which and why.

    \b
    burnish quantize model.onnx -o int8.onnx --scheme static --data samples/
    burnish quantize model.onnx -o int8.onnx --scheme dynamic
    """
    from burnish.api import quantize as run

    with progress() as tell:
        _, receipts = run(
            model, output=output, return_receipts=True, progress=tell,
            typical=sizes_of(options.pop("dim")), **options,
        )  # fmt: skip
    if as_json:
        emit({"output": output, "receipts": receipts})
    report(receipts, output, as_json=as_json)
