"""Sizes of the dynamic dims to try where a model fails at the usual ones.

Real models tie dims in ways their types do not say (a mask `[batch, total]` as long as the ids
`[batch, sequence]`), and convolutional ones fail on images of a few pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from burnish.feeds import Assignment, are_large, assignments, typical_sizes
from burnish.manifest import DimRange, TensorSpec

_PAIRS: Final = ((1, 7), (2, 1), (3, 16), (1, 2), (1, 1), (1, 16), (1, 32), (2, 64), (3, 96), (1, 160))
_LONG: Final = ((1, 480), (2, 1040), (1, 1600), (1, 4000))
"""For signals: the convolutions of a speech model want 400 samples or more."""


def fallback_sizes(
    specs: Sequence[TensorSpec], dims: Mapping[str, DimRange] | None = None
) -> Iterator[Assignment]:
    """Assignments beside the usual ones: all dims but the batch are equal, from 1 to 4,000 and in range.

    Those at which the inputs are large come last; above 160 they are left out.
    """
    tried, large = assignments(specs, dims), []
    for batch, size in (*_PAIRS, *_LONG):
        wanted = typical_sizes(specs, dims, batch=batch, other=size)
        if wanted not in tried:
            tried.append(wanted)
            if not are_large(specs, wanted):
                yield wanted
            elif (batch, size) in _PAIRS:
                large.append(wanted)
    yield from large
