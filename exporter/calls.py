"""How a model calls the layers of a stack: each once, in order, each in the same way, and what they then do.

A graph shows that of the layers that are traced only. So the whole model runs once, eagerly, and is watched.
All layers are given the very same object, or each what the layer before it returned, or equal numbers; a mask
for every fourth layer, or code between the layers, is something else. And all do the same operations with the
same constants, up to the first whose result has a size that depends on values.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

from torch.utils._python_dispatch import TorchDispatchMode

from burnish.exporter.alike import same
from burnish.exporter.layer_nodes import UnlikeError
from burnish.exporter.layers import Stack
from burnish.exporter.needs import torch


@final
@dataclasses.dataclass
class _Call:
    number: int
    """Of the layer."""
    operations: list[str] = dataclasses.field(default_factory=list)
    """Each with its constants."""
    given: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What the layer takes, by place; held, so that no id is used again."""
    returned: dict[str, Any] = dataclasses.field(default_factory=dict)


def need_called_alike(model: Any, stacks: Sequence[Stack], run: Callable[[], object]) -> None:
    """Watch how layers are called, and what they do.

    Args:
        model: which has the stacks.
        stacks: one that is not called at all is left alone.
        run: runs the model once.

    Raises:
        UnlikeError: the layers of a stack are called in different ways, or do different things.
    """
    with contextlib.ExitStack() as hooks:
        watched = hooks.enter_context(_Operations())
        calls = [hooks.enter_context(_recorded(model, stack, watched)) for stack in stacks]
        run()
    for stack, of_stack in zip(stacks, calls, strict=True):
        if of_stack:
            _compare(stack, of_stack)


@final
class _Operations(TorchDispatchMode):  # type: ignore[misc]
    """Adds every operation that torch does to the list of the layer that is being called."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[str] | None = None
        """None: no layer is being called, or what follows depends on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.noted is not None:
            given = {**{str(place): value for place, value in enumerate(args)}, **(kwargs or {})}
            constants = [(name, None if _is_tensor(value) else value) for name, value in _leaves(given)]
            self.noted.append(f"{func} {constants}")
            if torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags:
                self.noted = None
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _recorded(model: Any, stack: Stack, watched: _Operations) -> Iterator[list[_Call]]:
    """Meanwhile, the calls of the layers are collected."""
    calls: list[_Call] = []
    hooks = []

    def watch(number: int, layer: Any) -> None:
        def before(_layer: Any, _given: Any) -> None:
            calls.append(_Call(number))
            watched.noted = calls[-1].operations

        def after(_layer: Any, args: Any, kwargs: Any, result: Any) -> None:
            watched.noted = None
            given = {**{str(place): value for place, value in enumerate(args)}, **kwargs}
            calls[-1].given, calls[-1].returned = dict(_leaves(given)), dict(_leaves(result))

        hooks.append(layer.register_forward_pre_hook(before))
        hooks.append(layer.register_forward_hook(after, with_kwargs=True))

    try:
        for number in range(stack.count):
            watch(number, model.get_submodule(stack.layer(number)))
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _leaves(each, f"{path}.{name}")
    elif isinstance(value, (tuple, list)):
        for place, each in enumerate(value):
            yield from _leaves(each, f"{path}.{place}")
    else:
        yield path, value


def _compare(stack: Stack, calls: Sequence[_Call]) -> None:
    if [call.number for call in calls] != list(range(stack.count)):
        raise UnlikeError(f"the layers of {stack.path} are not called once each, in order")
    first, *others = alike = calls[stack.first :]
    for call in others:
        if call.given.keys() != first.given.keys() or call.returned.keys() != first.returned.keys():
            raise UnlikeError(f"layer {call.number} of {stack.path} takes or returns something else")
        if call.operations != first.operations:
            raise UnlikeError(f"layer {call.number} of {stack.path} does something else")
    for name in first.given:
        if not _one_way(name, alike):
            raise UnlikeError(f"the layers of {stack.path} are given {name} in different ways")


def _one_way(name: str, calls: Sequence[_Call]) -> bool:
    """True where every layer takes an argument from the same place."""
    first = calls[0]
    value = first.given[name]
    if all(call.given[name] is value for call in calls):
        return True
    if _is_tensor(value):
        return any(
            all(after.given[name] is before.returned[result] for before, after in itertools.pairwise(calls))
            for result in first.returned
        )
    return all(
        same(value, call.given[name])
        or (type(value) is int and (value, call.given[name]) == (first.number, call.number))
        for call in calls
    )
