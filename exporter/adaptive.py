"""Adaptive average pooling of images whose sizes vary.

torch turns it into a pooling with the window that fits the example's size, or into one addition for each
place of that window: both are wrong at any other size. Which places a window holds follows from the size,
though, and a mean over windows is a product with a matrix.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from burnish.exporter.needs import torch
from burnish.exporter.swapping import swapped

_HOMES: Final = (
    (torch.nn.functional, "adaptive_avg_pool1d"), (torch, "adaptive_avg_pool1d"),
    (torch._C._nn, "adaptive_avg_pool2d"), (torch._C._nn, "adaptive_avg_pool3d"),
)  # fmt: skip


@contextlib.contextmanager
def windows_of_any_size() -> Iterator[None]:
    """Inside, axes whose size is dynamic are pooled by a matrix."""
    with contextlib.ExitStack() as swaps:
        for home, name in _HOMES:
            pooling = _pooling(getattr(home, name), int(name[-2]))
            swaps.enter_context(swapped(home, **{name: pooling}))
        yield


def _pooling(original: Callable[..., Any], rank: int) -> Callable[..., Any]:
    """The function; where no size varies, or every output is a single place, the original."""

    @functools.wraps(original)
    def pool(input: Any, output_size: Any) -> Any:  # noqa: A002 - torch's name
        wanted = [output_size] * rank if isinstance(output_size, int) else list(output_size)
        varies = any(isinstance(size, torch.SymInt) for size in input.shape[-rank:])
        if not varies or all(isinstance(size, int) and size == 1 for size in wanted):
            return original(input, output_size)
        return adaptive_mean(input, wanted)

    return pool


def adaptive_mean(image: Any, sizes: Sequence[Any]) -> Any:
    """`[..., height, width]` -> `[..., *sizes]`: window `i` of `n` begins at `i * height // n`."""
    for axis, size in enumerate(sizes, start=image.dim() - len(sizes)):
        if isinstance(size, int) and size == 1:
            image = image.mean(axis, keepdim=True)
        elif not torch.fx.experimental.symbolic_shapes.statically_known_true(size == image.shape[axis]):
            weights = _windows(image.shape[axis], size, image)
            image = (image.transpose(axis, -1) @ weights.transpose(0, 1)).transpose(axis, -1)
    return image


def _windows(length: Any, count: Any, like: Any) -> Any:
    """What each place counts for in each window: `[count, length]`.

    Place `p` is in window `i` where `i * length // count <= p < -(-(i + 1) * length // count)`; said without
    division, as ONNX divides integers towards zero.
    """
    place = torch.arange(length, device=like.device)
    window = torch.arange(count, device=like.device)[:, None]
    size = place[-1:] + 1
    inside = ((place + 1) * count > window * size) & (place * count < (window + 1) * size)
    share = inside.to(like.dtype)
    return share / share.sum(1, keepdim=True)
