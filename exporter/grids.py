"""`torch.nn.functional.affine_grid` in arithmetic: torch's own decomposition makes the sizes constants."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from burnish.exporter.needs import torch
from burnish.exporter.swapping import swapped


@contextlib.contextmanager
def grids_in_arithmetic() -> Iterator[None]:
    """Inside, a grid is computed from ranges, whose lengths may vary."""
    with swapped(torch, affine_grid_generator=affine_grid):
        yield


def affine_grid(theta: Any, size: Sequence[Any], align_corners: bool) -> Any:
    """Where every place of an image comes from, as torch.affine_grid_generator says it.

    Args:
        theta: `[batch, 2, 3]` for images, `[batch, 3, 4]` for volumes.
        size: of the image: `(batch, channels, height, width)`, or with a depth before the height.
        align_corners: -1 and 1 are the centres of the outermost places, not their outer edges.

    Returns:
        `[batch, height, width, 2]`, or `[batch, depth, height, width, 3]`; x comes first.
    """
    rank = len(size) - 2
    grid = theta[:, :, rank].reshape(-1, *[1] * rank, rank)
    for axis, length in enumerate(size[2:]):
        places = _places(length, align_corners, theta).reshape(*[1] * (axis + 1), -1, *[1] * (rank - axis))
        grid = grid + places * theta[:, :, rank - 1 - axis].reshape(-1, *[1] * rank, rank)
    return grid


def _places(length: Any, align_corners: bool, like: Any) -> Any:
    """From -1 to 1 in even steps: `[length]`."""
    steps = torch.arange(length, dtype=torch.float32, device=like.device)
    last = steps[-1:]
    return ((2 * steps - last) / (last.clamp(min=1) if align_corners else last + 1)).to(like.dtype)
