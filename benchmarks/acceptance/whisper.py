"""Whisper tiny.en on five clips of LibriVox: the words of the two graphs beside PyTorch's."""

from __future__ import annotations

import re
import wave
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer

from burnish.benchmarks.acceptance.steps import SpeechModel
from burnish.benchmarks.demo.job import Stages
from burnish.benchmarks.kit import fetch
from burnish.benchmarks.whisper_kit import whisper_folder
from burnish.exporter.quiet import quiet

RATE: Final = 16_000
MOST: Final = 60  # tokens a clip
_PROMPT: Final = ("<|startoftranscript|>", "<|notimestamps|>")
_END: Final = "<|endoftext|>"


class Clip(msgspec.Struct, frozen=True):
    """What was heard in one clip."""

    name: str
    said: str
    torch: str
    graph: str
    same_tokens: bool
    errors: int
    """Words wrong in what the graph heard."""
    words: int
    """Words said."""


class Facts(msgspec.Struct, frozen=True):
    """What was found."""

    clips: tuple[Clip, ...]

    @property
    def holds(self) -> bool:
        """True where every clip has PyTorch's words."""
        return all(clip.torch == clip.graph for clip in self.clips)

    @property
    def word_error_rate(self) -> float:
        """Of the graphs, over all clips."""
        return sum(clip.errors for clip in self.clips) / sum(clip.words for clip in self.clips)


def source(cache: Path | None = None) -> Path:
    """The Hugging Face folder, made on the first call."""
    return whisper_folder(cache)


def measure(bundle: Path, stages: Stages, cache: Path | None = None) -> Facts:
    """Transcribe the clips by the graphs and by PyTorch.

    Args:
        bundle: of the exported model.
        stages: told of progress.
        cache: instead of `burnish.benchmarks.kit.cache_root()`.

    Raises:
        KitError: the weights or clips cannot be had.
    """
    folder = source(cache)
    with stages("Whisper: loading it into PyTorch"), quiet():
        model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
        hear = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    *start, end = (int(tokenizer.token_to_id(token) or 0) for token in (*_PROMPT, _END))
    prompt = np.array(start, np.int64)
    graphs, clips = SpeechModel(bundle), _clips(cache)
    found = []
    with stages(f"Whisper: {len(clips)} clips, by PyTorch and by the graphs") as tell:
        for done, (path, said) in enumerate(clips):
            tell(path.stem, done, len(clips))
            sound = hear(_samples(path), sampling_rate=RATE, return_tensors="np").input_features
            wanted = _torch_greedy(model, sound, prompt, end)
            tokens = graphs.greedy(sound, prompt, end, MOST)
            theirs, ours = (tokenizer.decode(each).strip() for each in (wanted, tokens))
            errors = word_errors(words(said), words(ours))
            found.append(Clip(path.stem, said, theirs, ours, wanted == tokens, errors, len(words(said))))
    return Facts(tuple(found))


def words(text: str) -> list[str]:
    """Lower case, letters and apostrophes only."""
    return re.sub(r"[^a-z' ]+", " ", text.lower()).split()


def word_errors(said: list[str], heard: list[str]) -> int:
    """Words to put in, leave out or change: Levenshtein's distance."""
    row = list(range(len(heard) + 1))
    for i, wanted in enumerate(said, start=1):
        above, row = row, [i]
        for j, found in enumerate(heard, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (wanted != found)))
    return row[-1]


def _torch_greedy(model: Any, sound: np.ndarray, prompt: np.ndarray, end: int) -> list[int]:
    """Without a cache, so that the graphs' is judged by something else."""
    with torch.no_grad():
        encoded = model.get_encoder()(torch.from_numpy(sound))
        tokens = [int(token) for token in prompt]
        while len(tokens) < MOST + len(prompt):
            given = torch.tensor([tokens])
            logits = model(encoder_outputs=encoded, decoder_input_ids=given, use_cache=False).logits
            tokens.append(int(logits[0, -1].argmax()))
            if tokens[-1] == end:
                return tokens[len(prompt) : -1]
    return tokens[len(prompt) :]


def _clips(cache: Path | None) -> list[tuple[Path, str]]:
    """The recordings with what is said in them."""
    folder = fetch("librivox", cache=cache) / "test" / "data" / "librivox"
    found = []
    for line in (folder / "transcription").read_text(encoding="utf-8").splitlines():
        said, _, name = line.rstrip(" )").rpartition("(")
        found.append((folder / f"{name}.wav", re.sub(r"</?s>", "", said).strip()))
    return sorted(found)


def _samples(path: Path) -> np.ndarray:
    """float32 `[samples]` from -1 to 1, at RATE."""
    with wave.open(str(path)) as clip:
        data = clip.readframes(clip.getnframes())
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768
