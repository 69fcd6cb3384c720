"""How far a model's own results move by rounding alone: what a rewrite that rounds cannot promise better.

Backward errors (N. J. Higham, Accuracy and Stability of Numerical Algorithms, section 1.5): a result cannot
be told from that of weights and inputs which differ by a unit in the last place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from burnish.difference import Difference, difference
from burnish.kv_cache import Case
from burnish.lending import lend
from burnish.runtime.reference import Reference

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Reference, Sequence[Case]], Sequence[Arrays]]

TIMES: Final = 4.0
"""How far a rewrite may move what it rounds, in the noise of the model before it."""
MOST: Final = 1e-3
"""Allowed at most, however large the noise: ten times what a rounding pass promises otherwise."""
_DRAWS: Final = 4


def limits(
    model: ir.Model, cases: Sequence[Case], expected: Sequence[Arrays], run: Run
) -> list[dict[str, float]]:
    """How far each floating output may be off on each case, given its own noise there (`max_rel`).

    The noise is the largest of four draws, in each of which every float of weights and inputs that is no
    whole number is moved to a neighbour, up or down. Takes memory for a copy of the float weights.

    Args:
        model: the one before a rewrite.
        cases: on which it runs.
        expected: what it gives there.
        run: a session on cases -> outputs.

    Returns:
        By output, 4 times the noise and 1e-3 at most; nothing where the noise is not finite.
    """
    graph, weights = lend(model)
    noise: list[dict[str, float]] = [{} for _ in cases]
    for seed in range(_DRAWS):
        rng = np.random.default_rng(seed)
        moved = Reference(graph, weights={name: neighbours(array, rng) for name, array in weights.items()})
        inputs = [
            (sizes, {name: neighbours(array, rng) for name, array in feeds.items()}) for sizes, feeds in cases
        ]
        for known, before, after in zip(noise, expected, run(moved, inputs), strict=True):
            for name, array in before.items():
                apart = difference(name, array, after[name]).max_rel
                known[name] = max(known.get(name, 0.0), apart)
    return [_of_noise(known, outputs) for known, outputs in zip(noise, expected, strict=True)]


def _of_noise(noise: Mapping[str, float], outputs: Arrays) -> dict[str, float]:
    return {
        name: min(TIMES * moved, MOST)
        for name, moved in noise.items()
        if outputs[name].dtype.kind == "f" and np.isfinite(moved)
    }


def furthest(
    expected: Sequence[Arrays], actual: Sequence[Arrays], limits: Sequence[Mapping[str, float]], usual: float
) -> tuple[int, Difference, float]:
    """The number of the case with the output that is furthest beyond its limit, or off the most within them.

    Args:
        expected: outputs by name, of each case.
        actual: the same of the changed model.
        limits: by output, of each case; `usual` where there is none, or a smaller one.
        usual: what the pass promises.

    Returns:
        The case, the difference and its limit.
    """
    found = [
        (number, difference(name, array, outputs[name]), max(usual, limit.get(name, 0.0)))
        for number, (before, outputs, limit) in enumerate(zip(expected, actual, limits, strict=True))
        for name, array in before.items()
    ]
    beyond = [each for each in found if not each[1].within(each[2])]
    if beyond:
        return max(beyond, key=lambda each: each[1].max_rel / each[2])
    return max(found, key=lambda each: each[1].max_rel)


def neighbours(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every float that is no whole number a unit in the last place up or down; the others as they are.

    Whole numbers stay: zeros, ones and masks are exact. So do the types that numpy has no neighbours for.
    """
    if array.dtype not in (np.float16, np.float32, np.float64):
        return array
    up = rng.random(array.shape, dtype=np.float32) < 0.5
    moved = np.nextafter(array, np.where(up, np.inf, -np.inf).astype(array.dtype))
    return np.where(np.trunc(array) == array, array, moved)
