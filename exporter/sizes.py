"""Sizes divided by torch's functions stay sizes."""

from __future__ import annotations

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
