"""A language model as a graph: tokens, mask and cache in; logits and cache out.

Inputs `input_ids` `[batch, sequence]`, `attention_mask` `[batch, past_sequence + sequence]` (1: a token) and
`past_key_values.N.key` / `.value` `[batch, kv_heads, past_sequence, head_dim]`; outputs `logits` and
`present.N.key` / `.value` `[batch, kv_heads, past_sequence + sequence, head_dim]`. Rows may be padded on
either side: positions are counted, and the last token found, by the mask.

A model whose cache holds states (a state-space or linear-attention model) takes one token at a time, from
states of zeros on: its loop over a longer sequence is Python, which no graph holds at every length.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from burnish.errors import ExportError
from burnish.exporter.cache import Layout, Slot, layout_of
from burnish.exporter.dims import Assumed, DimSpec
from burnish.exporter.example_inputs import BATCH, longest, need_run
from burnish.exporter.modules import parameter, seen_through
from burnish.exporter.needs import torch
from burnish.exporter.source import Recast, TorchSource

PAST: Final = "past_key_values"
PRESENT: Final = "present"
_CACHES: Final = ("past_key_values", "cache_params")
"""What the parameter and the output are called that hold the cache."""
_SEQUENCE, _PAST = 3, 5  # of the examples


def causal_source(model: Any, *, last_logits_only: bool = True) -> TorchSource:
    """A causal transformers model, in eval mode, as one graph.

    Args:
        model: takes `input_ids`, `attention_mask` and a cache.
        last_logits_only: `logits` is `[batch, 1, vocab]`, of each row's last token, and nothing of
            `[batch, sequence, vocab]` is computed; otherwise it is all of that.

    Raises:
        ExportError: its cache is not understood (EXPORT_CACHE).
    """
    layout = find_layout(model)
    past = past_inputs(layout)
    sequence = 1 if layout.has_states else _SEQUENCE
    inputs, dims = _examples(model, past, sequence)

    def make(model: Any) -> Any:
        return _cached(model, find_layout(model), last_logits_only=last_logits_only)

    module = _cached(model, layout, last_logits_only=last_logits_only)
    names = {parameter(name): name for name in past}
    notes = ("takes one token at a time, from states of zeros on",) if layout.has_states else ()
    return TorchSource(
        module, inputs, dims, notes=notes, input_names=names, model=model, recast=Recast(model, make)
    )


def _cached(model: Any, layout: Layout, *, last_logits_only: bool) -> Any:
    """The model as it takes its cache as tensors."""
    past = past_inputs(layout)
    forward = _forward(model, layout, past, last_logits_only=last_logits_only)
    return seen_through(model, forward, ["input_ids", "attention_mask", *past])


def find_layout(model: Any) -> Layout:
    """The layout of a causal model's cache, read off a run on three tokens.

    Raises:
        ExportError: the model returns no cache that is understood (EXPORT_CACHE).
    """
    name = _cache_of(model)
    ids = torch.arange(BATCH * 3).reshape(BATCH, 3) % model.config.get_text_config().vocab_size
    found = need_run(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": True})
    return layout_of(getattr(found, name, None), type(model).__name__)


def past_inputs(layout: Layout, prefix: str = PAST) -> dict[str, Slot]:
    """The slots of a cache by the name of the graph's input."""
    return {f"{prefix}.{slot.label}": slot for slot in layout.slots}


def past_examples(slots: Mapping[str, Slot], past: int) -> dict[str, Any]:
    """Random cache tensors by parameter name; `past` tokens long."""
    generator = torch.Generator().manual_seed(1)
    return {
        parameter(name): torch.randn(_sized(slot, past), generator=generator).to(slot.dtype)
        for name, slot in slots.items()
    }


def past_range(top: int | None) -> DimSpec:
    """How long a past may be, where `top` tokens are the most: one comes after it at least."""
    return Assumed("past_sequence", 0, None if top is None else top - 1)


def past_dims(slots: Mapping[str, Slot], length: DimSpec | None) -> dict[str, dict[int, DimSpec]]:
    """The dynamic axes of cache tensors by parameter name; `length`: of what grows, None: fixed."""
    return {
        parameter(name): {0: "batch"} | ({2: length} if slot.grows and length else {})
        for name, slot in slots.items()
    }


@contextlib.contextmanager
def only_last(model: Any, place: Any) -> Iterator[Callable[[Any], Any]]:
    """Inside, the model's head sees one token of each row; yields what finishes the logits.

    The head is the module's `get_output_embeddings()`; of a model without one (or whose one sees something
    else) all logits are computed, and one of each row taken.

    Args:
        model: a transformers model.
        place: which token, `[batch]`; None: all of them.
    """

    def last(hidden: Any) -> Any:
        return hidden.gather(1, place[:, None, None].expand(-1, 1, hidden.shape[-1]))

    head = model.get_output_embeddings()
    if place is None or head is None:
        yield (lambda logits: logits) if place is None else last
        return
    done = []

    def before(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if given[0].dim() != 3:  # no hidden states `[batch, sequence, width]`
            return None
        done.append(True)
        return (last(given[0]), *given[1:])

    hook = head.register_forward_pre_hook(before)
    try:
        yield lambda logits: logits if done else last(logits)
    finally:
        hook.remove()


def last_token(mask: Any) -> Any:
    """The place of each row's last 1 in a `[batch, sequence]` mask; 0 in a row without one."""
    count = torch.arange(1, mask.shape[1] + 1, device=mask.device, dtype=mask.dtype)
    return (mask * count).argmax(-1)


def _examples(
    model: Any, past: Mapping[str, Slot], sequence: int
) -> tuple[dict[str, Any], dict[str, dict[int, DimSpec]]]:
    """Example inputs and dims of a graph of `sequence` tokens (1: always one)."""
    grows = any(slot.grows for slot in past.values())
    ids = torch.arange(BATCH * sequence).reshape(BATCH, sequence) % model.config.get_text_config().vocab_size
    mask = torch.ones(BATCH, (_PAST if grows else 0) + sequence, dtype=torch.int64)
    inputs = {"input_ids": ids, "attention_mask": mask} | past_examples(past, _PAST)
    top = longest(model.config)
    tokens: dict[int, DimSpec] = {0: "batch"}
    dims = {"input_ids": tokens, "attention_mask": tokens} | past_dims(past, past_range(top))
    if sequence > 1:
        dims["input_ids"] = tokens | {1: Assumed("sequence", 1, top)}
    if grows:
        total = "past_sequence + sequence" if sequence > 1 else "past_sequence + 1"
        dims["attention_mask"] = tokens | {1: total}
    return inputs, dims


def _forward(model: Any, layout: Layout, past: Mapping[str, Slot], *, last_logits_only: bool) -> Any:
    takes = inspect.signature(model.forward).parameters
    cache = _cache_of(model)
    growing = next((name for name, slot in past.items() if slot.grows), None)

    def forward(input_ids: Any, attention_mask: Any, **tensors: Any) -> dict[str, Any]:
        seen = tensors[growing].shape[2] if growing else 0
        # torch.export keeps the mask's length a size of its own; this says that it is the sum.
        attention_mask = attention_mask.reshape(input_ids.shape[0], seen + input_ids.shape[1])
        now = attention_mask[:, seen:]
        restored = layout.restore({slot.label: tensors[name] for name, slot in past.items()})
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": True, cache: restored}
        if "position_ids" in takes:
            given["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, seen:]
        with only_last(model, last_token(now) if last_logits_only else None) as finished:
            found = model(**given)
        kept = layout.read(getattr(found, cache))
        kept |= {
            slot.label: _unless_padding(kept[slot.label], tensors[name], now)
            for name, slot in past.items()
            if not slot.grows
        }
        return {"logits": finished(found.logits)} | {f"{PRESENT}.{label}": t for label, t in kept.items()}

    return forward


def _unless_padding(new: Any, old: Any, mask: Any) -> Any:
    """A state after one token, `[batch, ...]`: as it was in rows whose token is padding."""
    return torch.where(mask.bool().reshape(-1, *[1] * (new.dim() - 1)), new, old)


def _cache_of(model: Any) -> str:
    takes = inspect.signature(model.forward).parameters
    for name in _CACHES:
        if name in takes:
            return name
    raise ExportError(
        f"{type(model).__name__} takes no cache.",
        "Export it with task feature-extraction, or as a module of your own.",
        code="EXPORT_CACHE",
    )


def _sized(slot: Slot, past: int) -> tuple[int, ...]:
    rest = slot.shape[1:]
    return (BATCH, rest[0], past, *rest[2:]) if slot.grows else (BATCH, *rest)
