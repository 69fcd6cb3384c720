"""The models as files: exported or fetched once, kept, and not made again.

`python -m burnish.benchmarks.optimize.making NAME FOLDER` exports one, in a process of its own: torch and a
model in memory are nothing that later measurements should find.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from burnish.benchmarks.kit import fetch
from burnish.benchmarks.optimize.children import module, run
from burnish.benchmarks.optimize.table import SUBJECTS, Export, File, FromKit, MiniLM, Network, Subject
from burnish.errors import BurnishError
from burnish.feeds import is_batch
from burnish.sources import open_artifact

if TYPE_CHECKING:
    from burnish.benchmarks.export.cases import Loaded

_MODEL: Final = "model.onnx"
_DIMS: Final = "dims.json"


class MakingError(Exception):
    """A model that cannot be had: its export failed, or its package cannot be fetched."""


def made(subject: Subject, folder: Path, *, limit_s: float) -> Path:
    """The subject's file; exports go to `folder/NAME/model.onnx`.

    Raises:
        MakingError: its message is one line.
    """
    match subject.origin:
        case File(path):
            return path
        case FromKit(package, member):
            try:
                return fetch(package) / member
            except BurnishError as error:
                raise MakingError(error.what) from error
        case _:
            return _exported(subject, folder, limit_s)


def _exported(subject: Subject, folder: Path, limit_s: float) -> Path:
    home = folder / subject.name
    if not home.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as work:
            ended = run(module("burnish.benchmarks.optimize.making", subject.name, work), limit_s=limit_s)
            if ended.failure:
                raise MakingError(f"not exported: {ended.failure}")
            (Path(work) / "made").rename(home)
    return home / _MODEL


def file_bytes(path: Path) -> int:
    """Of a model's file and of the data files beside it that are named after it."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def sizes_of(subject: Subject, source: Path) -> dict[str, int]:
    """The sizes of dynamic dims to time at, where they are not 1 (batch) or 128 by their own names.

    torch names a dim `s6` where two that were to have one name may differ: what they were to be is beside it.
    """
    names = source.with_name(_DIMS)
    if isinstance(subject.origin, File) or not names.is_file():
        return dict(subject.sizes)
    meant = msgspec.json.decode(names.read_bytes(), type=dict[str, str])
    wanted = {name: subject.sizes.get(role, _usual(role)) for name, role in meant.items()}
    return {name: size for name, size in wanted.items() if size != _usual(name)}


def _usual(dim: str) -> int:
    return 1 if is_batch(dim) else 128


def main(name: str, folder: str) -> None:
    """Export the subject of that name to `folder/made/model.onnx`."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    home = Path(folder) / "made"
    home.mkdir()
    match SUBJECTS[name].origin:
        case Export() as origin:
            _export(origin, home, Path(folder) / "source")
        case Network() as origin:
            _export_network(origin, home)
        case MiniLM(opset, way):
            from burnish.benchmarks import raw_exports

            export = raw_exports.export_raw if way == "raw" else raw_exports.export_default
            export(opset, home / _MODEL)
        case other:
            raise ValueError(f"{other} is not exported")


def _export(origin: Export, home: Path, source: Path) -> None:
    from burnish.benchmarks.export.cases import of_transformers
    from burnish.benchmarks.export.zoo import Architecture

    source.mkdir()
    _by_torch(of_transformers(Architecture(origin.kind, origin.task, origin.fields), source), home)


def _export_network(origin: Network, home: Path) -> None:
    from burnish.benchmarks.export.cases import hand_made
    from burnish.benchmarks.export.weights import liven
    from burnish.benchmarks.optimize import networks

    build = {"tagger": networks.tagger, "encoder": networks.encoder, "unet": networks.unet}[origin.name]
    case = hand_made(origin.name, build())
    liven(case.module)
    _by_torch(case, home)


def _by_torch(case: Loaded, home: Path) -> None:
    from burnish.benchmarks.export.peers import export_torch
    from burnish.exporter.quiet import evaluating, quiet

    with evaluating(case.module), quiet():
        export_torch(case, home, None)
    (home / _DIMS).write_bytes(msgspec.json.encode(dict(_meant(case, home / _MODEL))))


def _meant(case: Loaded, path: Path) -> Iterator[tuple[str, str]]:
    """Every dynamic dim of the file's inputs, and the name that it was to have."""
    for spec in open_artifact(path).manifest.inputs:
        for axis, role in case.dynamic.get(spec.name, {}).items():
            dim = spec.shape[axis] if spec.shape is not None else None
            if isinstance(dim, str):
                yield dim, role


if __name__ == "__main__":
    main(*sys.argv[1:])
