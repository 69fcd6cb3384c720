"""The judge of graphs with a cache: logits at every split into past and new tokens, then greedy decoding.

The reference is the module's forward over all tokens at once, without a cache: what the cache holds, and how
it is laid out, is the exporter's own affair.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np

from burnish.benchmarks.export.cases import BATCHES, Loaded, resized
from burnish.benchmarks.export.judge import (
    TOLERANCE,
    Product,
    Verdict,
    distance,
    first_line,
    judge_graph,
    spell,
)
from burnish.benchmarks.export.steppers import Stepper, stepper_of, torch_logits
from burnish.exporter.encoder_decoder import start_token

TOKENS: Final = 32
_PAST: Final = (0, 1, 11)
_NEW: Final = (1, 2, 7, 24)
_PROMPTS: Final = (5, 9, 12)
_TIE: Final = 1e-4


def judge(case: Loaded, product: Product) -> Verdict:
    """Everything about what an exporter wrote."""
    if case.form == "single" or product.style == "graph":
        verdict = judge_graph(case, product.files["model"])
        if case.form != "single":
            verdict.decode = "no cache"
        return verdict
    try:
        stepper = stepper_of(product, case)
    except Exception as error:  # noqa: BLE001 - onnxruntime has no base class for its errors
        return Verdict(parity=f"onnxruntime cannot load it: {first_line(error)}", decode="not run")
    verdict = Verdict(dims=stepper.fixed(), decode="not run")
    _parity(case, stepper, verdict)
    if not verdict.parity:
        verdict.decode = _decoding(case, stepper)
    return verdict


def _parity(case: Loaded, stepper: Stepper, verdict: Verdict) -> None:
    worst = 0.0
    for number, (sizes, past, new) in enumerate(_sizes(case)):
        rng = np.random.default_rng(number)
        batch = sizes["batch"]
        ids, mask, given = _tokens(case, sizes, past + new, rng, padded=not stepper.single)
        try:
            wanted = torch_logits(case, ids, mask, given)
        except Exception:  # noqa: BLE001 - the module is anybody's code; how often it refuses is counted
            verdict.refused += 1
            continue
        where = spell(sizes | {"past": past, "new": new})
        for optimiser in ("off", "on"):
            try:
                found = _logits(stepper, ids, mask, past, (batch, given, optimiser))
            except Exception as error:  # noqa: BLE001 - onnxruntime has no base class for its errors
                verdict.parity = f"does not run ({first_line(error)}) at {where}, optimiser {optimiser}"
                return
            error_ = distance(wanted, found)
            worst = verdict.error = max(worst, error_)
            if error_ > TOLERANCE:
                verdict.parity = f"logits differ by {error_:.2g} at {where}, optimiser {optimiser}"
                return
        verdict.compared += 1
    if not verdict.compared:
        verdict.parity = "the module runs at none of the sizes"


def _sizes(case: Loaded) -> Iterator[tuple[dict[str, int], int, int]]:
    """Sizes of what is not decoded, tokens of the past, new tokens."""
    top = max((max(s) for d, s in case.sizes.items() if d == "sequence"), default=max(_PAST) + max(_NEW))
    splits = [(p, n) for p, n in itertools.product(_PAST, _NEW) if p + n <= top]
    if case.form == "decoder":
        others: list[dict[str, int]] = [{}]
    else:
        dims = [d for d in case.sizes if d != "batch"]
        others = [
            dict(zip(dims, each, strict=True)) for each in itertools.product(*(case.sizes[d] for d in dims))
        ]
        splits = [split for split in splits if split in ((0, 1), (0, 7), (1, 2), (11, 1), (11, 24))]
    for batch, other, (past, new) in itertools.product(BATCHES, others, splits):
        yield {"batch": batch} | other, past, new


def _tokens(
    case: Loaded, sizes: Mapping[str, int], total: int, rng: np.random.Generator, *, padded: bool
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """All tokens of the decoder, their mask, and what the encoder takes."""
    batch = sizes["batch"]
    mask = np.ones((batch, total), np.int64)
    ids = _random_ids(case, (batch, total), rng)
    if case.form == "decoder":
        if padded:
            for row in range(1, batch):
                mask[row, : rng.integers(0, total)] = 0
        return ids, mask, {}
    ids[:, 0] = start_token(case.module)
    return ids, mask, _encoder_inputs(case, sizes, int(rng.integers(2**31)))


def _encoder_inputs(case: Loaded, sizes: Mapping[str, int], seed: int) -> dict[str, Any]:
    return {
        name: resized(name, tensor, {a: sizes[d] for a, d in case.dynamic.get(name, {}).items()}, seed)
        for name, tensor in case.inputs.items()
        if not name.startswith("decoder_")
    }


def _random_ids(case: Loaded, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Tokens of the vocabulary but the padding, which some models do not count as a place."""
    ids = rng.integers(0, case.module.config.get_text_config(decoder=True).vocab_size, shape)
    padding = _padding(case)
    return ids if padding is None else np.where(ids == padding, (padding + 1) % 3, ids)


def _padding(case: Loaded) -> int | None:
    found = getattr(case.module.config.get_text_config(decoder=True), "pad_token_id", None)
    return found if isinstance(found, int) and found >= 0 else None


def _choice(case: Loaded, logits: np.ndarray) -> np.ndarray:
    """The most likely tokens that are no padding, `[batch]`."""
    padding = _padding(case)
    allowed = logits if padding is None else logits.copy()
    if padding is not None and padding < logits.shape[-1]:
        allowed[:, padding] = -np.inf
    chosen: np.ndarray = allowed.argmax(-1)
    return chosen


def _logits(
    stepper: Stepper, ids: np.ndarray, mask: np.ndarray, past: int, start: tuple[int, Any, str]
) -> np.ndarray:
    """Logits of the last token, the past given first."""
    batch, given, optimiser = start
    stepper.begin(batch, given, optimiser)
    found = None
    for begin, end in _chunks(stepper, past, ids.shape[1]):
        found = stepper.step(ids[:, begin:end], mask[:, :end])
    if found is None:
        raise ValueError("there are no tokens")
    last: np.ndarray = found[:, -1]
    return last


def _chunks(stepper: Stepper, past: int, total: int) -> list[tuple[int, int]]:
    if not stepper.single:
        return [(0, total)] if past == 0 else [(0, past), (past, total)]
    first = max(past, 1) if stepper.whole_first else 1
    return [(0, first), *((at, at + 1) for at in range(first, total))]


def _decoding(case: Loaded, stepper: Stepper) -> str:
    """`same`, or the first token that differs from PyTorch's, off and on, alone and as a batch."""
    rng = np.random.default_rng(7)
    for rows in ([0], [0, 1, 2]):
        ids, mask, given = _prompts(case, rows, rng, ragged=not stepper.single)
        wanted, gaps = _greedy_torch(case, ids, mask, given)
        for optimiser in ("off", "on"):
            try:
                found = _greedy(case, stepper, (ids, mask), (given, optimiser), wanted)
            except Exception as error:  # noqa: BLE001 - onnxruntime has no base class for its errors
                return f"does not run ({first_line(error)})"
            for row, step in np.argwhere(found != wanted):
                if gaps[row, step] > _TIE:
                    return (
                        f"token {step + 1} of row {row} (batch {len(rows)}, optimiser {optimiser}) is "
                        f"{found[row, step]}, not {wanted[row, step]}"
                    )
    return "same"


def _prompts(
    case: Loaded, rows: list[int], rng: np.random.Generator, *, ragged: bool
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    if case.form == "encoder-decoder":
        dims = {d: s[min(2, len(s) - 1)] for d, s in case.sizes.items()} | {"batch": len(rows)}
        given = _encoder_inputs(case, dims, 11)
        ids = np.full((len(rows), 1), start_token(case.module), np.int64)
        return ids, np.ones_like(ids), given
    lengths = [_PROMPTS[row] if ragged else _PROMPTS[1] for row in rows]
    ids = _random_ids(case, (len(rows), max(lengths)), rng)
    mask = np.stack([np.arange(max(lengths)) >= max(lengths) - n for n in lengths]).astype(np.int64)
    return ids, mask, {}


def _longer(ids: np.ndarray, mask: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([ids, chosen[:, None]], 1), np.concatenate([mask, np.ones_like(mask[:, :1])], 1)


def _greedy_torch(
    case: Loaded, ids: np.ndarray, mask: np.ndarray, given: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens `[batch, TOKENS]`, and how far each was ahead of the next, relative to the largest logit."""
    tokens, gaps = [], []
    for _ in range(TOKENS):
        logits = torch_logits(case, ids, mask, given)
        best = np.sort(logits, axis=-1)
        gaps.append((best[:, -1] - best[:, -2]) / np.maximum(np.abs(logits).max(-1), 1e-9))
        tokens.append(_choice(case, logits))
        ids, mask = _longer(ids, mask, tokens[-1])
    return np.stack(tokens, 1), np.stack(gaps, 1)


def _greedy(
    case: Loaded,
    stepper: Stepper,
    prompt: tuple[np.ndarray, np.ndarray],
    start: tuple[Any, str],
    wanted: np.ndarray,
) -> np.ndarray:
    """Tokens that the graph chooses; each step is fed PyTorch's token, so that one tie does not spread."""
    (ids, mask), (given, optimiser) = prompt, start
    stepper.begin(len(ids), given, optimiser)
    for begin, end in _chunks(stepper, ids.shape[1] if stepper.whole_first else 0, ids.shape[1]):
        logits = stepper.step(ids[:, begin:end], mask[:, :end])
    tokens = []
    for step in range(TOKENS):
        tokens.append(_choice(case, logits[:, -1]))
        ids, mask = _longer(ids, mask, wanted[:, step])
        logits = stepper.step(ids[:, -1:], mask)
    return np.stack(tokens, 1)
