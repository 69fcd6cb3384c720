"""How far two sets of outputs are apart. NaN equals NaN, and infinities of one sign are equal."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import final

import numpy as np


@final
@dataclasses.dataclass(frozen=True)
class Difference:
    """The largest difference between two outputs of one name.

    `max_rel` is `max |a - b| / max(1, max |b|)`, relative to the largest magnitude of the tensor;
    `l2` is `|a - b| / |b|`. All are infinite where shapes, dtypes or the places of NaN differ.
    """

    name: str = ""
    max_abs: float = 0.0
    max_rel: float = 0.0
    l2: float = 0.0

    def within(self, tolerance: float, *, lossy: bool = False) -> bool:
        """True when the difference keeps a pass's promise (see `burnish.passes.base.Numerics`)."""
        return (self.l2 if lossy else self.max_rel) <= tolerance

    def judged(self, *, lossy: bool = False) -> tuple[float, float]:
        """What differences are ordered by: what `within` looks at first."""
        return (self.l2, self.max_rel) if lossy else (self.max_rel, self.l2)


def difference(name: str, reference: np.ndarray, actual: np.ndarray) -> Difference:
    """Compare one output with its reference."""
    if reference.shape != actual.shape or reference.dtype != actual.dtype:
        return Difference(name, np.inf, np.inf, np.inf)
    if reference.dtype.kind in "USO":
        wrong = float(np.inf) if not np.array_equal(reference, actual) else 0.0
        return Difference(name, wrong, wrong, wrong)
    if reference.size == 0 or np.array_equal(reference, actual):
        return Difference(name)
    a, b = actual.astype(np.float64), reference.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if not np.isfinite(a[~same]).all() or not np.isfinite(b[~same]).all():
        return Difference(name, np.inf, np.inf, np.inf)
    error = np.where(same, 0.0, np.abs(np.where(same, 0.0, a) - np.where(same, 0.0, b)))
    finite = np.abs(b[np.isfinite(b)])
    scale = max(1.0, float(finite.max(initial=0.0)))
    norm = float(np.sqrt(np.sum(finite**2)))
    l2 = float(np.sqrt(np.sum(error**2))) / norm if norm else float(error.max())
    return Difference(name, float(error.max()), float(error.max()) / scale, l2)


def worst(
    reference: Mapping[str, np.ndarray], actual: Mapping[str, np.ndarray], *, lossy: bool = False
) -> Difference:
    """The largest difference over all outputs; a missing output is infinitely far.

    The largest in what a promise is judged by: `l2` for a lossy step, `max_rel` otherwise.
    """
    found = [
        difference(name, array, actual[name]) if name in actual else Difference(name, *[np.inf] * 3)
        for name, array in reference.items()
    ]
    return max(found, key=lambda d: d.judged(lossy=lossy), default=Difference())
