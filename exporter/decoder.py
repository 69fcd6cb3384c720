"""A language model as a module with flat inputs: tokens, mask and cache in; logits and cache out.

Inputs `input_ids` `[batch, sequence]`, `attention_mask` `[batch, past_sequence + sequence]` (1: a token) and
`past_key_values.N.key` / `.value` `[batch, kv_heads, past_sequence, head_dim]`; outputs `logits` and
`present.N.key` / `.value` `[batch, kv_heads, past_sequence + sequence, head_dim]`. Rows may be padded on
either side: positions are counted, and the last token found, by the mask.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, Final, final

from burnish.errors import ExportError
from burnish.exporter.cache import Layout, Slot, layout_of
from burnish.exporter.dims import DimSpec
from burnish.exporter.needs import torch
from burnish.exporter.quiet import evaluating, quiet

PAST: Final = "past_key_values"
PRESENT: Final = "present"
_CACHES: Final = ("past_key_values", "cache_params")
"""What the parameter and the output are called that hold the cache."""


def parameter(name: str) -> str:
    """The name of an input as a parameter of Python: dots become underscores."""
    return name.replace(".", "_")


def with_signature(module: Any, names: Mapping[str, str]) -> Any:
    """Give a module whose `run` takes keywords a `forward` that names its parameters, as torch.export wants.

    Args:
        module: has `run(**tensors by input name)`.
        names: input name by parameter name, in order.
    """

    def forward(**tensors: Any) -> Any:
        return module.run(**{names[name]: tensor for name, tensor in tensors.items()})

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind) for name in names]
    )
    module.forward = forward
    return module


@final
class Decoder(torch.nn.Module):  # type: ignore[misc]
    """A causal language model with its cache as tensors.

    Args:
        model: a transformers model.
        layout: of its cache.
        last_logits_only: `logits` is `[batch, 1, vocab]`, of each row's last token; otherwise
            `[batch, sequence, vocab]`.
        fresh: the graph of the first tokens: no cache goes in. Needed where the cache holds states, which a
            first run makes.
    """

    def __init__(self, model: Any, layout: Layout, *, last_logits_only: bool, fresh: bool = False) -> None:
        super().__init__()
        self.model, self.layout = model, layout
        self.last_logits_only, self.fresh = last_logits_only, fresh
        self._takes = frozenset(inspect.signature(model.forward).parameters)
        self._cache = next(name for name in _CACHES if name in self._takes)
        self.past = {} if fresh else {f"{PAST}.{slot.label}": slot for slot in layout.slots}
        names = ["input_ids", "attention_mask", *self.past]
        self.names = {parameter(name): name for name in names}
        with_signature(self, self.names)

    def run(self, input_ids: Any, attention_mask: Any, **past: Any) -> dict[str, Any]:
        """Logits and the whole cache; see the module's head for the shapes."""
        seen = self._seen(past)
        torch._check(attention_mask.shape[1] == seen + input_ids.shape[1])
        given: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": True}
        given[self._cache] = self.layout.restore({s.label: past[name] for name, s in self.past.items()})
        if "position_ids" in self._takes:
            given["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, seen:]
        with _only_last(self.model, attention_mask[:, seen:], enabled=self.last_logits_only) as last:
            found = self.model(**given)
        cache = self.layout.read(found[self._cache])
        return {"logits": last(found.logits)} | {f"{PRESENT}.{label}": t for label, t in cache.items()}

    def _seen(self, past: Mapping[str, Any]) -> Any:
        """How many tokens the cache holds."""
        growing = next((past[name] for name, slot in self.past.items() if slot.grows), None)
        return 0 if growing is None else growing.shape[2]


def find_layout(model: Any, vocabulary: int) -> Layout:
    """The layout of a causal model's cache, read off a run on three tokens.

    Raises:
        ExportError: the model returns no cache that is understood (EXPORT_CACHE).
    """
    takes = inspect.signature(model.forward).parameters
    name = next((name for name in _CACHES if name in takes), None)
    if name is None:
        raise ExportError(
            f"{type(model).__name__} takes no cache.",
            "Export it with task feature-extraction, or as a module of your own.",
            code="EXPORT_CACHE",
        )
    ids = torch.arange(6).reshape(2, 3) % vocabulary
    with evaluating(model), quiet():
        found = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
    return layout_of(found[name], type(model).__name__)


def past_examples(slots: Mapping[str, Slot], batch: int, past: int) -> dict[str, Any]:
    """Random cache tensors by input name."""
    generator = torch.Generator().manual_seed(1)
    shapes = {name: _sized(slot, batch, past) for name, slot in slots.items()}
    return {
        name: torch.randn(shape, generator=generator).to(slots[name].dtype) for name, shape in shapes.items()
    }


def past_dims(slots: Mapping[str, Slot], longest: int | None) -> dict[str, dict[int, DimSpec]]:
    """The dynamic axes of the cache's inputs."""
    length = ("past_sequence", 0, longest)
    return {
        parameter(name): {0: ("batch", 1, None)} | ({2: length} if slot.grows else {})
        for name, slot in slots.items()
    }


def _sized(slot: Slot, batch: int, past: int) -> tuple[int, ...]:
    rest = slot.shape[1:]
    return (batch, rest[0], past, *rest[2:]) if slot.grows else (batch, *rest)


@contextlib.contextmanager
def _only_last(model: Any, mask: Any, *, enabled: bool) -> Iterator[Any]:
    """Inside, the model's head sees the last token of each row only; yields what finishes the logits.

    The head is the module's `get_output_embeddings()`; a model without one computes all logits, of which
    the last are taken.
    """
    if not enabled:
        yield lambda logits: logits
        return
    count = torch.arange(1, mask.shape[1] + 1, device=mask.device, dtype=mask.dtype)
    place = (mask * count).argmax(-1)  # [batch]

    def last(hidden: Any) -> Any:
        index = place[:, None, None].expand(-1, 1, hidden.shape[-1])
        return hidden.gather(1, index)

    head = model.get_output_embeddings()
    if head is None:
        yield last
        return
    hook = head.register_forward_pre_hook(lambda _, given: (last(given[0]), *given[1:]))
    try:
        yield lambda logits: logits
    finally:
        hook.remove()
