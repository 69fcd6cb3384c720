"""Sizes divided by torch's functions stay sizes, and so do lengths."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, Final

from burnish.exporter.needs import torch

_DIVISIONS: Final = (torch.div, torch.divide, torch.floor_divide)


class SizesStaySizes(torch.overrides.TorchFunctionMode):  # type: ignore[misc]
    """Inside, `torch.div(tensor.shape[1], 4, rounding_mode="floor")` is an integer.

    torch makes a tensor of it, which may be used as a size again; while torch traces, that is a size that
    depends on values. Where both are integers, and the quotient is rounded down, nothing is lost.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, or divide sizes."""
        given = kwargs or {}
        rounding = "floor" if function is torch.floor_divide else given.get("rounding_mode")
        if function in _DIVISIONS and len(args) == 2 and _sizes(args):
            one, two = args
            if rounding == "floor" or (rounding == "trunc" and _known(one >= 0) and _known(two > 0)):
                return one // two
        return function(*args, **given)


def _sizes(values: Any) -> bool:
    """Integers, at least one of them a size of what is traced: what is constant stays as it is."""
    of_trace = any(isinstance(value, torch.SymInt) for value in values)
    return of_trace and all(isinstance(value, (int, torch.SymInt)) for value in values)


def _known(condition: Any) -> bool:
    return bool(torch.fx.experimental.symbolic_shapes.statically_known_true(condition))


@contextlib.contextmanager
def lengths_stay_sizes(module: Any) -> Iterator[None]:
    """Inside, `len(tensor)` in the files that transformers has for the module is `tensor.shape[0]`.

    Python makes a number of what `len` returns, so the size that is traced would become the example's.
    """
    homes = {type(part).__module__ for part in module.modules()}
    known = [
        vars(sys.modules[home]) for home in homes if home.startswith("transformers.") and home in sys.modules
    ]
    for names in known:
        names["len"] = _length
    try:
        yield
    finally:
        for names in known:
            del names["len"]


def _length(value: Any) -> Any:
    return value.shape[0] if isinstance(value, torch.Tensor) and value.dim() else len(value)
