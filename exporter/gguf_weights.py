"""The weights of a GGUF file under the names of a transformers module, dequantised one at a time.

Nothing is read until a tensor is asked for: the file stays memory-mapped, and what is held at most is the
module itself and the tensors that transformers' loader is working on (one a thread, four threads).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Final, final

import numpy as np

from burnish.errors import shown
from burnish.exporter.gguf_config import Architecture
from burnish.exporter.gguf_header import Buffer, Header, TensorInfo, bad
from burnish.exporter.needs import need, torch

ROPE_TENSORS: Final = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
"""Tensors that are no weights: they become part of the configuration."""
_UNUSED: Final = ("attn_rot_embd", "rope_freqs")
"""Parts of the names of tensors that old converters wrote and that llama.cpp itself ignores."""


@final
@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """One weight as the file stores it, with what was done to it undone on reading."""

    info: TensorInfo
    buffer: Buffer
    heads: int | None = None
    """Undo llama.cpp's RoPE order of the rows, of that many heads."""
    offset: float = 0.0
    """Subtract it: llama.cpp adds 1 to the norms of Gemma."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Outermost dim first."""
        return self.info.shape

    @property
    def type_name(self) -> str:
        """Its GGML type, such as `Q4_1`."""
        return self.info.type_name

    def blocks(self) -> np.ndarray:
        """The stored bytes, uint8 [rows, bytes of a row], rows in the order of the module."""
        data = np.frombuffer(self.buffer, np.uint8, self.info.nbytes, self.info.start)
        rows = data.reshape(-1, self.info.nbytes // max(1, int(np.prod(self.shape[:-1], dtype=np.int64))))
        return rows if self.heads is None else _unpermuted(rows, self.heads)

    def values(self) -> np.ndarray:
        """The dequantised weight, float32, in the shape and order of the module."""
        gguf = need("gguf")
        stored = np.frombuffer(self.buffer, np.uint8, self.info.nbytes, self.info.start)
        kind = gguf.GGMLQuantizationType(self.info.kind)
        bytes_of_row = self.info.nbytes * self.shape[-1] // int(np.prod(self.shape, dtype=np.int64))
        rows = stored.reshape(-1, bytes_of_row)
        plain = {"F32": "<f4", "F16": "<f2"}.get(self.type_name)
        found = rows.view(plain) if plain else gguf.dequantize(rows, kind)
        found = np.asarray(found, np.float32).reshape(self.shape)
        found = found if self.heads is None else _unpermuted(found, self.heads)
        return found - np.float32(self.offset) if self.offset else found

    def __getitem__(self, _everything: object) -> Any:
        """The weight as a float32 tensor of its own; transformers' loader asks for `tensor[...]`."""
        return torch.from_numpy(np.require(self.values(), requirements=["C", "W"]))


def _unpermuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of the rows of q and k: in a head (x0, y0, x1, y1 …) -> (x0, x1 …, y0, y1 …)."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def read_rope_tensors(header: Header, buffer: Buffer) -> dict[str, np.ndarray]:
    """The values of `ROPE_TENSORS`, where the file has them: float32 [rotated dims / 2].

    Raises:
        ExportError: GGUF_TENSORS: one is not a plain float32 vector.
    """
    found = {}
    for name in ROPE_TENSORS:
        info = header.tensors.get(name)
        if info is None:
            continue
        if info.type_name != "F32" or len(info.shape) != 1:
            raise bad(
                f"Tensor {name!r} of {header.name} is {info.type_name} {list(info.shape)}, not F32 [n].",
                "The file is damaged; download or convert it again.",
                "GGUF_TENSORS",
            )
        found[name] = StoredTensor(info, buffer).values()
        if not np.all(np.isfinite(found[name]) & (found[name] > 0)):
            raise bad(
                f"Tensor {name!r} of {header.name} holds values that are no scale.",
                "The file is damaged; download or convert it again.",
                "GGUF_TENSORS",
            )
    return found


def match(
    header: Header, buffer: Buffer, architecture: Architecture, config: Any, wanted: Mapping[str, Any]
) -> dict[str, StoredTensor]:
    """The stored tensor of each weight of a module, by state-dict name; weights tied to others are left out.

    Args:
        header: of the file.
        buffer: the file.
        architecture: how llama.cpp writes it.
        config: the transformers configuration.
        wanted: the module's state dict, on the meta device.

    Raises:
        ExportError: GGUF_TENSORS: a weight is missing or has another shape, or the file has more than
            the module takes.
    """
    names = _names(architecture, config, wanted)
    missing = [stored for stored in names.values() if stored not in header.tensors]
    if missing:
        raise bad(
            f"{header.name} lacks {len(missing)} of {len(names)} tensors: {_some(missing)}.",
            "The file is incomplete, or its architecture is not what it says.",
            "GGUF_TENSORS",
        )
    extra = header.tensors.keys() - set(names.values()) - set(ROPE_TENSORS)
    extra = {name for name in extra if not any(part in name for part in _UNUSED)}
    if extra:
        raise bad(
            f"{header.name} has {len(extra)} tensors that {architecture.model_type} does not take: "
            f"{_some(sorted(extra))}.",
            "Its architecture is not what it says, or is newer than this transformers.",
            "GGUF_TENSORS",
        )
    found = {}
    for name, stored in names.items():
        info = header.tensors[stored]
        if info.shape != tuple(wanted[name].shape):
            raise bad(
                f"Tensor {stored!r} of {header.name} has shape {list(info.shape)}, not "
                f"{list(wanted[name].shape)}.",
                "Its metadata and its tensors contradict each other; convert the model again.",
                "GGUF_TENSORS",
            )
        found[name] = _stored(info, buffer, architecture, config)
    return found


def _names(architecture: Architecture, config: Any, wanted: Iterable[str]) -> dict[str, str]:
    """The name in the file of each weight."""
    gguf = need("gguf")
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(kinds[architecture.tensors], config.num_hidden_layers)
    found = {}
    for name in wanted:
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        # A weight that the gguf package has no name for is looked for under its own, and reported missing.
        found[name] = table.get_name(name, try_suffixes=(".weight", ".bias")) or name
    return found


def _stored(info: TensorInfo, buffer: Buffer, architecture: Architecture, config: Any) -> StoredTensor:
    part = info.name.split(".")[-2]
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(part)
    norm = part.endswith("norm")
    return StoredTensor(
        info,
        buffer,
        heads if architecture.permuted else None,
        architecture.norm_offset if norm else 0.0,
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(shown(name, 80) for name in names[:3]) + more
