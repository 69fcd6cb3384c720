"""How much of a difference is torch's own rounding: the module in float32 beside itself in float64."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np

from burnish.difference import difference
from burnish.exporter.needs import torch

Feeds = Mapping[str, np.ndarray]
Run = Callable[[Feeds], Mapping[str, np.ndarray]]

_MOST: Final = 100_000_000
"""Parameters of a module whose weights may be there twice for a moment, in float64."""


def own_rounding(module: Any, run: Run, feeds: Feeds, output: str, single: np.ndarray | None) -> float:
    """The relative difference between an output in float32 and in float64, on these inputs.

    Args:
        module: whose weights are float64 meanwhile, and then what they were.
        run: runs it.
        feeds: of the inputs.
        output: the name of the output.
        single: that output in float32; None: it is not asked for.

    Returns:
        `max |a - b| / max(1, max |b|)`; 0 where it cannot be told: other types, too large, or the module
        does not run in float64.
    """
    if single is None or single.dtype != np.float32 or _size(module) > _MOST:
        return 0.0
    wide = {
        name: array.astype(np.float64) if array.dtype == np.float32 else array
        for name, array in feeds.items()
    }
    try:
        with _in_double(module):
            double = run(wide).get(output)
    except Exception:  # noqa: BLE001 - the module names float32 itself; then nothing is known
        return 0.0
    if double is None or double.dtype != np.float64:
        return 0.0
    found = difference(output, double, single.astype(np.float64)).max_rel
    return found if np.isfinite(found) else 0.0


def _size(module: Any) -> int:
    return sum(weight.numel() for weight in module.parameters())


@contextlib.contextmanager
def _in_double(module: Any) -> Iterator[None]:
    tensors = [*module.parameters(), *module.buffers()]
    kept = [(tensor, tensor.data) for tensor in tensors if tensor.dtype == torch.float32]
    try:
        for tensor, data in kept:
            tensor.data = data.double()
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data
