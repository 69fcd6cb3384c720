"""What calibration needs of a model: sessions that give inner values, their sizes, the worth of channels."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, final

import numpy as np
import onnx_ir as ir

from burnish.cache import cache_root
from burnish.fingerprint import tensor_digest
from burnish.lending import judge, lend
from burnish.manifest import Manifest
from burnish.model import expose
from burnish.passes.base import Arrays, Context, constant_of
from burnish.passes.quantize.find import Linear, conv_at, linear_at
from burnish.passes.runner import Progress
from burnish.runtime.calibrate import calibrate
from burnish.runtime.calibrators import PERCENT, LayerwisePercentile
from burnish.runtime.checkpoints import Checkpoint
from burnish.runtime.histogram import Bounds, Gains
from burnish.runtime.reference import Reference
from burnish.versions import versions

_FINEST: Final = 4095  # the largest gain, as a whole number: counts stay exact
_FORGOTTEN: Final = 30 * 24 * 3600.0  # seconds after which a checkpoint that nobody went on from is removed


@final
@dataclasses.dataclass(frozen=True)
class Calibration:
    """How ranges are found."""

    method: str = "minmax"
    """One of `burnish.runtime.calibrators.METHODS`."""
    percent: float = PERCENT
    """For `percentile`: the share of values that a range holds."""
    memory_budget: int | None = None
    """Bytes that the process may have in memory meanwhile."""
    resume: bool = True
    """Go on where an interrupted calibration of the same model, data and method stopped."""

    def ranges(
        self,
        model: ir.Model,
        names: Sequence[str],
        data: Iterable[Arrays],
        interface: Manifest,
        progress: Progress | None = None,
    ) -> dict[str, Bounds]:
        """The range of each named value of the main graph over the data.

        Raises:
            CalibrationError, ModelError: as `burnish.runtime.calibrate.calibrate`.
        """
        values = Values(model, names)
        gains = values.gains() if self.method == LayerwisePercentile.name else None
        return calibrate(
            values.open, data, names, method=self.method, percent=self.percent, gains=gains,
            specs=interface.inputs, dims=interface.dims, sizes=values.sizes,
            memory_budget=self.memory_budget, progress=progress,
            checkpoint=self._checkpoint(values, gains or {}) if self.resume else None,
        )  # fmt: skip

    def _checkpoint(self, values: Values, gains: Mapping[str, Gains]) -> Checkpoint:
        worth = hashlib.sha256()  # of weights behind the values, which the values' own graph need not have
        for name in sorted(gains):
            worth.update(f"{name} {gains[name].axis} {gains[name].counts.tolist()};".encode())
        key = {"model": values.digest(), "gains": worth.hexdigest()}
        key["method"] = f"{self.method} {self.percent!r}"
        key |= {f"version of {name}": version for name, version in versions([]).items()}
        folder = cache_root() / "calibration"
        _forget(folder)
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        return Checkpoint(folder / f"{name}.checkpoint", key)


def _forget(folder: Path) -> None:
    """Remove checkpoints that nobody has gone on from for a long time."""
    with contextlib.suppress(OSError):
        for path in folder.glob("*.checkpoint"):
            if time.time() - path.stat().st_mtime > _FORGOTTEN:
                path.unlink()


@final
class Values:
    """Values of the main graph of a model, to be computed in any groups; the model's weights are lent."""

    def __init__(self, model: ir.Model, names: Sequence[str]) -> None:
        self._model, self._names = model, names
        self._measuring: tuple[Reference, dict[str, str], dict[str, int]] | None = None

    def open(self, names: Sequence[str]) -> Reference:
        """A session that computes those values and nothing else."""
        return judge(expose(self._model, names, alone=True), frugal=True)

    def sizes(self, feeds: Arrays) -> dict[str, int]:
        """The bytes of each value for some feeds; none of them is kept."""
        if self._measuring is None:
            self._measuring = self._measured()
        reference, outputs, widths = self._measuring
        found = reference(feeds, list(outputs.values()))
        return {name: int(found[output]) * widths[name] for name, output in outputs.items()}

    def _measured(self) -> tuple[Reference, dict[str, str], dict[str, int]]:
        copy = expose(self._model, self._names, alone=True)
        values = list(copy.graph.outputs)
        copy.graph.outputs.clear()
        outputs, widths = {}, {}
        for number, value in enumerate(values):
            size = ir.Value(
                name=f"burnish.size.{number}", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([])
            )
            copy.graph.append(ir.node("Size", [value], outputs=[size], name=size.name))
            copy.graph.outputs.append(size)
            outputs[value.name or ""] = size.name or ""
            widths[value.name or ""] = int(value.dtype.itemsize) if value.dtype is not None else 4
        return judge(copy, frugal=True), outputs, widths

    def digest(self) -> str:
        """The sha256 of all that decides what the values are: graph and weights."""
        model = expose(self._model, self._names, alone=True)
        graph, weights = lend(model)
        digest = hashlib.sha256(graph)
        for name in sorted(weights):  # read in pieces: mapped, all of them would be in memory
            digest.update(f"{name} {tensor_digest(model.graph.initializers[name])};".encode())
        return digest.hexdigest()

    def gains(self) -> dict[str, Gains]:
        """What the channels of values that Linears and Convs read are worth: the sum of squared weights."""
        found: dict[str, tuple[int, np.ndarray]] = {}
        for node in self._model.graph:
            for name, axis, worth in _read_by(node):
                known = found.get(name, (axis, np.zeros_like(worth)))
                if known[0] == axis and known[1].shape == worth.shape:
                    found[name] = axis, known[1] + worth
        return {name: Gains(axis, _whole(worth)) for name, (axis, worth) in found.items()}


def _read_by(node: ir.Node) -> list[tuple[str, int, np.ndarray]]:
    """The value that a Linear or Conv reads, the axis of its channels, and the squared weights of each."""
    unheard = Context()
    if linear := linear_at(node, unheard):
        return [(linear.x.name or "", -1, _of_linear(linear))]
    conv, x = conv_at(node, unheard), node.inputs[0] if node.inputs else None
    weight = constant_of(conv.weight) if conv else None
    if weight is None or x is None:
        return []
    groups = node.attributes.get_int("group", 1) or 1
    grouped = weight.astype(np.float64).reshape(groups, len(weight) // groups, weight.shape[1], -1)
    return [(x.name or "", 1, np.square(grouped).sum(axis=(1, 3)).reshape(-1))]


def _of_linear(linear: Linear) -> np.ndarray:
    weight = linear.weight_array().astype(np.float64)
    return np.asarray(np.square(weight).sum(axis=linear.axis))


def _whole(worth: np.ndarray) -> np.ndarray:
    """Whole numbers up to 4095; all 1 where nothing is worth anything."""
    largest = worth.max(initial=0.0)
    if not np.isfinite(largest) or largest == 0.0:
        return np.ones(len(worth), np.int64)
    return np.asarray(np.rint(worth * (_FINEST / largest)), np.int64)
