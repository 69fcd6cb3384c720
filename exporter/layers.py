"""Layers of a model that are one layer again, with other weights; and the model with few of them."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, final

from burnish.exporter.alike import alike, same
from burnish.exporter.needs import torch

_COMPARED: Final = 2
"""Layers that are compared in the graph, after the one that comes before both."""
_SAVED: Final = 2
"""The fewest layers that it is worth not to trace."""


@final
@dataclasses.dataclass(frozen=True)
class Stack:
    """Layers in a list, of which all but perhaps the first are alike."""

    path: str
    """Of the list, as in a state dict."""
    count: int
    kept: int
    """How many of them are traced; those that follow are the last of these again."""

    @property
    def first(self) -> int:
        """The first of those that are alike."""
        return self.kept - 1 - _COMPARED

    def layer(self, number: int) -> str:
        """The path of one of its layers."""
        return f"{self.path}.{number}" if self.path else str(number)


def find_stacks(model: Any) -> tuple[Stack, ...]:
    """The lists of layers that are alike, none inside another.

    Layers are not alike where a list in the configuration, or in a module around them, says something else
    of each, or where one shares a weight.

    Args:
        model: a `torch.nn.Module`. Every `ModuleList` and `Sequential` in it is looked at.
    """
    found: list[Stack] = []
    uses = _uses(model)
    for path, part in model.named_modules():
        if isinstance(part, (torch.nn.ModuleList, torch.nn.Sequential)) and not _inside(path, found):
            stack = _stack(path, part, uses, list(_around(model, path)))
            found += [stack] if stack else []
    return tuple(found)


def shortened(model: Any, stacks: Sequence[Stack]) -> Any:
    """A twin of the model whose stacks have their first layers only; it shares all that it keeps.

    Args:
        model: stays as it is.
        stacks: none inside another.
    """
    twins: dict[str, Any] = {"": _twin(model)}
    for stack in stacks:
        path, place = "", twins[""]
        for name in _names(stack.path):
            path = f"{path}.{name}" if path else name
            if path not in twins:
                twins[path] = _twin(place._modules[name])
                place._modules[name] = twins[path]
            place = twins[path]
        place._modules = dict(list(place._modules.items())[: stack.kept])
    return twins[""]


def _stack(path: str, part: Any, uses: Mapping[int, int], around: Sequence[Any]) -> Stack | None:
    layers = list(part._modules.values())
    count = len(layers)
    if list(part._modules) != [str(number) for number in range(count)] or None in layers:
        return None
    for first in (0, 1):
        kept = first + 1 + _COMPARED
        if count >= kept + _SAVED and all(
            alike(layers[first], layers[number], (first, number)) for number in range(first + 1, count)
        ):
            apart = any(_shares(layer, uses) for layer in layers[first:])
            listed = any(_differ(values[first:]) for values in around if len(values) == count)
            return None if apart or listed else Stack(path, count, kept)
    return None


def _differ(values: Sequence[Any]) -> bool:
    return any(not same(values[0], value) for value in values[1:])


def _around(model: Any, path: str) -> Iterator[Sequence[Any]]:
    """Every list in the modules that hold what is at a path, and in their configurations."""
    part = model
    for name in _names(path):
        yield from _lists(vars(part))
        part = part._modules[name]


def _lists(attributes: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    for value in attributes.values():
        if isinstance(value, (list, tuple)):
            yield value
        elif hasattr(value, "to_dict"):
            yield from _lists(vars(value))


def all_weights(model: Any) -> dict[str, Any]:
    """Parameters and buffers by name, in the order in which torch lists them; shared ones by each name."""
    both = (model.named_parameters, model.named_buffers)
    return {name: tensor for each in both for name, tensor in each(remove_duplicate=False)}


def _uses(model: Any) -> Counter[int]:
    """How often each memory is a parameter or a buffer of the model."""
    return Counter(tensor.data_ptr() for tensor in all_weights(model).values() if tensor.numel())


def _shares(layer: Any, uses: Mapping[int, int]) -> bool:
    tensors = [*layer.parameters(), *layer.buffers()]
    return any(uses[tensor.data_ptr()] > 1 for tensor in tensors if tensor.numel())


def _inside(path: str, stacks: Sequence[Stack]) -> bool:
    return any(not stack.path or path.startswith(f"{stack.path}.") for stack in stacks)


def _names(path: str) -> list[str]:
    return path.split(".") if path else []


def _twin(module: Any) -> Any:
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin
