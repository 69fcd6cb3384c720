"""Greedy decoding, token by token: the exported graphs with their cache against the model in PyTorch.

PyTorch decodes each prompt alone, with the cache that the model makes itself; the graphs decode it alone, and
three prompts of different lengths together. Every token must be the same.
"""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, final

import numpy as np

from burnish.errors import MismatchError
from burnish.exporter.causal import PAST, PRESENT
from burnish.exporter.encoder_decoder import start_token
from burnish.exporter.example_inputs import longest
from burnish.exporter.needs import torch
from burnish.exporter.quiet import evaluating, quiet
from burnish.feeds import dtype_of, make_feeds, shape_at
from burnish.manifest import Manifest, Receipt

Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]

TOKENS: Final = 64
_FEWER: Final = 16  # of models over half a billion parameters
_LARGE: Final = 500_000_000
_PROMPTS: Final = (5, 9, 12)  # lengths
_ROWS: Final = ((0,), (1,), (2,), (0, 1, 2))  # the prompts that are decoded together
_ROWS_OF_LARGE: Final = ((0,), (0, 1, 2))
_ALONE_OF_LARGE: Final = 4  # tokens of a prompt alone: what follows is the same for one row as for three
_TIE: Final = 1e-4  # of the largest logit: two tokens this close are equally right


@final
@dataclasses.dataclass(frozen=True)
class Graph:
    """A graph with a cache, and how to run it."""

    interface: Manifest
    run: Run


@final
@dataclasses.dataclass(frozen=True)
class _Greedy:
    """What PyTorch decoded from one prompt."""

    tokens: list[int]
    gaps: list[float]
    """How far the token was ahead of the next best one, relative to the largest logit."""


def check_decoding(model: Any, decoder: Graph, *, tokens: int | None = None, seed: int = 0) -> Receipt:
    """Compare greedy decoding of a causal model with that of its graph.

    Args:
        model: the transformers model.
        decoder: its graph, as `burnish.exporter.causal` exports it.
        tokens: how many to decode from each prompt; default: 64, or 16 of very large models.
        seed: of the prompts.

    Returns:
        The receipt of step `decode`.

    Raises:
        MismatchError: a token differs (EXPORT_DECODE).
    """
    start = time.perf_counter()
    count = _count(model, tokens)
    rng = np.random.default_rng(seed)
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    prompts = [rng.integers(0, vocabulary, length) for length in _PROMPTS]
    large = _is_large(model)
    known = None if large else [_torch_greedy(model, prompt, count) for prompt in prompts]
    notes = []
    for rows in _ROWS_OF_LARGE if large else _ROWS:
        given = [prompts[row] for row in rows]
        steps = min(count, _ALONE_OF_LARGE) if large and len(rows) == 1 else count
        found = _graph_greedy(decoder, given, steps)
        if known is None:
            wanted = [_torch_next(model, *each) for each in zip(given, found, strict=True)]
        else:
            wanted = [known[row] for row in rows]
        notes += _compare(wanted, found, f"batch {len(rows)}")
    said = [f"large: {_ALONE_OF_LARGE} tokens alone, and PyTorch in one pass over them"] if large else []
    return _receipt(count, [*said, *notes], start)


def _receipt(count: int, notes: Sequence[str], start: float) -> Receipt:
    said = f"{count} tokens greedily from prompts of {', '.join(map(str, _PROMPTS))}: alone, and as a batch"
    return Receipt(
        step="decode", numerics="exact", notes=(said, *dict.fromkeys(notes)),
        seconds=time.perf_counter() - start,
    )  # fmt: skip


def _count(model: Any, tokens: int | None) -> int:
    wanted = tokens if tokens is not None else _FEWER if _is_large(model) else TOKENS
    most = longest(model.config)
    return wanted if most is None else max(1, min(wanted, most - max(_PROMPTS) - 2))


def _is_large(model: Any) -> bool:
    parameters: int = sum(weight.numel() for weight in model.parameters())
    return parameters > _LARGE


def _torch_next(model: Any, prompt: np.ndarray, tokens: Sequence[int]) -> _Greedy:
    """What the model would choose after the prompt and each part of the tokens, in one pass over them.

    Where it would choose those very tokens, it decodes them, by induction; the first that it would not
    choose is the first that differs.
    """
    ids = np.concatenate([prompt, tokens[:-1]]).astype(np.int64)
    with evaluating(model), quiet():
        logits = model(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0, len(prompt) - 1 :]
    best = logits.float().topk(2).values
    gaps = (best[:, 0] - best[:, 1]) / logits.float().abs().amax(-1).clamp(min=1e-9)
    return _Greedy(logits.argmax(-1).tolist(), gaps.tolist())


def _torch_greedy(model: Any, prompt: np.ndarray, count: int) -> _Greedy:
    """Greedy decoding by the model itself, its own cache included."""
    return _greedy_steps(model, {"input_ids": torch.from_numpy(prompt)[None]}, "input_ids", count)


def _greedy_steps(model: Any, given: dict[str, Any], name: str, count: int, **always: Any) -> _Greedy:
    tokens: list[int] = []
    gaps: list[float] = []
    cache: dict[str, Any] = {}
    placed, seen = "position_ids" in inspect.signature(model.forward).parameters, 0
    with evaluating(model), quiet():
        for _ in range(count):
            length = given[name].shape[1]
            # As generate() does: some models count the past by a layer that does not keep it.
            places = {"position_ids": torch.arange(seen, seen + length)[None]} if placed else {}
            found = model(**given, **always, **cache, **places, use_cache=True)
            seen += length
            logits = found.logits[0, -1].float()
            best = logits.topk(2).values
            tokens.append(int(logits.argmax()))
            gaps.append(float((best[0] - best[1]) / logits.abs().max().clamp(min=1e-9)))
            given = {name: torch.tensor([[tokens[-1]]])}
            cache = {n: found[n] for n in (PAST, "cache_params") if getattr(found, n, None) is not None}
    return _Greedy(tokens, gaps)


def _graph_greedy(decoder: Graph, prompts: Sequence[np.ndarray], count: int) -> list[list[int]]:
    """Rows are padded on the left, as transformers pads them."""
    width = max(len(prompt) for prompt in prompts)
    ids = np.stack([np.pad(prompt, (width - len(prompt), 0)) for prompt in prompts])
    mask = np.stack([np.arange(width) >= width - len(prompt) for prompt in prompts]).astype(np.int64)
    cache = empty_cache(decoder.interface, len(prompts))
    steps = _one_by_one(decoder, ids, mask) if _takes_one(decoder.interface) else [(ids, mask)]
    rows: list[list[int]] = [[] for _ in prompts]
    for given, seen in steps:
        outputs = decoder.run({"input_ids": given, "attention_mask": seen} | cache)
        cache = next_cache(outputs, cache)
    for _ in range(count):
        chosen = outputs["logits"][:, -1].argmax(-1)
        for row, token in zip(rows, chosen, strict=True):
            row.append(int(token))
        mask = np.concatenate([mask, np.ones_like(mask[:, :1])], axis=1)
        seen = mask if _grows(decoder.interface) else mask[:, -1:]
        outputs = decoder.run({"input_ids": chosen[:, None].astype(np.int64), "attention_mask": seen} | cache)
        cache = next_cache(outputs, cache)
    return rows


def _one_by_one(decoder: Graph, ids: np.ndarray, mask: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The prompt token by token, for a graph that takes one at a time."""
    for end in range(1, ids.shape[1] + 1):
        yield ids[:, end - 1 : end], mask[:, :end] if _grows(decoder.interface) else mask[:, end - 1 : end]


def empty_cache(
    interface: Manifest, batch: int, sizes: Mapping[str, int] | None = None
) -> dict[str, np.ndarray]:
    """The cache inputs before the first token: no tokens, states of zeros."""
    known = {"batch": batch, "past_sequence": 0} | dict(sizes or {})
    specs = [spec for spec in interface.inputs if spec.name.startswith(f"{PAST}.")]
    return {spec.name: np.zeros(shape_at(spec, known), dtype_of(spec.dtype)) for spec in specs}


def next_cache(outputs: Mapping[str, np.ndarray], cache: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The cache inputs of the next step: what came out, and what stays (of the encoder)."""
    return {name: outputs.get(name.replace(PAST, PRESENT, 1), array) for name, array in cache.items()}


def _takes_one(interface: Manifest) -> bool:
    ids = interface.input("input_ids")
    return ids is not None and ids.shape is not None and ids.shape[1] == 1


def _grows(interface: Manifest) -> bool:
    mask = interface.input("attention_mask")
    return mask is not None and mask.shape is not None and not isinstance(mask.shape[1], int)


def _compare(wanted: Sequence[_Greedy], found: Sequence[Sequence[int]], where: str) -> list[str]:
    notes = []
    for row, (reference, tokens) in enumerate(zip(wanted, found, strict=True)):
        step = next(
            (i for i, (a, b) in enumerate(zip(reference.tokens, tokens, strict=True)) if a != b), None
        )
        if step is None:
            continue
        if reference.gaps[step] > _TIE:
            raise MismatchError(
                f"Greedy decoding differs from PyTorch ({where}, row {row}) at token {step + 1}: "
                f"{tokens[step]} instead of {reference.tokens[step]}.",
                "torch exported the model wrongly: try another opset.",
                code="EXPORT_DECODE",
            )
        notes.append(f"{where}, row {row}: two tokens tie at token {step + 1}; compared up to there")
    return notes


def check_translating(
    model: Any, encoder: Graph, decoder: Graph, *, tokens: int | None = None, seed: int = 0
) -> Receipt:
    """Compare greedy decoding of an encoder-decoder with that of its two graphs, alone and as a batch of 3.

    Raises:
        MismatchError: a token differs (EXPORT_DECODE).
    """
    start = time.perf_counter()
    count = _count(model, tokens)
    rows = [_encoder_feeds(encoder.interface, length, seed + length) for length in _PROMPTS]
    first = start_token(model)
    wanted = []
    for feeds in rows:
        given = {name: torch.from_numpy(array) for name, array in feeds.items()}
        begin = given | {"decoder_input_ids": torch.tensor([[first]])}
        wanted.append(_translate_torch(model, begin, count))
    notes = []
    for chosen in ([0], [1], [2], [0, 1, 2]):
        found = _translate_graph(encoder, decoder, _stacked([rows[row] for row in chosen]), first, count)
        notes += _compare([wanted[row] for row in chosen], found, f"batch {len(chosen)}")
    return _receipt(count, notes, start)


def _translate_torch(model: Any, begin: dict[str, Any], count: int) -> _Greedy:
    with evaluating(model), quiet():
        taken = {name: value for name, value in begin.items() if name != "decoder_input_ids"}
        encoded = model.get_encoder()(**taken, return_dict=True)
    mask = {"attention_mask": begin["attention_mask"]} if "attention_mask" in begin else {}
    given = {"decoder_input_ids": begin["decoder_input_ids"]}
    return _greedy_steps(model, given, "decoder_input_ids", count, encoder_outputs=encoded, **mask)


def _translate_graph(
    encoder: Graph, decoder: Graph, feeds: dict[str, np.ndarray], first: int, count: int
) -> list[list[int]]:
    encoded = encoder.run(feeds)
    batch = next(iter(feeds.values())).shape[0]
    ids = np.full((batch, 1), first, np.int64)
    key = next(iter(encoded.values()))
    cache = empty_cache(decoder.interface, batch, {"encoder_sequence": key.shape[2]})
    cache |= {name.replace(PRESENT, PAST, 1): array for name, array in encoded.items()}
    extra = {"encoder_attention_mask": feeds["attention_mask"]} if "attention_mask" in feeds else {}
    rows: list[list[int]] = [[] for _ in range(batch)]
    for _ in range(count):
        outputs = decoder.run({"decoder_input_ids": ids} | extra | cache)
        cache = next_cache(outputs, cache)
        ids = outputs["logits"][:, -1].argmax(-1)[:, None].astype(np.int64)
        for row, token in zip(rows, ids[:, 0], strict=True):
            row.append(int(token))
    return rows


def _encoder_feeds(interface: Manifest, length: int, seed: int) -> dict[str, np.ndarray]:
    """One row of inputs, `length` long where they are text."""
    dims = {"batch": 1, "sequence": length}
    known = {name: dims.get(name, max(allowed.min, 64)) for name, allowed in interface.dims.items()}
    feeds = make_feeds(interface.inputs, known | dims, seed=seed)
    return {name: np.ones_like(a) if name == "attention_mask" else a for name, a in feeds.items()}


def _stacked(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Rows of text padded on the right; all others are equally long."""
    return {name: np.concatenate([_wide(row[name], rows, name) for row in rows]) for name in rows[0]}


def _wide(array: np.ndarray, rows: Sequence[dict[str, np.ndarray]], name: str) -> np.ndarray:
    if array.ndim != 2:
        return array
    return np.pad(array, ((0, 0), (0, max(row[name].shape[1] for row in rows) - array.shape[1])))
