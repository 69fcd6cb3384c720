"""`burnish optimize`: rewrite a model by a recipe of checked passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from burnish.cli.common import emit, json_option, progress
from burnish.cli.rewriting import REWRITE_OPTIONS, report, sizes_of, with_options
from burnish.target import TARGETS

if TYPE_CHECKING:
    from burnish.explaining import Explanation


@click.command()
@click.argument("model", type=click.Path())
@click.option("-t", "--target", type=click.Choice(list(TARGETS)), default="cpu", show_default=True)
@with_options(REWRITE_OPTIONS)
@click.option("--explain", is_flag=True, help="Say for each layer what was fused, and what was not and why.")
@json_option
def optimize(model: str, target: str, output: str, *, explain: bool, as_json: bool, **options: Any) -> None:
    """Rewrite MODEL (an .onnx file or an artifact) and prove that it still computes the same.

    Plain .onnx in, plain .onnx out; or a folder out, which is an artifact with its receipts. Every pass is
    compared with the model before it, on several sizes of every dynamic dim; what is measured slower on
    this machine is taken back.

    \b
    burnish optimize model.onnx -o fast.onnx
    burnish optimize model.onnx -o fast.onnx --recipe fold-constants,fuse-attention
    burnish optimize model.onnx -o fast.onnx --explain
    """
    from burnish.api import optimize as run

    told: list[Explanation] = []
    with progress() as tell:
        _, receipts = run(
            model, target=target, output=output, return_receipts=True, progress=tell,
            typical=sizes_of(options.pop("dim")), explain=told.append if explain else None, **options,
        )  # fmt: skip
    if as_json:
        emit({"output": output, "receipts": receipts} | ({"explanation": told[0]} if told else {}))
    report(receipts, output, told[0] if told else None, as_json=as_json)
