"""The sizes at which an export is compared: batch 1, 2, 3 × lengths 1, 2, odd, longest × past 0, 1, long.

All combinations where the module is small; otherwise a few that hold every pair of sizes at least once, or,
for models of billions of parameters, every size once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Final

from burnish.feeds import Assignment, dynamic_dims, is_batch, shape_at
from burnish.manifest import DimRange, TensorSpec

_ALL: Final = 30_000_000  # parameters up to which all combinations are compared
_PAIRS: Final = 500_000_000  # parameters up to which all pairs of sizes are
_MOST_ELEMENTS: Final = 2**20  # of all inputs together
_LONGEST: Final = 512  # of a dim with a larger bound: attention takes memory by its square
_LONGEST_OF_LARGE: Final = 64  # in models with more parameters than _PAIRS, which take seconds a token
_BATCHES: Final = (1, 2, 3)
_ROOM: Final = 7  # tokens that must fit after the longest past
_STRIDED: Final = 2  # a least length above it comes of strides, which make one step of many,
_BETWEEN: Final = (1.31, 1.62, 1.93, 2.44, 2.75)  # an odd number or an even one between the other lengths
_FREE: Final = 16  # the longest of a dim without a bound


def lattice(specs: Sequence[TensorSpec], dims: Mapping[str, DimRange], parameters: int) -> list[Assignment]:
    """Assignments of the dynamic dims, cheapest first.

    Args:
        specs: the inputs.
        dims: the ranges of their dims.
        parameters: of the module; more parameters, fewer combinations.
    """
    longest = _LONGEST if parameters <= _PAIRS else _LONGEST_OF_LARGE
    levels = {name: _levels(name, dims.get(name, DimRange()), longest) for name in dynamic_dims(specs)}
    if not levels:
        return [{}]
    combinations = [dict(zip(levels, sizes, strict=True)) for sizes in itertools.product(*levels.values())]
    fitting = [
        each for each in combinations if _elements(specs, each) <= _MOST_ELEMENTS and _within(each, dims)
    ] or combinations[:1]
    fitting.sort(key=lambda each: (_elements(specs, each), *each.values()))
    if parameters <= _ALL and len(fitting) <= 3 * 4 * 4:
        return fitting
    return _covering(fitting, 2 if parameters <= _PAIRS else 1)


def _levels(name: str, allowed: DimRange, longest: int) -> list[int]:
    top = min(allowed.max if allowed.max is not None else _FREE, longest)
    most = () if allowed.max is None else (top,)
    if is_batch(name):
        wanted: tuple[int, ...] = (*_BATCHES, *most) if allowed.min else (0, *_BATCHES, *most)
    elif allowed.min == 0:
        wanted = (0, 1, max(1, top - _ROOM))
    else:
        low = max(allowed.min, 1)
        wanted = (low, low + 1, 2 * low + 5, max(top, 3 * low))
        if low > _STRIDED:
            wanted += tuple(round(low * factor) for factor in _BETWEEN)
    kept = [max(allowed.min, size if allowed.max is None else min(size, allowed.max)) for size in wanted]
    return list(dict.fromkeys(kept))


def _within(assignment: Assignment, dims: Mapping[str, DimRange]) -> bool:
    """A past and what comes after it are no longer together than that may be alone: positions end there."""
    for past in (name for name in assignment if dims.get(name, DimRange()).min == 0):
        most = dims[past].max
        for name, size in assignment.items():
            top = dims.get(name, DimRange()).max
            tied = most is not None and top in (most, most + 1) and name != past and not is_batch(name)
            if tied and top is not None and assignment[past] + size > top:
                return False
    return True


def _covering(combinations: Sequence[Assignment], strength: int) -> list[Assignment]:
    """A few of the combinations in which every `strength` sizes occur together, found greedily."""
    wanted = {group for each in combinations for group in _groups(each, strength)}
    chosen: list[Assignment] = []
    while wanted:
        best = max(combinations, key=lambda each: len(_groups(each, strength) & wanted))
        wanted -= _groups(best, strength)
        chosen.append(best)
    return sorted(chosen, key=lambda each: math.prod(each.values()))


def _groups(assignment: Assignment, strength: int) -> set[tuple[tuple[str, int], ...]]:
    return set(itertools.combinations(assignment.items(), min(strength, len(assignment))))


def _elements(specs: Sequence[TensorSpec], assignment: Assignment) -> int:
    return sum(math.prod(shape_at(spec, assignment)) for spec in specs)
