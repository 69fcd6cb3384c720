"""torch's Transformer layers, traced without their look at whether a mask happens to be the causal one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from burnish.exporter.needs import torch
from burnish.exporter.swapping import swapped


@contextlib.contextmanager
def masks_as_given() -> Iterator[None]:
    """Inside, `torch.nn.TransformerEncoder` and `TransformerDecoder` apply the mask that they are given.

    Where nobody says `is_causal`, torch compares the mask's values with the causal ones, to choose a faster
    kernel with the same result; a branch on values cannot be traced.
    """

    def is_causal(_mask: Any, is_causal: bool | None = None, _size: int | None = None) -> bool:
        return is_causal is True

    with swapped(torch.nn.modules.transformer, _detect_is_causal_mask=is_causal):
        yield
