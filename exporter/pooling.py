"""Sentence embeddings: pooling and normalisation inside the graph, as the folder's modules.json says."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, final

from burnish.errors import ExportError
from burnish.exporter.folder import read_json
from burnish.exporter.modules import seen_through
from burnish.exporter.needs import torch

MEAN: Final = "pooling_mode_mean_tokens"
_MODES: Final = (MEAN, "pooling_mode_cls_token", "pooling_mode_max_tokens", "pooling_mode_lasttoken")


@final
@dataclasses.dataclass(frozen=True)
class Pooling:
    """How token vectors become one vector."""

    mode: str = MEAN
    """As sentence-transformers spells it."""
    normalize: bool = True
    """To length 1."""


def read_pooling(folder: Path) -> Pooling:
    """What modules.json and the pooling's config.json say; without them, the mean, normalised.

    Raises:
        ExportError: a module or mode that burnish does not know (EXPORT_SOURCE).
    """
    listed = folder / "modules.json"
    if not listed.is_file():
        return Pooling()
    kinds = {
        str(each.get("type", "")).rpartition(".")[2]: str(each.get("path", "")) for each in read_json(listed)
    }
    unknown = kinds.keys() - {"Transformer", "Pooling", "Normalize"}
    if unknown:
        raise _bad(f"modules.json of {folder.name!r} has a {sorted(unknown)[0]}, which is not known.")
    if "Pooling" not in kinds:
        raise _bad(f"modules.json of {folder.name!r} has no Pooling.")
    config = read_json(folder / kinds["Pooling"] / "config.json")
    chosen = [name for name, on in config.items() if name.startswith("pooling_mode_") and on is True]
    if len(chosen) != 1 or chosen[0] not in _MODES:
        raise _bad(f"The pooling of {folder.name!r} is {', '.join(chosen) or 'none'}.")
    return Pooling(chosen[0], "Normalize" in kinds)


def sentence_embedding(model: Any, pooling: Pooling, inputs: Sequence[str]) -> Any:
    """The encoder with `sentence_embedding` `[batch, hidden]` as its output."""

    def run(**tensors: Any) -> dict[str, Any]:
        hidden = model(**tensors).last_hidden_state  # [batch, sequence, hidden]
        mask = tensors.get("attention_mask", torch.ones_like(hidden[..., 0], dtype=torch.int64))
        pooled = _pool(hidden, mask, pooling.mode)
        return {
            "sentence_embedding": torch.nn.functional.normalize(pooled, dim=-1)
            if pooling.normalize
            else pooled
        }

    return seen_through(model, run, inputs)


def _pool(hidden: Any, mask: Any, mode: str) -> Any:
    if mode == "pooling_mode_cls_token":
        return hidden[:, 0]
    if mode == "pooling_mode_lasttoken":
        from burnish.exporter.causal import last_token

        place = last_token(mask)[:, None, None].expand(-1, 1, hidden.shape[-1])
        return hidden.gather(1, place)[:, 0]
    weights = mask[..., None].to(hidden.dtype)
    if mode == "pooling_mode_max_tokens":
        return hidden.masked_fill(weights == 0, torch.finfo(hidden.dtype).min).amax(1)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def _bad(what: str) -> ExportError:
    return ExportError(
        what, "Export it with task feature-extraction, and pool outside the graph.", code="EXPORT_SOURCE"
    )
