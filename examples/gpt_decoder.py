"""A GPT-class decoder, a small Llama, that learns Grimm's tales byte by byte and runs with its cache."""

from collections.abc import Iterator

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import burnish
from burnish.exporter.sources import resolve
from common.command import options
from common.decoding import fed, grown
from common.table import compare
from common.texts import tales
from common.training import classified, seed, train
from common.ways import Feeds, Way, convert, in_torch

WINDOW, BATCH, HEADS, HEAD = 128, 16, 2, 40
PLACES = 512
"""Of the buffers that the optimised decoder writes new keys and values into."""
PROMPT = "There was once a king who "


def make_model(layers: int) -> LlamaForCausalLM:
    """Bytes are its tokens. Pairs of heads share keys and values, so that the cache is half as large."""
    config = LlamaConfig(
        vocab_size=256, hidden_size=2 * HEADS * HEAD, intermediate_size=10 * HEAD, num_hidden_layers=layers,
        num_attention_heads=2 * HEADS, num_key_value_heads=HEADS, head_dim=HEAD, max_position_embeddings=512,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def windows(text: np.ndarray, random: np.random.Generator) -> Iterator[torch.Tensor]:
    """Batches `[16, 129]` of bytes from anywhere in the text."""
    while True:
        starts = random.integers(0, len(text) - WINDOW - 1, BATCH)
        yield torch.from_numpy(np.stack([text[at : at + WINDOW + 1] for at in starts]))


def no_cache(layers: int, batch: int, places: int = 0) -> Feeds:
    """The cache before the first token; with room for tokens to come, where it is updated in place."""
    names = [f"past_key_values.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    return {name: np.zeros((batch, HEADS, places, HEAD), np.float32) for name in names}


def places(way: Way) -> int:
    """How long the cache of a way is before the first token: what is exported lets it grow instead."""
    return PLACES if way.name in ("optimised", "int8") else 0


def perplexity(way: Way, texts: np.ndarray, layers: int) -> float:
    """Of each byte of texts `[batch, bytes]` given those before it: one step a byte, through the cache."""
    cache, losses = no_cache(layers, len(texts), places(way)), []
    for at in range(texts.shape[1] - 1):
        found = way.run(fed(texts[:, at : at + 1], cache, at))
        cache, scores = grown(found), found["logits"][:, -1].astype(np.float64)
        scores -= scores.max(-1, keepdims=True)
        losses.append(np.log(np.exp(scores).sum(-1)) - scores[np.arange(len(texts)), texts[:, at + 1]])
    return float(np.exp(np.mean(losses)))


def calibration(way: Way, texts: np.ndarray, layers: int) -> list[Feeds]:
    """For each text `[bytes]`: its last byte, with the cache of those before; and all of it, without."""
    starts = [fed(text[None], no_cache(layers, 1), 0) for text in texts]
    return [last(way, text, layers) for text in texts] + starts


def last(way: Way, text: np.ndarray, layers: int) -> Feeds:
    """Inputs for the last of `[bytes]`, with the cache of those before as the way keeps it."""
    before = way.run(fed(text[None, :-1], no_cache(layers, 1, places(way)), 0))
    return fed(text[None, -1:], grown(before), len(text) - 1)


def tell(way: Way, layers: int, length: int, random: np.random.Generator, warmth: float = 0.6) -> str:
    """Text that follows the prompt: each byte drawn from the likely ones."""
    text = list(PROMPT.encode())
    found = way.run(fed(np.array([text]), no_cache(layers, 1, places(way)), 0))
    for _ in range(length):
        scores = np.exp((found["logits"][0, -1] - found["logits"][0, -1].max()) / warmth)
        text.append(int(random.choice(256, p=scores / scores.sum())))
        found = way.run(fed(np.array([text[-1:]]), grown(found), len(text) - 1))
    return bytes(text).decode(errors="replace")


def main() -> None:
    """Train, save as transformers does, export the folder, compare, tell a tale."""
    quick, output = options(__doc__, "gpt")
    random, layers = seed(), 2 if quick else 4
    text = np.frombuffer(tales().encode(), np.uint8).astype(np.int64)
    learnt, held_out = text[: -len(text) // 10], text[-len(text) // 10 :]
    model = make_model(layers)
    train(
        model, windows(learnt, random), lambda ids: classified(model(ids[:, :-1]).logits, ids[:, 1:]),
        steps=60 if quick else 800, rate=4e-3, decay=0.1,
    )  # fmt: skip

    saved = output / "saved"
    model.save_pretrained(saved)
    module = resolve(saved).module
    samples = calibration(in_torch(module), next(windows(learnt, random))[:8].numpy(), layers)
    ways = convert(
        module, lambda folder: burnish.export(saved, output=folder), samples, output, measured=False
    )

    count = 8 if quick else 64
    starts = np.linspace(0, len(held_out) - WINDOW, count).astype(int)
    texts = np.stack([held_out[at : at + WINDOW] for at in starts])
    steps = {way.name: last(way, texts[0], layers) for way in ways}
    compare(
        f"Llama of {sum(w.numel() for w in model.parameters()):,} weights, Grimm's tales by bytes", ways,
        metric=("perplexity", lambda way: perplexity(way, texts, layers)),
        timed=(f"one token after {WINDOW - 1}, with the cache", lambda way: way.run(steps[way.name])),
        folder=output, seconds=2 if quick else 10,
        remarks=[f"int8 tells: {tell(ways[-1], layers, 60 if quick else 100, random)!r}"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
