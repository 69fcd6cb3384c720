"""A model the four ways that every example compares: in torch, exported, optimised, int8."""

import dataclasses
import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import burnish
from burnish.runtime.options import IN_TURNS
from burnish.runtime.threads import plan_threads

Feeds = Mapping[str, np.ndarray]
Run = Callable[[Feeds], Mapping[str, np.ndarray]]

THREADS = plan_threads().intra_op


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to run the model."""

    name: str
    run: Run
    """Inputs by name -> outputs by name."""
    size: int
    """Bytes: of the weights in torch, of the file otherwise."""
    path: Path | None = None
    """The `.onnx` file."""


def convert(
    module: torch.nn.Module,
    export: Callable[[Path], Any],
    calibration: Sequence[Feeds],
    folder: Path,
    *,
    scheme: str = "static",
    name: str = "logits",
) -> list[Way]:
    """Export, optimise and quantise into three folders below `folder`, and load each.

    Args:
        module: the trained module, to compare with.
        export: calls `burnish.export` with the folder to write to.
        calibration: training samples, for the ranges of activations; unused where the scheme is dynamic.
        folder: gets `exported`, `optimised` and `int8`, instead of older ones.
        scheme: of the quantisation.
        name: what torch's only output is called, where the module returns a tensor.
    """
    exported, optimised, int8 = (folder / each for each in ("exported", "optimised", "int8"))
    for each in (exported, optimised, int8):
        shutil.rmtree(each, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    export(exported)
    burnish.optimize(exported, output=optimised)
    data = calibration if scheme == "static" else None
    burnish.quantize(optimised, scheme=scheme, data=data, output=int8)
    return [in_torch(module, name), *map(loaded, (exported, optimised, int8))]


def in_torch(module: torch.nn.Module, name: str = "logits") -> Way:
    """The module itself, in eval mode, as a function of numpy arrays."""
    torch.set_num_threads(THREADS)
    module.eval()

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            found = module(**{key: torch.from_numpy(array) for key, array in feeds.items()})
        found = {name: found} if isinstance(found, torch.Tensor) else found
        return {key: tensor.numpy() for key, tensor in found.items()}

    return Way("torch", run, size_of(module))


def loaded(folder: Path) -> Way:
    """An artifact, ready to run."""
    files = [path for path in folder.iterdir() if path.name.startswith("model.onnx")]
    session = burnish.load(folder, threads=THREADS, options=IN_TURNS)
    return Way(folder.name, session, sum(path.stat().st_size for path in files), folder / "model.onnx")


def size_of(module: torch.nn.Module) -> int:
    """Bytes of a module's weights, each counted once however often it is used."""
    weights = itertools.chain(module.parameters(), module.buffers())
    return sum({weight.data_ptr(): weight.nbytes for weight in weights}.values())


def accuracy(run: Run, batches: Sequence[tuple[Feeds, np.ndarray]]) -> float:
    """The share of right answers, over (inputs, labels) whose logits are `[batch, classes]`."""
    right = sum(int((run(feeds)["logits"].argmax(-1) == labels).sum()) for feeds, labels in batches)
    return right / sum(len(labels) for _, labels in batches)
