"""A model the four ways that every example compares: in torch, exported, optimised, int8."""

import dataclasses
import itertools
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import burnish
from burnish.exporter.modules import parameter
from burnish.runtime.options import IN_TURNS
from burnish.runtime.threads import plan_threads

Feeds = Mapping[str, np.ndarray]
Run = Callable[[Feeds], Mapping[str, np.ndarray]]

THREADS = plan_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or None).intra_op
"""Of torch and onnxruntime alike: what OMP_NUM_THREADS says, or what this machine has."""


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to run the model."""

    name: str
    run: Run
    """Inputs by name -> outputs by name."""
    size: int
    """Bytes: of the weights in torch, of the file otherwise."""
    notes: tuple[str, ...] = ()
    """What the last receipts say: what stayed float, and which ops onnxruntime executes."""


def convert(
    module: torch.nn.Module,
    export: Callable[[Path], Any],
    calibration: Sequence[Feeds],
    folder: Path,
    *,
    scheme: str = "static",
    measured: bool = True,
) -> list[Way]:
    """Export, optimise and quantise into three folders below `folder`, and load each.

    Args:
        module: the trained module, to compare with.
        export: calls `burnish.export` with the folder to write to.
        calibration: training samples, for the ranges of activations; unused where the scheme is dynamic.
        folder: gets `exported`, `optimised` and `int8`, instead of older ones.
        scheme: of the quantisation.
        measured: leave in float what is not faster in int8; otherwise all is int8, to be small.
    """
    exported, optimised, int8 = (folder / each for each in ("exported", "optimised", "int8"))
    for each in (exported, optimised, int8):
        shutil.rmtree(each, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    export(exported)
    burnish.optimize(exported, output=optimised)
    data = calibration if scheme == "static" else None
    burnish.quantize(optimised, scheme=scheme, data=data, output=int8, measured=measured)
    return [in_torch(module), *map(loaded, (exported, optimised, int8))]


def in_torch(module: torch.nn.Module) -> Way:
    """The module itself, in eval mode; it returns logits, or outputs by name."""
    torch.set_num_threads(THREADS)
    module.eval()

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            found = module(**{parameter(name): torch.from_numpy(array) for name, array in feeds.items()})
        found = found if isinstance(found, Mapping) else {"logits": found}
        return {name: tensor.numpy() for name, tensor in found.items()}

    return Way("torch", run, size_of(module))


def loaded(folder: Path) -> Way:
    """An artifact, ready to run."""
    artifact = burnish.Artifact.open(folder)
    size = sum(path.stat().st_size for path in folder.glob("model.onnx*"))
    told = [r for r in artifact.manifest.receipts if r.step.startswith("quantize") or r.step == "deployed"]
    session = burnish.load(artifact, threads=THREADS, options=IN_TURNS)
    return Way(folder.name, session, size, tuple(note for receipt in told[-2:] for note in receipt.notes))


def size_of(module: torch.nn.Module) -> int:
    """Bytes of a module's weights, each counted once however often it is used."""
    weights = itertools.chain(module.parameters(), module.buffers())
    return sum({weight.data_ptr(): weight.nbytes for weight in weights}.values())


def accuracy(run: Run, batches: Sequence[tuple[Feeds, np.ndarray]]) -> float:
    """The share of right answers, over (inputs, labels) whose logits are `[batch, classes]`."""
    right = sum(int((run(feeds)["logits"].argmax(-1) == labels).sum()) for feeds, labels in batches)
    return right / sum(len(labels) for _, labels in batches)
