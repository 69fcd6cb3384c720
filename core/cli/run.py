"""`burnish run`: run a model once."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from burnish.cli.common import console, emit, json_option, parse_pairs
from burnish.cli.rewriting import sizes_of

if TYPE_CHECKING:
    import numpy as np

    from burnish.manifest import Manifest, TensorSpec


@click.command()
@click.argument("model", type=click.Path())
@click.option(
    "-i",
    "--input",
    "inputs",
    multiple=True,
    callback=parse_pairs,
    metavar="NAME=FILE.npy|random",
    help="An input's array; inputs that are not given are random.",
)
@click.option("-o", "--output", type=click.Path(), help="Folder for the outputs, one NAME.npy each.")
@click.option(
    "-p",
    "--provider",
    default="cpu",
    show_default=True,
    help="cpu, openvino, cuda, tensorrt: that one or an error. auto: the first that works.",
)
@click.option(
    "--dim",
    "dims",
    multiple=True,
    callback=parse_pairs,
    metavar="NAME=N",
    help="Size of a dynamic dim of random inputs.  [default: batch 1, others 128]",
)
@click.option(
    "-t",
    "--threads",
    type=click.IntRange(min=1),
    help="Intra-op threads.  [default: physical cores within the cgroup's limit]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random inputs.")
@json_option
def run(
    model: str,
    *,
    inputs: dict[str, str],
    output: str | None,
    provider: str,
    dims: dict[str, str],
    threads: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """Run MODEL once, on given arrays or on random ones that respect what each input means.

    \b
    burnish run model.onnx --dim sequence=16
    burnish run model.burnish --input input_ids=ids.npy -o outputs
    """  # fmt: skip
    from burnish.runtime.session import Session
    from burnish.sources import open_artifact

    artifact = open_artifact(Path(model))
    feeds = _feeds(artifact.manifest, inputs, sizes_of(dims), seed)
    with Session(artifact, provider, threads=threads) as session:
        found = session(feeds)
        choice = session.choice
    files = _write(found, Path(output)) if output is not None else {}
    rows = [_facts(name, array, files.get(name)) for name, array in found.items()]
    _show(rows, feeds, choice.provider, choice.why, as_json=as_json)
    if as_json:
        shapes = {name: list(array.shape) for name, array in feeds.items()}
        emit({"provider": choice.provider, "why": choice.why, "inputs": shapes, "outputs": rows})


def _feeds(
    manifest: Manifest, inputs: Mapping[str, str], sizes: dict[str, int], seed: int
) -> dict[str, np.ndarray]:
    """The given arrays; random ones for the rest, at sizes that agree with the given ones."""
    from burnish.errors import InputError, nearest
    from burnish.feeds import make_feeds, typical_sizes

    specs = {spec.name: spec for spec in manifest.inputs}
    given = {}
    for name, file in inputs.items():
        if name not in specs:
            raise InputError(f"The model has no input {name!r}.", nearest(name, specs), code="INPUT_UNKNOWN")
        if file != "random":
            given[name] = _read(name, Path(file))
    rest = [spec for spec in manifest.inputs if spec.name not in given]
    if not rest:
        return given
    known = _sizes_in([specs[name] for name in given], given)
    wanted = {dim: size for dim, size in known.items() if any(dim in (s.shape or ()) for s in rest)}
    random = make_feeds(rest, typical_sizes(rest, manifest.dims, given=wanted | sizes), seed=seed)
    return {name: given[name] if name in given else random[name] for name in specs}


def _sizes_in(specs: list[TensorSpec], arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The sizes of named dims in the given arrays; an array of the wrong rank is left to the session."""
    return {
        dim: size
        for spec in specs
        for dim, size in zip(spec.shape or (), arrays[spec.name].shape, strict=False)
        if isinstance(dim, str)
    }


def _read(name: str, file: Path) -> np.ndarray:
    import numpy as np

    from burnish.errors import InputError

    try:
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"Input {name!r} cannot be read from {str(file)!r}: {error}.",
            "Give a file that numpy.save wrote, or `random`.",
            code="INPUT_FILE",
        ) from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise InputError(
            f"{str(file)!r} holds several arrays.",
            f"Give one .npy file for input {name!r}.",
            code="INPUT_FILE",
        )
    return array


def _write(arrays: Mapping[str, np.ndarray], folder: Path) -> dict[str, str]:
    """Write NAME.npy each; what a file name cannot hold becomes `_`."""
    import numpy as np

    from burnish.errors import OutputError
    from burnish.files import write_file

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"The folder {str(folder)!r} cannot be made: {error.strerror}.", "Give another folder."
        ) from error
    files: dict[str, str] = {}
    for number, (name, array) in enumerate(arrays.items()):
        safe = re.sub(r"[^\w.-]", "_", name).lstrip(".") or f"output_{number}"
        path = folder / f"{safe}.npy"
        if str(path) in files.values():
            path = folder / f"{safe}_{number}.npy"
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        write_file(path, buffer.getvalue())
        files[name] = str(path)
    return files


def _facts(name: str, array: np.ndarray, file: str | None) -> dict[str, Any]:
    """Shape and range of an output; NaN and infinite values are counted, not averaged."""
    import numpy as np

    facts: dict[str, Any] = {"name": name, "dtype": str(array.dtype), "shape": list(array.shape)}
    if array.size and array.dtype.kind in "biufV":
        numbers = array.astype(np.float64)
        finite = numbers[np.isfinite(numbers)]
        facts["not_finite"] = int(numbers.size - finite.size)
        if finite.size:
            facts |= {"min": float(finite.min()), "mean": float(finite.mean()), "max": float(finite.max())}
    return facts | ({"file": file} if file is not None else {})


def _show(
    rows: list[dict[str, Any]], feeds: Mapping[str, np.ndarray], provider: str, why: str, *, as_json: bool
) -> None:
    from rich.table import Table

    out = console(as_json=as_json)
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
    out.print(f"Ran on {provider} ({why}) with {shapes or 'no inputs'}.", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for title in ("output", "dtype", "shape", "min", "mean", "max", "not finite", "file"):
        text = title in ("output", "dtype", "shape", "file")
        table.add_column(title, justify="left" if text else "right", overflow="fold")
    for row in rows:
        numbers = (f"{row[key]:.4g}" if key in row else "-" for key in ("min", "mean", "max"))
        lost = str(row.get("not_finite", "-"))
        table.add_row(row["name"], row["dtype"], str(row["shape"]), *numbers, lost, row.get("file", "-"))
    out.print(table)
