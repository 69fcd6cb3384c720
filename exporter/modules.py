"""A module seen through another `forward`: other inputs and outputs, the same weights by the same names."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from burnish.exporter.needs import torch


def parameter(name: str) -> str:
    """The name of an input as a parameter of Python: dots become underscores."""
    return name.replace(".", "_")


def seen_through(module: Any, run: Callable[..., Any], inputs: Sequence[str]) -> Any:
    """A twin of the module, sharing everything but `forward`, which names its parameters.

    Weights keep their state-dict names and parts their paths, as in no wrapper they would.

    Args:
        module: stays as it is.
        run: what `forward` does; it may call the module.
        inputs: names of the keywords of `run`, in order; dots are allowed.
    """
    names = {parameter(name): name for name in inputs}

    def forward(**tensors: Any) -> Any:
        return run(**{names[name]: tensor for name, tensor in tensors.items()})

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind) for name in names]
    )
    twin = copy.copy(module)
    twin.forward = forward
    return twin


def plain(model: Any, inputs: Sequence[str]) -> Any:
    """A transformers model with the tensors of its output, without what it nests in it (inner outputs)."""
    takes = inspect.signature(model.forward).parameters
    flags = {name: value for name, value in (("use_cache", False), ("return_dict", True)) if name in takes}

    def run(**tensors: Any) -> Any:
        found = model(**tensors, **flags)
        return top_tensors(found)

    return seen_through(model, run, inputs)


def top_tensors(found: Any) -> Any:
    """The tensors directly in a mapping; anything else, or a mapping without one, as it is."""
    if not isinstance(found, Mapping):
        return found
    tensors = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    return tensors or found
