"""Random weights that show mistakes: as large as trained ones, no bias zero, no scale exactly one.

transformers initialises with a deviation of 0.02, made for widths of hundreds. At a width of 32 everything is
then nearly zero: a graph that drops a layer would pass, and greedy decoding repeats one token.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import torch

from burnish.exporter.quiet import evaluating, quiet

_GAINS: Final = (1.0, 2.0, 0.6, 4.0)
_KINDS: Final = 4  # tokens that greedy decoding must vary between
_STEPS: Final = 12
_NOISE: Final = 0.05


def liven(model: Any, seed: int = 0, gain: float = 1.0) -> None:
    """Give every matrix a deviation of `gain / sqrt(fan in)` where its own is smaller; noise to vectors.

    In place; the same seed gives the same weights.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if not weight.is_floating_point() or weight.numel() < 2:
                continue
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() < 2:
                weight += _NOISE * noise
                continue
            wanted = gain / math.sqrt(max(1, weight[0].numel()))
            if float(weight.float().std()) < wanted:
                weight.copy_(wanted * noise)


def untie(model: Any) -> None:
    """Where a detector chooses places by their scores: those that are masked get none, instead of equal ones.

    Masked places come out of `enc_output` as what its biases make of nothing; random biases may put them
    first, and which of a thousand equal scores is the first, no two runtimes agree on.
    """
    places = [module for name, module in model.named_modules() if name.endswith("enc_output")]
    with torch.no_grad():
        for name, weight in (found for module in places for found in module.named_parameters()):
            if name.endswith("bias"):
                weight.zero_()


def varied(model: Any, start: int | None = None) -> bool:
    """True where greedy decoding from random prompts, without a cache, is more than one token repeated.

    Args:
        model: a causal model; or, with `start`, an encoder-decoder model that takes text.
        start: the token that its decoding starts with.
    """
    rng = np.random.default_rng(0)
    text = model.config.get_text_config(decoder=True)
    seen: set[int] = set()
    for length in (5, 9):
        ids = torch.from_numpy(rng.integers(0, text.vocab_size, (1, length)))
        given = {} if start is None else {"input_ids": ids}
        name = "input_ids" if start is None else "decoder_input_ids"
        tokens = ids if start is None else torch.tensor([[start]])
        with evaluating(model), quiet():
            for _ in range(_STEPS):
                logits = model(**given, **{name: tokens}, use_cache=False).logits[:, -1]
                tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
        seen |= set(tokens[0, -_STEPS:].tolist())
    return len(seen) >= _KINDS


def enliven(model: Any, *, decodes: bool, start: int | None = None) -> str:
    """`liven`, with the first gain at which decoding varies; returns a note where none does, else ""."""
    liven(model)
    untie(model)
    if not decodes:
        return ""
    for gain in _GAINS:
        liven(model, gain=gain)
        try:
            if varied(model, start):
                return ""
        except Exception as error:  # noqa: BLE001 - it needs more inputs; the note says that it was not checked
            return f"decoding not checked to vary: {next(iter(str(error).splitlines()), '')[:80]}"
    return "greedy decoding repeats few tokens at every scale of the weights"
