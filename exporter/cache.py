"""The KV cache of a decoder as plain tensors: found by running the model once, put back by its layers' kinds.

Nothing here names an architecture. What a layer keeps is read from the cache that the model itself returns:
keys and values that grow with every token, or states of a fixed size (linear attention, state spaces). A
sliding-window layer is kept as one that grows: the window is in the mask, so the result is the same, and
one graph serves every length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, final

from burnish.errors import ExportError
from burnish.exporter.needs import need, torch

Kind = Literal["key", "value", "conv", "recurrent"]

_GROWING: Final = ("key", "value")


@final
@dataclasses.dataclass(frozen=True)
class Slot:
    """One tensor of a cache."""

    layer: int
    kind: Kind
    state: int
    """Which of several states of that kind a layer has; 0 for keys and values."""
    shape: tuple[int, ...]
    """As the model filled it; keys and values are `[batch, kv_heads, tokens, head_dim]`."""
    dtype: Any
    """The torch dtype."""

    @property
    def label(self) -> str:
        """`0.key`, `3.value`, `5.conv`, `5.recurrent.1`."""
        number = f".{self.state}" if self.state else ""
        return f"{self.layer}.{self.kind}{number}"

    @property
    def grows(self) -> bool:
        """True for keys and values, whose axis 2 is as long as the tokens seen."""
        return self.kind in _GROWING


@final
@dataclasses.dataclass(frozen=True)
class Layout:
    """What a cache holds, layer by layer."""

    slots: tuple[Slot, ...]
    layers: int

    @property
    def has_states(self) -> bool:
        """True where a layer keeps a state of a fixed size, which a first run makes from nothing."""
        return any(not slot.grows for slot in self.slots)

    def restore(self, tensors: Mapping[str, Any]) -> Any:
        """A transformers cache that holds the tensors, by label; without any, an empty one of this layout."""
        cache = need("transformers").DynamicCache()
        cache.layers = [
            _layer([slot for slot in self.slots if slot.layer == number], tensors)
            for number in range(self.layers)
        ]
        return cache

    def read(self, cache: Any) -> dict[str, Any]:
        """The tensors of a cache of this layout, by label."""
        return {slot.label: _tensor(cache.layers[slot.layer], slot) for slot in self.slots}


def layout_of(cache: Any, model: str) -> Layout:
    """What a cache that a model returned holds.

    Raises:
        ExportError: it is not a transformers cache, or a layer of it is of a kind that is not known
            (EXPORT_CACHE).
    """
    layers = getattr(cache, "layers", None)
    if not isinstance(layers, list):
        raise _bad(model, f"returns a {type(cache).__name__}, not a transformers cache")
    slots = [slot for number, layer in enumerate(layers) for slot in _slots(number, layer, model)]
    if not slots:
        raise _bad(model, "returns an empty cache")
    return Layout(tuple(slots), len(layers))


def _slots(number: int, layer: Any, model: str) -> Iterator[Slot]:
    utils = need("transformers.cache_utils")
    if isinstance(layer, getattr(utils, "DynamicIndexedLayer", ())):
        raise _bad(model, f"keeps a {type(layer).__name__}, whose index is no plain tensor")
    for kind, name in (("key", "keys"), ("value", "values")):
        tensor = getattr(layer, name, None)
        if isinstance(tensor, torch.Tensor) and tensor.numel():
            yield Slot(number, kind, 0, tuple(tensor.shape), tensor.dtype)  # type: ignore[arg-type]
    for kind, name in (("conv", "conv_states"), ("recurrent", "recurrent_states")):
        for state, tensor in (getattr(layer, name, None) or {}).items():
            if isinstance(tensor, torch.Tensor):
                yield Slot(number, kind, state, tuple(tensor.shape), tensor.dtype)  # type: ignore[arg-type]


def _tensor(layer: Any, slot: Slot) -> Any:
    if slot.grows:
        return layer.keys if slot.kind == "key" else layer.values
    states = layer.conv_states if slot.kind == "conv" else layer.recurrent_states
    return states[slot.state]


def _layer(slots: Sequence[Slot], tensors: Mapping[str, Any]) -> Any:
    utils = need("transformers.cache_utils")
    full = all(slot.label in tensors for slot in slots)
    states = max((slot.state + 1 for slot in slots if not slot.grows), default=0)
    growing = any(slot.grows for slot in slots)
    if not slots:
        return utils.DynamicLayer()
    if not states:
        layer = _growing_layer() if full else utils.DynamicLayer()
    elif growing:
        layer = utils.LinearAttentionAndFullAttentionLayer(number_of_states=states)
    else:
        layer = utils.LinearAttentionLayer(number_of_states=states)
    for slot in slots if full else ():
        _fill(layer, slot, tensors[slot.label])
    return layer


def _fill(layer: Any, slot: Slot, tensor: Any) -> None:
    layer.dtype, layer.device = tensor.dtype, tensor.device
    if slot.grows:
        setattr(layer, "keys" if slot.kind == "key" else "values", tensor)
        layer.is_initialized = True
        return
    # The model updates states in place; inputs of a graph must stay as they are.
    if slot.kind == "conv":
        layer.conv_states[slot.state] = tensor.clone()
        layer.is_conv_states_initialized[slot.state] = True
        layer.conv_kernel_size[slot.state] = tensor.shape[-1]
    else:
        layer.recurrent_states[slot.state] = tensor.clone()
        layer.is_recurrent_states_initialized[slot.state] = True
    layer.has_previous_state[slot.state] = True


def _growing_layer() -> Any:
    """A DynamicLayer that takes its length from the shape alone.

    transformers' own asks whether it holds no element, on which torch.export would decide that it never
    is empty.
    """
    base = need("transformers.cache_utils").DynamicLayer

    class Growing(base):  # type: ignore[misc, valid-type]
        def get_seq_length(self) -> int:
            return self.keys.shape[-2]  # type: ignore[no-any-return]

    return Growing()


def _bad(model: str, why: str) -> ExportError:
    return ExportError(
        f"The cache of {model} cannot be made inputs of a graph: it {why}.",
        "Export it without a cache: task feature-extraction, or a module of your own.",
        code="EXPORT_CACHE",
    )
