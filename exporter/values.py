"""Tensors in and out of a module: by parameter name, as numpy arrays, outputs flat with sensible names."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from burnish.errors import ExportError
from burnish.exporter.needs import torch

Inputs = Any
"""A dict of tensors by parameter name, a tuple of tensors, or one tensor. Beside tensors, plain numbers,
booleans, strings and None are taken: they become constants of the export."""

_CONSTANTS = (bool, int, float, str, type(None))


def by_name(module: Any, inputs: Inputs) -> dict[str, Any]:
    """The inputs by name of `forward`'s parameter, in the order of its parameters.

    Raises:
        ExportError: they do not fit `forward`, or hold no tensor, or something nested (EXPORT_INPUTS).
    """
    parameters = inspect.signature(module.forward).parameters
    if isinstance(inputs, Mapping):
        order = {name: place for place, name in enumerate(parameters)}
        named = dict(sorted(inputs.items(), key=lambda item: order.get(item[0], len(order))))
    else:
        named = _bind(module, inputs if isinstance(inputs, Sequence) else (inputs,))
    for name, value in named.items():
        if not isinstance(value, (*_CONSTANTS, torch.Tensor)):
            raise _bad(
                f"Example input {name!r} is a {type(value).__name__}.",
                "Give tensors; wrap a module that takes nested inputs in one that takes them flat.",
            )
        if isinstance(value, torch.Tensor) and value.is_complex():
            raise _bad(
                f"Example input {name!r} is complex, which ONNX Runtime has no kernels for.",
                "Take torch.view_as_real's result [..., 2], and call torch.view_as_complex in forward.",
            )
    if not any(isinstance(value, torch.Tensor) for value in named.values()):
        raise _bad("The example inputs hold no tensor.", "Give one tensor for each input.")
    return named


def tensors(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the inputs that are tensors: the inputs of the exported graph, in order."""
    return {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}


def copies(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs that a module may change in place."""
    return {n: v.clone() if isinstance(v, torch.Tensor) else v for n, v in inputs.items()}


def resized(tensor: Any, axis: int, size: int) -> Any:
    """The tensor with that size of one axis: its own values repeated, or cut off; zeros from nothing."""
    old = tensor.shape[axis]
    if old == size:
        return tensor
    if old == 0:
        shape = [size if index == axis else length for index, length in enumerate(tensor.shape)]
        return tensor.new_zeros(shape)
    return tensor.index_select(axis, torch.arange(size, device=tensor.device) % old)


def flat_outputs(result: Any) -> dict[str, Any]:
    """The tensors of a module's result by name, None left out.

    Names are the keys of a mapping (a Hugging Face ModelOutput too) or fields of a named tuple, joined by
    dots where nested, and `output`, `output_0`, `output_1` where there are none.

    Raises:
        ExportError: the result holds something else, or no tensor (EXPORT_OUTPUTS).
    """
    found = list(_leaves(result, ()))
    if not found:
        raise ExportError(
            "The module returns no tensor.", "Return at least one tensor.", code="EXPORT_OUTPUTS"
        )
    for path, leaf in found:
        if leaf.is_complex():
            raise ExportError(
                f"Output {_join(path)!r} is complex, which ONNX Runtime has no kernels for.",
                "Return torch.view_as_real of it, [..., 2].",
                code="EXPORT_OUTPUTS",
            )
    return {_join(path): leaf for path, leaf in found}


def to_numpy(tensor: Any) -> np.ndarray:
    """A copy as a numpy array; bfloat16 as ml_dtypes spells it."""
    return np.array(as_numpy(tensor))


def as_numpy(tensor: Any) -> np.ndarray:
    """A tensor's own memory as a numpy array, where it is contiguous and on the CPU; a copy elsewhere."""
    plain = tensor.detach().to("cpu").contiguous()
    if plain.dtype == torch.bfloat16:
        bits: np.ndarray = plain.view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    array: np.ndarray = plain.numpy()
    return array


def to_tensor(array: np.ndarray, like: Any) -> Any:
    """A tensor on the device of `like`; bfloat16 from ml_dtypes."""
    array = np.array(array)
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(like.device)
    return torch.from_numpy(array).to(like.device)


def _bind(module: Any, inputs: Sequence[Any]) -> dict[str, Any]:
    signature = inspect.signature(module.forward)
    try:
        bound = signature.bind(*inputs)
    except TypeError as error:
        raise _bad(
            f"The example inputs do not fit {type(module).__name__}.forward: {error}.",
            "Give one for each parameter, or a dict by parameter name.",
        ) from error
    variadic = [p.name for p in signature.parameters.values() if p.kind is p.VAR_POSITIONAL]
    if any(name in bound.arguments for name in variadic):
        raise _bad(
            f"{type(module).__name__}.forward takes *{variadic[0]}, whose inputs have no names.",
            "Wrap it in a module whose forward names its parameters.",
        )
    return dict(bound.arguments)


def _leaves(result: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if result is None:
        return
    if isinstance(result, torch.Tensor):
        yield path, result
        return
    for name, value in _children(result, path):
        yield from _leaves(value, (*path, name))


def _children(result: Any, path: tuple[str, ...]) -> list[tuple[str, Any]]:
    if isinstance(result, Mapping):
        return [(str(name), value) for name, value in result.items()]
    if isinstance(result, tuple) and hasattr(result, "_fields"):
        return list(zip(result._fields, result, strict=True))
    if isinstance(result, (tuple, list)):
        return [(str(index), value) for index, value in enumerate(result)]
    raise ExportError(
        f"Output {_join(path)!r} is a {type(result).__name__}, which is not a tensor.",
        "Return tensors, in a tuple or a dict.",
        code="EXPORT_OUTPUTS",
    )


def _join(path: tuple[str, ...]) -> str:
    if not path:
        return "output"
    return f"output_{'.'.join(path)}" if path[0].isdecimal() else ".".join(path)


def _bad(what: str, hint: str) -> ExportError:
    return ExportError(what, hint, code="EXPORT_INPUTS")
