"""Texts as samples: each line of a file becomes token ids, by the artifact's own tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, final

import numpy as np

from burnish.errors import CalibrationError, MissingDependencyError
from burnish.feeds import dtype_of
from burnish.manifest import TensorSpec
from burnish.runtime.readers import Attachments, Feeds, no_place, processor_file

_LONGEST: Final = 1_000_000  # tokens; a tokenizer_config.json writes "no limit" as a larger number


@final
class TextReader:
    """Token ids, masks, segments and positions, each [1, tokens], of every line that is not blank.

    A line is cut where the tokenizer says that the model ends, and where an input has a fixed length, which
    shorter ones are filled up to.
    """

    def __init__(self, specs: Sequence[TensorSpec], attachments: Attachments) -> None:
        self._specs, self._attachments = specs, attachments
        other = next((spec.name for spec in specs if spec.meaning == "values"), None)
        if other is not None:
            raise no_place(
                f"Input {other!r} is neither token ids nor a mask, segments or positions: texts do not say "
                "what it holds.",
                "Give .npz files with an array for each input.",
            )
        self._tokenizer: Any = None
        self._pad_id = 0

    def read(self, path: Path) -> Iterator[Feeds]:
        """One sample for each line."""
        tokenizer = self._tokenizer or self._open(path)
        self._tokenizer = tokenizer
        empty = True
        try:
            with path.open(encoding="utf-8") as lines:
                for line in filter(None, map(str.strip, lines)):
                    empty = False
                    yield self._feeds(tokenizer.encode(line))
        except UnicodeDecodeError as error:
            raise CalibrationError(
                f"{path} is not text in UTF-8.", "Convert it, or name it for what it is.", code="CALIB_FORMAT"
            ) from error
        if empty:
            raise CalibrationError(
                f"{path} holds no text.", "Give a sample on each line.", code="CALIB_EMPTY"
            )

    def _open(self, path: Path) -> Any:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingDependencyError("Texts need tokenizers.", "pip install tokenizers") from error
        data = processor_file(("tokenizer.json",), self._attachments, path, "a text becomes token ids")
        try:
            tokenizer = Tokenizer.from_str(data.decode())
            limit = _limit(processor_file(("tokenizer_config.json",), self._attachments, path, ""))
            padding = tokenizer.padding
            if limit is not None:
                tokenizer.enable_truncation(limit)
            if padding is not None:  # to the longest of a batch, or a length: inputs say themselves
                self._pad_id = int(padding["pad_id"])
                tokenizer.no_padding()
        except Exception as error:  # tokenizers raises nothing narrower
            raise no_place(f"tokenizer.json cannot be used: {error}.", "Export the model again.") from error
        return tokenizer

    def _feeds(self, encoding: Any) -> Feeds:
        length = len(encoding.ids)
        rows = {
            "token_ids": encoding.ids,
            "mask": [1] * length,
            "segments": encoding.type_ids,
            "positions": range(length),
        }
        fill = {"token_ids": self._pad_id}
        return {
            spec.name: _fitted(rows[spec.meaning], spec, fill.get(spec.meaning, 0)) for spec in self._specs
        }


def _fitted(row: Sequence[int], spec: TensorSpec, fill: int) -> np.ndarray:
    """The row as [1, tokens], as long as the input wants it."""
    length = spec.shape[-1] if spec.shape else None
    values = list(row)
    if isinstance(length, int):
        values = (values + [fill] * (length - len(values)))[:length]
    return np.array([values], dtype_of(spec.dtype))


def _limit(config: bytes) -> int | None:
    """How many tokens the model takes, as its tokenizer_config.json says; None: it does not."""
    try:
        found = json.loads(config or b"{}").get("model_max_length")
    except (ValueError, AttributeError):
        return None
    return int(found) if isinstance(found, int | float) and 0 < found < _LONGEST else None
