"""`burnish export`: a PyTorch model as ONNX, compared with PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import click

from burnish.cli.common import console, emit, json_option, parse_pairs

if TYPE_CHECKING:
    from rich.status import Status

    from burnish.artifact import Artifact


@click.command()
@click.argument("source")
@click.option("-o", "--output", required=True, type=click.Path(),
              help="An .onnx file, or a folder (an artifact).")  # fmt: skip
@click.option("--opset", type=click.IntRange(18, 24), default=20, show_default=True)
@click.option("--task", metavar="TASK",
              help="What a folder's model is for; default: as config.json says.")  # fmt: skip
@click.option("--inputs", type=click.Path(exists=True, dir_okay=False), metavar="FILE.npz",
              help="Example inputs by parameter name, for a module out of a .pt file.")  # fmt: skip
@click.option("--dynamic", multiple=True, callback=parse_pairs, metavar="INPUT.AXIS=NAME",
              help="Name of an axis that varies (x.0=batch), for such a module.")  # fmt: skip
@click.option("--trust-code", is_flag=True,
              help="Load .pt, .pt2, .bin and folders with own code: this runs the code.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["auto", "float32", "float16", "bfloat16"]), default="auto",
              show_default=True, help="Of the weights. auto: as stored, but float32 for bfloat16, which "
                                      "onnxruntime's CPU provider cannot run.")  # fmt: skip
@click.option("--dim", "dims", multiple=True, callback=parse_pairs, metavar="NAME=MIN:MAX",
              help="Range of a dynamic dim; leave MAX out for no bound (batch=1:).")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random inputs.")
@json_option
def export(
    source: str, output: str, opset: int, task: str | None, inputs: str | None, dynamic: Mapping[str, str],
    trust_code: bool, dtype: str, dims: Mapping[str, str], seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Export SOURCE to ONNX and prove that it computes what PyTorch computes.

    SOURCE is package.module:callable (imported with the current folder on the path; the callable returns
    (module, example inputs) or (module, example inputs, dynamic)), a Hugging Face folder, or an .onnx file,
    which is moved to the opset. It is run and compared with its export at several sizes of every dynamic dim.

    \b
    burnish export my_models:build -o model.onnx
    burnish export ./all-MiniLM-L6-v2 -o minilm.burnish --dim sequence=1:256
    """
    ranges = {name: _range(name, text) for name, text in dims.items()}
    from burnish.api import export as run

    if trust_code:
        click.echo(f"--trust-code: loading {source} runs the code inside it, if there is any.", err=True)
    with console(as_json=True).status(f"Exporting {source}") as status:
        artifact = run(
            source, inputs, dynamic=_axes(dynamic), output=output, opset=opset, task=task, ranges=ranges,
            seed=seed, trust_code=trust_code, dtype=dtype, tell=_teller(status),
        )  # fmt: skip
    if as_json:
        emit({"output": output, "inputs": artifact.manifest.inputs, "outputs": artifact.manifest.outputs,
              "dims": artifact.manifest.dims, "receipts": artifact.manifest.receipts})  # fmt: skip
    _report(artifact, output, as_json=as_json)


def _range(name: str, text: str) -> tuple[int, int | None]:
    low, colon, high = text.partition(":")
    if not (colon and low.isdecimal() and (high.isdecimal() or not high)):
        raise click.BadParameter(f"{name}={text} is not NAME=MIN:MAX.", param_hint="--dim")
    return int(low), int(high) if high else None


def _teller(status: Status) -> Callable[[str], None]:
    """Prints a line for each stage of the work, with the seconds since the start."""
    start = time.perf_counter()

    def tell(text: str) -> None:
        status.console.print(f"{time.perf_counter() - start:6.0f} s  {text}", style="dim")

    return tell


def _axes(named: Mapping[str, str]) -> dict[str, dict[int, str]] | None:
    found: dict[str, dict[int, str]] = {}
    for place, name in named.items():
        given, dot, axis = place.rpartition(".")
        if not (dot and given and axis.isdecimal()):
            raise click.BadParameter(f"{place}={name} is not INPUT.AXIS=NAME.", param_hint="--dynamic")
        found.setdefault(given, {})[int(axis)] = name
    return found or None


def _report(artifact: Artifact, output: str, *, as_json: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    manifest = artifact.manifest
    for title, specs in (("input", manifest.inputs), ("output", manifest.outputs)):
        for spec in specs:
            shape = ", ".join(map(str, spec.shape or ()))
            table.add_row(title, Text(f"{spec.name}: {spec.dtype}[{shape}]"))
    dims = {name: range_ for name, range_ in manifest.dims.items() if name.isidentifier()}
    for name, allowed in dims.items():
        table.add_row("dim", f"{name}: {allowed.min} to {allowed.max or 'any size'}")
    receipt = manifest.receipts[0]
    sizes = "; ".join(
        " × ".join(f"{name} {size}" for name, size in assignment.items()) or "its fixed sizes"
        for assignment in receipt.assignments
    )
    table.add_row("nodes", str(receipt.nodes_after))
    table.add_row("largest error", f"{receipt.max_abs_error:.1e} against PyTorch, at {sizes}")
    for note in receipt.notes:
        table.add_row("note", Text(note))
    out = console(as_json=as_json)
    out.print(table)
    out.print(f"Written: {output}", soft_wrap=True)
