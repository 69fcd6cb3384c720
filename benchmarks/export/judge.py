"""One judge for every exporter: does the graph compute what the module computes, wherever its dims vary?

It shares nothing with burnish's own comparison: the module runs as its authors wrote it, without a cache; the
graph runs in onnxruntime on the CPU, its optimiser off and on, at every combination of the declared sizes.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, final

import msgspec
import numpy as np
import onnxruntime as ort
import torch

from burnish.benchmarks.export.cases import Loaded, resized
from burnish.exporter.quiet import evaluating, quiet

TOLERANCE: Final = 1e-3
"""Of `max |a - b| / max(1, max |b|)`: random weights make errors grow more than trained ones do."""

Arrays = dict[str, np.ndarray]


class Verdict(msgspec.Struct):
    """What the judge found. Empty texts: nothing wrong."""

    parity: str = ""
    dims: str = ""
    """Dims that were declared to vary and do not."""
    decode: str = ""
    """`same`, `no cache`, `-` (nothing to decode), or what differs."""
    error: float | None = None
    """The largest difference at any size."""
    compared: int = 0
    """Combinations of sizes, each with the optimiser off and on."""
    refused: int = 0
    """Combinations that the module itself refuses."""

    @property
    def right(self) -> bool:
        """Everything as declared."""
        return not self.parity and not self.dims and self.decode in ("same", "-") and self.compared > 0


@final
class Runner:
    """A graph in onnxruntime, twice: optimiser off and on."""

    def __init__(self, path: Path) -> None:
        self.sessions: dict[str, ort.InferenceSession] = {}
        levels = ort.GraphOptimizationLevel
        for name, level in (("off", levels.ORT_DISABLE_ALL), ("on", levels.ORT_ENABLE_ALL)):
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            options.log_severity_level = 4
            options.graph_optimization_level = level
            self.sessions[name] = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        session = self.sessions["off"]
        self.inputs = {value.name: list(value.shape) for value in session.get_inputs()}
        self.types = {value.name: value.type for value in session.get_inputs()}
        self.outputs = [value.name for value in session.get_outputs()]

    def __call__(self, feeds: Mapping[str, np.ndarray], optimiser: str) -> Arrays:
        """Run once; raises what onnxruntime raises."""
        found = self.sessions[optimiser].run(None, dict(feeds))
        return dict(zip(self.outputs, found, strict=True))


def judge_graph(case: Loaded, path: Path) -> Verdict:
    """A graph without a cache, against the module's forward, at every combination of sizes."""
    try:
        runner = Runner(path)
    except Exception as failure:  # noqa: BLE001 - onnxruntime has no base class for its errors
        return Verdict(parity=f"onnxruntime cannot load it: {first_line(failure)}")
    verdict = Verdict(dims=fixed_dims(case, runner.inputs), decode="-")
    worst = 0.0
    for number, sizes in enumerate(assignments(case)):
        feeds = tensors_at(case, sizes, number)
        feeds |= _also(case, runner.inputs, feeds)
        try:
            wanted = reference(case, feeds)
        except Exception:  # noqa: BLE001 - the module is anybody's code; how often it refuses is counted
            verdict.refused += 1
            continue
        given = {name: to_numpy(tensor) for name, tensor in feeds.items() if name in runner.inputs}
        lacking = [name for name in runner.inputs if name not in given]
        if lacking:
            verdict.parity = f"the graph wants inputs that the module does not: {', '.join(lacking[:3])}"
            return verdict
        for optimiser in runner.sessions:
            problem, error = _compare(runner, given, optimiser, wanted, feeds)
            worst = max(worst, error)
            if problem:
                verdict.parity = f"{problem} at {spell(sizes)}, optimiser {optimiser}"
                verdict.error = error
                return verdict
        verdict.compared += 1
    verdict.error = worst
    if not verdict.compared:
        verdict.parity = "the module runs at none of the sizes"
    return verdict


def _compare(
    runner: Runner, given: Arrays, optimiser: str, wanted: Arrays, feeds: Mapping[str, Any]
) -> tuple[str, float]:
    try:
        found = runner(given, optimiser)
    except Exception as failure:  # noqa: BLE001 - onnxruntime has no base class for its errors
        return f"does not run ({first_line(failure)})", 0.0
    pairs = paired(wanted, found)
    if not pairs:
        return f"outputs {', '.join(found)[:80]} are not the module's {', '.join(wanted)[:80]}", 0.0
    worst, where = 0.0, ""
    for name, one, two in pairs:
        error = distance(*unpadded(one, two, feeds))
        if error >= worst:
            worst, where = error, name
    return (f"output {where} differs by {worst:.2g}" if worst > TOLERANCE else ""), worst


def assignments(case: Loaded) -> Iterator[dict[str, int]]:
    """All combinations of the sizes of the dims."""
    dims = list(case.sizes)
    for sizes in itertools.product(*case.sizes.values()):
        yield dict(zip(dims, sizes, strict=True))


def tensors_at(case: Loaded, sizes: Mapping[str, int], seed: int) -> dict[str, Any]:
    """Inputs at those sizes."""
    return {
        name: resized(name, example, {a: sizes[d] for a, d in case.dynamic.get(name, {}).items()}, seed)
        for name, example in case.inputs.items()
    }


def _also(case: Loaded, wanted: Iterable[str], feeds: Mapping[str, Any]) -> dict[str, Any]:
    """What the graph wants beside the case's inputs, where the module takes it: the values it defaults to."""
    takes = inspect.signature(case.module.forward).parameters
    made = {}
    for name in wanted:
        like = feeds.get("decoder_input_ids" if name.startswith("decoder_") else "input_ids")
        if name in feeds or name not in takes or like is None:
            continue
        if name.endswith("attention_mask"):
            made[name] = torch.ones_like(like)
        elif name.endswith("position_ids"):
            made[name] = torch.arange(like.shape[1]).expand(like.shape).clone()
        elif name == "token_type_ids":
            made[name] = torch.zeros_like(like)
    return made


def reference(case: Loaded, feeds: Mapping[str, Any]) -> Arrays:
    """The module's tensors, by the names of its output, nested ones by path."""
    with evaluating(case.module), quiet():
        given = {name: tensor.clone() for name, tensor in feeds.items()}
        found = case.module(**given, **flags(case))
    return {name: to_numpy(tensor) for name, tensor in flat(found)}


def flags(case: Loaded) -> dict[str, Any]:
    """Keywords that keep caches out of a transformers model's output."""
    takes = inspect.signature(case.module.forward).parameters
    return {"use_cache": False} if case.folder is not None and "use_cache" in takes else {}


def flat(found: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor in a result, in order, by path."""
    if isinstance(found, torch.Tensor):
        yield prefix or "output", found
    elif isinstance(found, Mapping):
        for name, value in found.items():
            yield from flat(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(found, (tuple, list)):
        for index, value in enumerate(found):
            yield from flat(value, f"{prefix}.{index}" if prefix else f"output_{index}")


def paired(wanted: Arrays, found: Arrays) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Outputs that belong together: by name; without names in common, by place.

    A graph may leave out what is nested in the module's result, but not its first output.
    """
    first = next(iter(wanted))
    if first in found:
        return [(name, wanted[name], found[name]) for name in wanted if name in found]
    if len(found) <= len(wanted):
        return [(a, one, two) for (a, one), two in zip(wanted.items(), found.values(), strict=False)]
    return []


def distance(wanted: np.ndarray, found: np.ndarray) -> float:
    """`max |a - b| / max(1, max |b|)`; infinite where shapes or the places of NaN differ."""
    if wanted.shape != found.shape:
        return float("inf")
    if wanted.size == 0:
        return 0.0
    one, two = wanted.astype(np.float64), found.astype(np.float64)
    same = (one == two) | (np.isnan(one) & np.isnan(two))
    apart = np.where(same, 0.0, np.abs(np.where(same, 0.0, one) - np.where(same, 0.0, two)))
    if not np.isfinite(apart).all():
        return float("inf")
    finite = np.abs(one[np.isfinite(one)])
    return float(apart.max()) / max(1.0, float(finite.max(initial=0.0)))


def unpadded(
    wanted: np.ndarray, found: np.ndarray, feeds: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Both without what stands at padding, which means nothing."""
    mask = feeds.get("attention_mask")
    if mask is None or wanted.ndim < 2 or mask.ndim != 2 or wanted.shape != found.shape:
        return wanted, found
    if tuple(wanted.shape[:2]) != tuple(mask.shape):
        return wanted, found
    kept = to_numpy(mask).astype(bool)
    return wanted[kept], found[kept]


def fixed_dims(case: Loaded, inputs: Mapping[str, Sequence[Any]]) -> str:
    """The dims that were declared to vary and are numbers in the graph; "" where there is none."""
    fixed = [
        f"{name}[{axis}]={inputs[name][axis]}"
        for name, axes in case.dynamic.items()
        for axis in axes
        if name in inputs and axis < len(inputs[name]) and isinstance(inputs[name][axis], int)
    ]
    return ", ".join(fixed)


def to_numpy(tensor: Any) -> np.ndarray:
    """A tensor as an array; bfloat16 as float32."""
    plain = tensor.detach()
    array: np.ndarray = (plain.float() if plain.dtype == torch.bfloat16 else plain).cpu().numpy()
    return array


def spell(sizes: Mapping[str, int]) -> str:
    """`batch 2, sequence 7`."""
    return ", ".join(f"{name} {size}" for name, size in sizes.items()) or "the only size"


def first_line(error: BaseException) -> str:
    """What an error says, in one line, without onnxruntime's preamble."""
    text = " ".join(str(error).split()) or type(error).__name__
    for mark in ("Status Message: ", "RUNTIME_EXCEPTION : ", "INVALID_GRAPH : ", "FAIL : "):
        text = text.rpartition(mark)[2]
    return text[:300]


@final
@dataclasses.dataclass(frozen=True)
class Product:
    """What an exporter wrote."""

    files: dict[str, Path]
    """Graphs by role: `model`; `encoder` and `decoder`; `prefill` and `decode` …"""
    style: str = "graph"
    """How they go together, for graphs with a cache: see `burnish.benchmarks.export.steppers`."""
    notes: tuple[str, ...] = ()
