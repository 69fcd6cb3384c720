"""`1.0 - mask` of an integer mask, traced as the subtraction of floats that it is."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from burnish.exporter.needs import torch
from burnish.exporter.swapping import swapped


@contextlib.contextmanager
def fractions_less_integers() -> Iterator[None]:
    """Inside, integers that are subtracted from a fraction become floats first, as torch computes it.

    torch.onnx decomposes that (aten.rsub.Scalar) into an aten.sub that does not exist, and fails.
    """
    operator, function = _in_floats(torch.Tensor.__rsub__), _in_floats(torch.rsub)
    with swapped(torch.Tensor, __rsub__=operator), swapped(torch, rsub=function):
        yield


def _in_floats(subtract: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(subtract)
    def subtracted(tensor: Any, other: Any, **options: Any) -> Any:
        if isinstance(other, float) and not (tensor.is_floating_point() or tensor.is_complex()):
            tensor = tensor.to(torch.result_type(tensor, other))
        return subtract(tensor, other, **options)

    return subtracted
