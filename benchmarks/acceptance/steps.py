"""A decoder's graph run token by token, with its cache, as an application runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import final

import numpy as np

from burnish.artifact import Artifact
from burnish.exporter.causal import PAST, PRESENT
from burnish.exporter.decoding import empty_cache, next_cache
from burnish.runtime.session import Session

Arrays = Mapping[str, np.ndarray]
Tell = Callable[[str, int, int], None]
"""(what is being done, steps done, steps in all)."""


@final
class LanguageModel:
    """The graph of a causal language model, on the CPU.

    Args:
        folder: its artifact.
    """

    def __init__(self, folder: Path) -> None:
        self._interface = Artifact.open(folder).manifest
        self._session = Session(folder)

    def greedy(self, prompt: np.ndarray, count: int) -> list[int]:
        """The `count` tokens after a prompt, int64 `[tokens]`."""
        cache = empty_cache(self._interface, 1)
        given, seen, found = prompt[None], len(prompt), []
        for _ in range(count):
            outputs = self._step(given, seen, cache)
            cache = next_cache(outputs, cache)
            found.append(int(outputs["logits"][0, -1].argmax()))
            given, seen = np.array([found[-1:]], np.int64), seen + 1
        return found

    def logits(self, tokens: np.ndarray, tell: Tell) -> Iterator[np.ndarray]:
        """What follows each token of `[batch, sequence]` but the last: float32 `[batch, vocab]` a step."""
        cache = empty_cache(self._interface, len(tokens))
        steps = tokens.shape[1] - 1
        for step in range(steps):
            outputs = self._step(tokens[:, step : step + 1], step + 1, cache)
            cache = next_cache(outputs, cache)
            tell("", step + 1, steps)
            yield outputs["logits"][:, -1]

    def _step(self, given: np.ndarray, seen: int, cache: Arrays) -> Arrays:
        mask = np.ones((len(given), seen), np.int64)
        return self._session({"input_ids": given, "attention_mask": mask, **cache})


@final
class SpeechModel:
    """The graphs of an encoder-decoder that hears, on the CPU.

    Args:
        folder: its bundle.
    """

    def __init__(self, folder: Path) -> None:
        self._interface = Artifact.open(folder / "decoder").manifest
        self._encoder, self._decoder = Session(folder / "encoder"), Session(folder / "decoder")

    def greedy(self, features: np.ndarray, prompt: np.ndarray, end: int, most: int) -> list[int]:
        """The tokens after a prompt, until `end` or `most` of them.

        Args:
            features: float32 `[1, mels, frames]`.
            prompt: int64 `[tokens]`.
        """
        encoded = self._encoder({"input_features": features})
        length = next(iter(encoded.values())).shape[2]
        cache = empty_cache(self._interface, 1, {"encoder_sequence": length})
        cache |= {name.replace(PRESENT, PAST, 1): array for name, array in encoded.items()}
        given, found = prompt[None], []
        for _ in range(most):
            outputs = self._decoder({"decoder_input_ids": given, **cache})
            cache = next_cache(outputs, cache)
            token = int(outputs["logits"][0, -1].argmax())
            if token == end:
                break
            found.append(token)
            given = np.array([[token]], np.int64)
        return found


def losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """-log p of the targets `[n]` under logits `[n, vocab]`, in float64."""
    wide = logits.astype(np.float64)
    top = wide.max(-1)
    total = np.log(np.exp(wide - top[:, None]).sum(-1)) + top
    found: np.ndarray = total - wide[np.arange(len(targets)), targets]
    return found
