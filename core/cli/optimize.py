"""`burnish optimize`: rewrite a model by a recipe of checked passes."""

from __future__ import annotations

from typing import Any

import click

from burnish.cli.common import emit, json_option, progress
from burnish.cli.rewriting import REWRITE_OPTIONS, report, sizes_of, with_options
from burnish.target import TARGETS


@click.command()
@click.argument("model", type=click.Path())
@click.option("-t", "--target", type=click.Choice(list(TARGETS)), default="cpu", show_default=True)
@with_options(REWRITE_OPTIONS)
@json_option
def optimize(model: str, target: str, output: str, as_json: bool, **options: Any) -> None:
    """Rewrite MODEL (an .onnx file or an artifact) and prove that it still computes the same.

    Plain .onnx in, plain .onnx out; or a folder out, which is an artifact with its receipts. Every pass is
    compared with the model before it, on several sizes of every dynamic dim; what is measured slower on
    this machine is taken back.

    \b
    burnish optimize model.onnx -o fast.onnx
    burnish optimize model.onnx -o fast.onnx --recipe fold-constants,fuse-attention
    """
    from burnish.api import optimize as run

    with progress() as tell:
        _, receipts = run(
            model, target=target, output=output, return_receipts=True, progress=tell,
            typical=sizes_of(options.pop("dim")), **options,
        )  # fmt: skip
    if as_json:
        emit({"output": output, "receipts": receipts})
    report(receipts, output, as_json=as_json)
