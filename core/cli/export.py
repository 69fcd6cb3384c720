"""`burnish export`: a PyTorch model as ONNX, compared with PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import click

from burnish.cli.common import console, emit, json_option, parse_pairs

if TYPE_CHECKING:
    from rich.status import Status

    from burnish.artifact import Artifact
    from burnish.bundle import Bundle
    from burnish.manifest import Manifest, TensorSpec

_SHOWN: Final = 8  # inputs, outputs or sizes that are shown one by one


@click.command()
@click.argument("source")
@click.option("-o", "--output", required=True, type=click.Path(),
              help="An .onnx file, or a folder (an artifact).")  # fmt: skip
@click.option("--opset", type=click.IntRange(18, 24), default=20, show_default=True)
@click.option("--task", metavar="TASK",
              help="What a folder's model is for: text-generation, text2text-generation, fill-mask, "
                   "... (docs/exporting.md lists all); default: as config.json says.")  # fmt: skip
@click.option("--inputs", type=click.Path(exists=True, dir_okay=False), metavar="FILE.npz",
              help="Example inputs by parameter name, for a module out of a .pt file.")  # fmt: skip
@click.option("--dynamic", multiple=True, callback=parse_pairs, metavar="INPUT.AXIS=NAME",
              help="Name of an axis that varies (x.0=batch), for such a module.")  # fmt: skip
@click.option("--trust-code", is_flag=True,
              help="Load .pt, .pt2, .bin and folders with own code: this runs the code.")  # fmt: skip
@click.option("--weights", type=click.Choice(["float", "keep"]), default="float", show_default=True,
              help="Of a GGUF file: dequantised, or kept quantised where that is exact.")  # fmt: skip
@click.option("--all-logits", is_flag=True,
              help="Of a language model: logits of every token, not each row's last.")  # fmt: skip
@click.option("--decode-tokens", type=click.IntRange(1), metavar="N",
              help="Tokens to decode and compare [default: 64; 16 of very large models].")  # fmt: skip
@click.option("--dtype", type=click.Choice(["auto", "float32", "float16", "bfloat16"]), default="auto",
              show_default=True, help="Of the weights. auto: as stored, but float32 for bfloat16, which "
                                      "onnxruntime's CPU provider cannot run.")  # fmt: skip
@click.option("--dim", "dims", multiple=True, callback=parse_pairs, metavar="NAME=MIN:MAX",
              help="Range of a dynamic dim; leave MAX out for no bound (batch=1:).")  # fmt: skip
@click.option("--layers-once/--no-layers-once", default=True, show_default=True,
              help="Trace layers that are proven to be alike once.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random inputs.")
@json_option
def export(
    source: str, output: str, opset: int, task: str | None, inputs: str | None, dynamic: Mapping[str, str],
    trust_code: bool, weights: str, all_logits: bool, decode_tokens: int | None, dtype: str,
    dims: Mapping[str, str], layers_once: bool, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Export SOURCE to ONNX and prove that it computes what PyTorch computes.

    SOURCE is package.module:callable (imported with the current folder on the path; the callable returns
    (module, example inputs) or (module, example inputs, dynamic)), a Hugging Face folder, a GGUF file of
    the llama family, or an .onnx file, which is moved to the opset. It is run and compared with its export
    at several sizes of every dynamic dim.

    \b
    burnish export my_models:build -o model.onnx
    burnish export ./all-MiniLM-L6-v2 -o minilm.burnish --dim sequence=1:256
    burnish export SmolLM2-135M-Instruct.Q4_1.gguf -o smollm2.burnish
    burnish export model.gguf -o model.burnish --weights keep
    """
    ranges = {name: _range(name, text) for name, text in dims.items()}
    from burnish.api import export as run

    if trust_code:
        click.echo(f"--trust-code: loading {source} runs the code inside it, if there is any.", err=True)
    with console(as_json=True).status(f"Exporting {source}") as status:
        artifact = run(
            source, inputs, dynamic=_axes(dynamic), output=output, opset=opset, task=task, ranges=ranges,
            seed=seed, trust_code=trust_code, weights=weights, last_logits_only=not all_logits,
            decode_tokens=decode_tokens, dtype=dtype, layers_once=layers_once, tell=_teller(status),
        )  # fmt: skip
    if as_json:
        whole = _as_json(artifact.manifest)
        parts = {name: _as_json(each) for name, each in manifests_of(artifact).items() if name}
        emit({"output": output} | whole | ({"parts": parts} if parts else {}))
    before = "the model before" if source.lower().endswith(".onnx") else "PyTorch"
    _report(artifact, output, before, as_json=as_json)


def _as_json(manifest: Manifest) -> dict[str, object]:
    return {"inputs": manifest.inputs, "outputs": manifest.outputs, "dims": manifest.dims,
            "receipts": manifest.receipts}  # fmt: skip


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


def _report(made: Artifact | Bundle, output: str, before: str, *, as_json: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    for name, manifest in manifests_of(made).items():
        if name:
            table.add_row(Text(name, style="bold"))
        for title, text in _rows(manifest, before):
            table.add_row(title, Text(text))
    out = console(as_json=as_json)
    out.print(table)
    out.print(f"Written: {output}", soft_wrap=True)


def manifests_of(made: Artifact | Bundle) -> dict[str, Manifest]:
    """The manifest of each part by its name, and under an empty name that of the whole."""
    parts = {name: part.manifest for name, part in getattr(made, "parts", {}).items()}
    return parts | {"": made.manifest}


def _rows(manifest: Manifest, before: str) -> Iterator[tuple[str, str]]:
    for title, specs in (("input", manifest.inputs), ("output", manifest.outputs)):
        for spec in _few(specs):
            yield title, spec if isinstance(spec, str) else f"{spec.name}: {spec.dtype}[{_shape(spec)}]"
    for name, allowed in manifest.dims.items():
        if name.isidentifier():
            yield "dim", f"{name}: {allowed.min} to {allowed.max or 'any size'}"
    for receipt in manifest.receipts:
        if receipt.max_abs_error is not None:
            yield "nodes", str(receipt.nodes_after)
            where = _sizes(receipt.assignments)
            judge = before if receipt.step == "export" else "the model before"
            yield "largest error", f"{receipt.max_abs_error:.1e} against {judge}, at {where}"
        for note in receipt.notes:
            yield "decoded" if receipt.step == "decode" else "note", note


def _few(specs: Sequence[TensorSpec]) -> Iterator[TensorSpec | str]:
    """All of a few; of many (a cache) the first and how many more."""
    shown = specs if len(specs) <= _SHOWN else specs[: _SHOWN - 2]
    yield from shown
    if len(shown) < len(specs):
        yield f"... and {len(specs) - len(shown)} more, to {specs[-1].name}"


def _shape(spec: TensorSpec) -> str:
    return ", ".join(map(str, spec.shape or ()))


def _sizes(assignments: Sequence[Mapping[str, int]]) -> str:
    if len(assignments) > _SHOWN:
        dims = {name: sorted({each[name] for each in assignments}) for name in assignments[0]}
        spelt = "; ".join(f"{name} {', '.join(map(str, sizes))}" for name, sizes in dims.items())
        return f"{len(assignments)} combinations of {spelt}"
    return "; ".join(
        " × ".join(f"{name} {size}" for name, size in each.items()) or "its fixed sizes"
        for each in assignments
    )
