"""Are two modules alike: do they compute the same, but for the numbers in their weights?

Nothing is taken on trust: what is not understood is not alike.
"""

from __future__ import annotations

import enum
import functools
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, Final, final

import numpy as np

from burnish.exporter.needs import torch

_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks")
"""Attributes of a module that begin so hold what is called around `forward`, by a number of its own."""
_APART: Final = frozenset({"_parameters", "_buffers", "_modules"})
_PLAIN: Final = (bool, str, bytes, complex, type(None), torch.dtype, torch.device, range, enum.Enum)


def alike(first: Any, second: Any, places: tuple[int, int]) -> bool:
    """True where the modules differ in the values of their parameters and buffers only.

    Classes, attributes (of configurations too), hooks, and the names, shapes and types of their parameters
    and buffers are the same, in all of their parts; training mode too.

    Args:
        first: a `torch.nn.Module`.
        second: another one.
        places: which of a list of layers each is: a whole number that is that may differ.
    """
    ours, others = dict(first.named_modules()), dict(second.named_modules())
    if list(ours) != list(others):
        return False
    compare = _Comparison({id(one): others[name] for name, one in ours.items()}, places)
    return all(compare.modules(one, others[name]) for name, one in ours.items())


def same(one: Any, other: Any) -> bool:
    """True where two values (numbers, configurations, functions, lists of them) are equal."""
    return _Comparison({}, (-1, -1)).values(one, other)


@final
class _Comparison:
    """What of one module goes with what of the other."""

    def __init__(self, twins: Mapping[int, Any], places: tuple[int, int]) -> None:
        self._twins, self._places = twins, places
        self._open: set[tuple[int, int]] = set()

    def modules(self, one: Any, other: Any) -> bool:
        """Two modules, without their parts."""
        if type(one) is not type(other) or not _same_tensors(one, other):
            return False
        ours, others = vars(one), vars(other)
        if ours.keys() != others.keys() or list(ours["_modules"]) != list(others["_modules"]):
            return False
        return all(
            self.values(*_without_numbers(name, ours[name], others[name])) for name in ours.keys() - _APART
        )

    def values(self, one: Any, other: Any) -> bool:
        """Two attributes, or things in them."""
        if one is other:
            return True
        if id(one) in self._twins:
            return self._twins[id(one)] is other
        if type(one) is not type(other) or isinstance(one, torch.nn.Module):
            return False
        if isinstance(one, int) and not isinstance(one, bool):
            return one == other or (one, other) == self._places
        if isinstance(one, float):
            return one == other or (math.isnan(one) and math.isnan(other))
        if isinstance(one, _PLAIN):
            return bool(one == other)
        return self._nested(one, other)

    def _nested(self, one: Any, other: Any) -> bool:
        pair = (id(one), id(other))
        if pair in self._open:  # asked further out: that answer decides
            return True
        self._open.add(pair)
        try:
            return self._parts(one, other)
        finally:
            self._open.discard(pair)

    def _parts(self, one: Any, other: Any) -> bool:
        if isinstance(one, torch.Tensor):
            return _same_kind(one, other) and torch.equal(one, other)
        if isinstance(one, np.ndarray):
            return one.dtype == other.dtype and np.array_equal(one, other)
        if isinstance(one, Mapping):
            return list(one) == list(other) and self._each(list(one.values()), list(other.values()))
        if isinstance(one, (set, frozenset)):
            return bool(one == other)
        if isinstance(one, (list, tuple)):
            return self._each(one, other)
        if isinstance(one, types.FunctionType):
            return one.__code__ is other.__code__ and self._each(_around(one), _around(other))
        if isinstance(one, types.MethodType):
            return one.__func__ is other.__func__ and self.values(one.__self__, other.__self__)
        if isinstance(one, functools.partial):
            return self._each([one.func, one.args, one.keywords], [other.func, other.args, other.keywords])
        plain = hasattr(one, "__dict__") and not isinstance(one, type) and type(one).__module__ != "torch"
        return plain and self.values(vars(one), vars(other))

    def _each(self, ones: Sequence[Any], others: Sequence[Any]) -> bool:
        return len(ones) == len(others) and all(map(self.values, ones, others))


def _without_numbers(name: str, one: Any, other: Any) -> tuple[Any, Any]:
    """Hooks in order, without the numbers that torch gave them; those of loading and saving do not matter."""
    if name.startswith(_HOOKS):
        return list(one.values()), list(other.values())
    return ((), ()) if name.endswith("_hooks") and "state_dict" in name else (one, other)


def _around(function: types.FunctionType) -> list[Any]:
    """What a function computes with beside its arguments."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return [function.__defaults__, function.__kwdefaults__, cells, vars(function), id(function.__globals__)]


def _same_tensors(one: Any, other: Any) -> bool:
    return all(
        list(ours) == list(others) and all(map(_same_kind, ours.values(), others.values()))
        for ours, others in ((one._parameters, other._parameters), (one._buffers, other._buffers))
    )


def _same_kind(one: Any, other: Any) -> bool:
    """The same shape, type, layout and place; both may be missing."""
    if one is None or other is None:
        return one is other
    return type(one) is type(other) and all(
        getattr(one, name) == getattr(other, name) for name in ("shape", "dtype", "device", "layout")
    ) and (one.layout != torch.strided or one.stride() == other.stride())  # fmt: skip
