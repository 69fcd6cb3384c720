"""A Hugging Face folder on disk: its configuration, whether its weights are there, what belongs to it.

Nothing is downloaded and no code of the folder is run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from burnish.errors import ExportError

ATTACHED: Final = (
    "added_tokens.json", "config.json", "merges.txt", "sentencepiece.bpe.model", "special_tokens_map.json",
    "spiece.model", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
    "chat_template.jinja", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "normalizer.json", "source.spm", "target.spm",
)  # fmt: skip
"""Files that go into the artifact: what turns text into inputs, and class numbers into names."""

_CONFIG_LIMIT: Final = 2**20  # bytes; a config.json is a few kB


def attachments_of(folder: Path) -> dict[str, Path]:
    """The files of the folder that go into the artifact, by name."""
    return {name: folder / name for name in ATTACHED if (folder / name).is_file()}


def read_json(path: Path) -> Any:
    """A small JSON file of the folder.

    Raises:
        ExportError: it is too large, or not JSON (EXPORT_SOURCE).
    """
    try:
        if path.stat().st_size > _CONFIG_LIMIT:
            raise _bad(f"{str(path)!r} is too large for a configuration.", "Check the file.")
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _bad(f"{str(path)!r} is not JSON: {error}.", "Download it again.") from error


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json.

    Raises:
        ExportError: it is missing or cannot be used (EXPORT_SOURCE).
    """
    path = folder / "config.json"
    if not path.is_file():
        raise _bad(
            f"{str(folder)!r} has no config.json.",
            "Give a Hugging Face folder: config.json, model.safetensors, tokenizer files.",
        )
    found = read_json(path)
    if not isinstance(found, dict):
        raise _bad(f"{str(path)!r} holds no configuration.", "Download it again.")
    return found


def need_weights(folder: Path) -> None:
    """Refuse a folder without safetensors weights.

    Raises:
        ExportError: there are none (EXPORT_SOURCE), or only pickles (PICKLE_REFUSED).
    """
    if any((folder / f"model.safetensors{end}").is_file() for end in ("", ".index.json")):
        return
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        raise ExportError(
            f"The weights {pickles[0]!r} are a pickle: loading it runs the code inside.",
            "Convert them with save_pretrained(..., safe_serialization=True) where you trust them.",
            code="PICKLE_REFUSED",
        )
    raise _bad(f"{str(folder)!r} has no model.safetensors.", "Download the weights too.")


def _bad(what: str, hint: str) -> ExportError:
    return ExportError(what, hint, code="EXPORT_SOURCE")
