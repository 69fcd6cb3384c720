"""A GPT-class decoder, a small Llama, that learns Grimm's tales byte by byte and runs with its cache."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import burnish
from burnish.exporter.sources import resolve
from common.command import options
from common.table import compare
from common.texts import tales
from common.training import classified, seed, train
from common.ways import Feeds, Run, convert, in_torch

WINDOW, BATCH, HEADS, HEAD = 128, 16, 2, 40
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


def fed(ids: np.ndarray, cache: Feeds) -> Feeds:
    """Inputs of a step: tokens `[batch, sequence]`, a mask of all that was seen, and the cache."""
    past = next(iter(cache.values())).shape[2]
    return {"input_ids": ids, "attention_mask": np.ones((len(ids), past + ids.shape[1]), np.int64), **cache}


def no_cache(layers: int, batch: int) -> Feeds:
    """The cache before the first token."""
    names = [f"past_key_values.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    return {name: np.zeros((batch, HEADS, 0, HEAD), np.float32) for name in names}


def grown(found: Mapping[str, np.ndarray]) -> Feeds:
    """The cache that a step gives to the next."""
    kept = {name: array for name, array in found.items() if name.startswith("present.")}
    return {name.replace("present", "past_key_values", 1): array for name, array in kept.items()}


def perplexity(run: Run, texts: np.ndarray, layers: int) -> float:
    """Of each byte of texts `[batch, bytes]` given those before it: one step a byte, through the cache."""
    cache, losses = no_cache(layers, len(texts)), []
    for at in range(texts.shape[1] - 1):
        found = run(fed(texts[:, at : at + 1], cache))
        cache, scores = grown(found), found["logits"][:, -1].astype(np.float64)
        scores -= scores.max(-1, keepdims=True)
        losses.append(np.log(np.exp(scores).sum(-1)) - scores[np.arange(len(texts)), texts[:, at + 1]])
    return float(np.exp(np.mean(losses)))


def calibration(run: Run, texts: np.ndarray, layers: int) -> list[Feeds]:
    """For each text `[bytes]`: its last byte, with the cache of those before; and all of it, without."""
    start = no_cache(layers, 1)
    lasts = [fed(text[None, -1:], grown(run(fed(text[None, :-1], start)))) for text in texts]
    return lasts + [fed(text[None], start) for text in texts]


def tell(run: Run, layers: int, length: int, random: np.random.Generator, warmth: float = 0.6) -> str:
    """Text that follows the prompt: each byte drawn from the likely ones."""
    text = list(PROMPT.encode())
    found = run(fed(np.array([text]), no_cache(layers, 1)))
    for _ in range(length):
        scores = np.exp((found["logits"][0, -1] - found["logits"][0, -1].max()) / warmth)
        text.append(int(random.choice(256, p=scores / scores.sum())))
        found = run(fed(np.array([text[-1:]]), grown(found)))
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
    samples = calibration(in_torch(module).run, next(windows(learnt, random))[:8].numpy(), layers)
    ways = convert(
        module, lambda folder: burnish.export(saved, output=folder), samples, output, measured=False
    )

    count = 8 if quick else 64
    starts = np.linspace(0, len(held_out) - WINDOW, count).astype(int)
    texts = np.stack([held_out[at : at + WINDOW] for at in starts])
    compare(
        f"Llama of {sum(w.numel() for w in model.parameters()):,} weights, Grimm's tales by bytes", ways,
        metric=("perplexity", lambda way: perplexity(way.run, texts, layers)),
        timed=(f"one token after {WINDOW}, with the cache", lambda way: way.run(samples[0])),
        folder=output, seconds=2 if quick else 10,
        remarks=[f"int8 tells: {tell(ways[-1].run, layers, 60 if quick else 300, random)!r}"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
