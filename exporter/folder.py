"""A Hugging Face folder on disk: its configuration, whether its weights are there, what belongs to it.

Nothing is downloaded and no code of the folder is run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from burnish.errors import ExportError, shown

ATTACHED: Final = (
    "added_tokens.json", "config.json", "merges.txt", "sentencepiece.bpe.model", "special_tokens_map.json",
    "spiece.model", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
    "chat_template.jinja", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "normalizer.json", "source.spm", "target.spm",
)  # fmt: skip
"""Files that go into the artifact: what turns text into inputs, and class numbers into names."""

_INDEX: Final = "model.safetensors.index.json"
_CONFIG_LIMIT: Final = 2**20  # bytes; a config.json is a few kB
_INDEX_LIMIT: Final = 2**27  # bytes; an index names every tensor, perhaps 100 thousand


def attachments_of(folder: Path) -> dict[str, Path]:
    """The files of the folder that go into the artifact, by name."""
    return {name: folder / name for name in ATTACHED if (folder / name).is_file()}


def read_json(path: Path, limit: int = _CONFIG_LIMIT) -> Any:
    """A JSON file of the folder of at most `limit` bytes.

    Raises:
        ExportError: it is too large, or not JSON (EXPORT_SOURCE).
    """
    try:
        if path.stat().st_size > limit:
            raise _bad(f"{str(path)!r} is too large for what it is.", "Check the file.")
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


def need_weights(folder: Path, *, trust_code: bool = False) -> bool:
    """Refuse a folder without safetensors weights; True where it has only pickles, which are trusted.

    Raises:
        ExportError: there are none (EXPORT_SOURCE), or only pickles (PICKLE_REFUSED).
    """
    if (folder / "model.safetensors").is_file():
        return False
    if (folder / _INDEX).is_file():
        _need_shards(folder)
        return False
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles and trust_code:
        return True
    if pickles:
        raise ExportError(
            f"The weights {pickles[0]!r} are a pickle: loading it runs the code inside.",
            "Convert them with save_pretrained(..., safe_serialization=True), or pass --trust-code where you "
            "trust them.",
            code="PICKLE_REFUSED",
        )
    raise _bad(f"{str(folder)!r} has no model.safetensors.", "Download the weights too.")


def _need_shards(folder: Path) -> None:
    """Refuse an index whose files are missing, or outside the folder."""
    found = read_json(folder / _INDEX, _INDEX_LIMIT)
    places = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(places, dict) or not places:
        raise _bad(f"{str(folder / _INDEX)!r} names no files of weights.", "Download it again.")
    for name in sorted({str(place) for place in places.values()}):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise _bad(
                f"{str(folder / _INDEX)!r} names {shown(name)!r}, which is outside the folder.",
                "Look where the folder comes from; an index names files beside it.",
            )
        if not (folder / name).is_file():
            raise _bad(f"{str(folder)!r} has no {shown(name)!r}, which its index names.", "Download it too.")


def _bad(what: str, hint: str) -> ExportError:
    return ExportError(what, hint, code="EXPORT_SOURCE")
