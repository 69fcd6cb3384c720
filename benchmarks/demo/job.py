"""What a demo is made of: a module, its data, and how both are measured. The same steps run every demo."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, cast, final

import numpy as np
import onnxruntime as ort
import torch

import burnish
from burnish.artifact import Artifact
from burnish.benchmarks.demo.keep import Keeper
from burnish.benchmarks.demo.report import Row, Score, score
from burnish.runtime.options import IN_TURNS
from burnish.runtime.threads import plan_threads
from burnish.runtime.timing import interleave

if TYPE_CHECKING:
    from burnish.artifact import Artifact

Feeds = Mapping[str, np.ndarray]
Run = Callable[[Feeds], np.ndarray]
"""One batch of inputs -> logits [batch, classes]."""

Tell = Callable[[str, int, int], None]
"""What is being done, how many parts of it are, of how many."""

OUTPUT: Final = "logits"
_WARMUP: Final = 5
_TIMING_S: Final = 60.0  # at most, where the machine is busy


class Stages(Protocol):
    """Shows what is going on: `with stages("Exporting") as tell: ...`."""

    def __call__(self, title: str) -> AbstractContextManager[Tell]:
        """Start a stage; it ends with the block."""
        ...


@final
@dataclasses.dataclass(frozen=True)
class Batch:
    """Held-out examples: inputs, and the class of each [batch] int64."""

    feeds: Feeds
    labels: np.ndarray


@final
@dataclasses.dataclass(frozen=True)
class Job:
    """A trained module with what is needed to bring it to int8 and to judge it."""

    name: str
    module: Any
    """Its forward takes the inputs by name and returns `{"logits": [batch, classes]}`."""
    example: Mapping[str, Any]
    dynamic: Mapping[str, Mapping[int, Any]]
    calibration: Sequence[Feeds]
    """From the training part."""
    held_out: Sequence[Batch]
    timed: Feeds
    """The one input whose latency is measured."""
    shape: str
    """The sizes of `timed`, in words."""
    data: str
    """What the held-out examples are, in words."""
    keep: Keeper
    key: object
    """What module and held-out examples come from, so that torch's logits are computed once; None: always."""


def run_job(job: Job, output: Path, stages: Stages, *, runs: int = 100) -> tuple[Row, ...]:
    """Export, optimise and quantise a job's module into `output`, then measure all four ways to run it.

    Args:
        job: the module and its data.
        output: gets the artifacts `exported`, `burnish-fp32` and `burnish-int8`.
        stages: told of progress.
        runs: how often each is timed.

    Returns:
        A row for torch, onnxruntime, burnish-fp32 and burnish-int8.

    Raises:
        BurnishError: a step fails; nothing is skipped silently.
    """
    make_artifacts(job, output, stages)
    runners, sizes = _runners(job, output)
    with stages(f"Timing all four in turns at {job.shape}"):
        timed = interleave(
            {name: functools.partial(run, job.timed) for name, run in runners.items()},
            runs=runs, warmup=_WARMUP, seconds=_TIMING_S,
        )  # fmt: skip
    logits = {name: _evaluate(job, name, run, stages) for name, run in runners.items()}
    labels = np.concatenate([batch.labels for batch in job.held_out])
    return tuple(
        Row.make(
            name, size=sizes[name], seconds=timed[name], base=timed["onnxruntime"],
            judged=_judge(logits[name], labels, logits["torch"]),
        )
        for name in runners
    )  # fmt: skip


def make_artifacts(job: Job, output: Path, stages: Stages) -> None:
    """Write `exported`, `burnish-fp32` and `burnish-int8` below `output`, replacing older ones."""
    with stages("Exporting from PyTorch, compared at several sizes"):
        exported = cast(Artifact, burnish.export(job.module, job.example, dynamic=job.dynamic))
        _save(exported, output / "exported")
    with stages("Optimising, every pass checked") as tell:
        fp32 = burnish.optimize(exported, target="cpu", progress=tell)
        _save(fp32, output / "burnish-fp32")
    with stages(f"Quantising to int8 on {len(job.calibration)} training samples") as tell:
        int8 = burnish.quantize(fp32, scheme="static", data=job.calibration, progress=tell)
        _save(int8, output / "burnish-int8")


def _save(artifact: Artifact, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    artifact.save(folder)


def _runners(job: Job, output: Path) -> tuple[dict[str, Run], dict[str, int]]:
    """The four ways to run the module, on the same number of threads, and the bytes of each."""
    threads = plan_threads().intra_op
    weights = [*job.module.parameters(), *job.module.buffers()]
    runners = {
        "torch": _torch(job.module, threads),
        "onnxruntime": _plain(output / "exported" / "model.onnx", threads),
        "burnish-fp32": _burnish(output / "burnish-fp32", threads),
        "burnish-int8": _burnish(output / "burnish-int8", threads),
    }
    sizes = {"torch": sum(weight.numel() * weight.element_size() for weight in weights)}
    folders = {"onnxruntime": "exported"} | {name: name for name in list(runners)[2:]}
    return runners, sizes | {name: _bytes(output / folder) for name, folder in folders.items()}


def _torch(module: Any, threads: int) -> Run:
    torch.set_num_threads(threads)

    def run(feeds: Feeds) -> np.ndarray:
        with torch.no_grad():
            inputs = {name: torch.from_numpy(array) for name, array in feeds.items()}
            return np.asarray(module(**inputs)[OUTPUT].numpy())

    module.eval()
    return run


def _plain(path: Path, threads: int) -> Run:
    """onnxruntime as anybody would use it: all of its own optimisations on."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    for key, value in IN_TURNS.session.items():
        options.add_session_config_entry(key, value)
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda feeds: np.asarray(session.run([OUTPUT], dict(feeds))[0])


def _burnish(folder: Path, threads: int) -> Run:
    session = burnish.load(folder, threads=threads, options=IN_TURNS)
    return lambda feeds: session(feeds)[OUTPUT]


def _bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.suffix != ".json")


def _evaluate(job: Job, name: str, run: Run, stages: Stages) -> np.ndarray:
    """Logits [examples, classes] of all held-out examples; torch's may come from an earlier run."""

    def every() -> dict[str, np.ndarray]:
        count = sum(len(batch.labels) for batch in job.held_out)
        with stages(f"{name}: {count:,} held-out examples") as tell:
            found = []
            for done, batch in enumerate(job.held_out):
                tell("", done, len(job.held_out))
                found.append(run(batch.feeds))
        return {OUTPUT: np.concatenate(found)}

    if name != "torch" or job.key is None:
        return every()[OUTPUT]
    return job.keep("torch logits", job.key, every)[OUTPUT]


def _judge(logits: np.ndarray, labels: np.ndarray, expected: np.ndarray) -> Score:
    return score(
        logits.argmax(-1), labels, same=logits.argmax(-1) == expected.argmax(-1),
        max_abs_error=float(np.abs(logits - expected).max()),
    )  # fmt: skip
