"""What a GGUF file's metadata means as a transformers configuration.

transformers 5.23 has such a table of its own, but it leaves out what changes the result: rope scaling,
sliding windows, head sizes of Qwen3, partial rotation of Phi-3, and all of Gemma 1. Here metadata that would
change the result and is not understood is refused.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Final, NamedTuple, final

import numpy as np

from burnish.errors import shown
from burnish.exporter.gguf_header import Header, bad


class Architecture(NamedTuple):
    """How llama.cpp writes an architecture, where it differs from transformers."""

    model_type: str
    """What transformers calls it."""
    tensors: str
    """Whose tensor names the gguf package lists."""
    permuted: bool = False
    """The rows of q and k are in the order of llama.cpp's RoPE: pairs beside each other."""
    norm_offset: float = 0.0
    """What was added to the weights of the norms."""


ARCHITECTURES: Final = {
    "llama": Architecture("llama", "llama", permuted=True),
    "mistral": Architecture("mistral", "llama", permuted=True),
    "qwen2": Architecture("qwen2", "qwen2"),
    "qwen3": Architecture("qwen3", "qwen3"),
    "gemma": Architecture("gemma", "gemma", norm_offset=1.0),
    "phi3": Architecture("phi3", "phi3"),
}
"""The known values of `general.architecture`."""

_IDS: Final = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
_LIMIT: Final = 2**31 - 1
_REFUSED: Final = (
    "attention.causal", "attention.clamp_kqv", "attention.max_alibi_bias", "attention.scale",
    "attn_logit_softcapping", "embedding_scale", "expert_count", "final_logit_softcapping", "logit_scale",
    "pooling_type", "residual_scale", "use_parallel_residual",
)  # fmt: skip
"""Metadata that changes the result and that no architecture of the table has."""
_PASSED: Final = ("attention.causal",)  # says the same as its absence when true


@final
@dataclasses.dataclass(frozen=True)
class Metadata:
    """The metadata of one file, with typed errors for what is missing or cannot be."""

    header: Header
    prefix: str
    """The architecture that its own keys start with."""

    def whole(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number from `least` to 2^31 - 1."""
        found = self.header.metadata.get(self._full(key), default)
        if isinstance(found, list) and found and all(each == found[0] for each in found):
            found = found[0]  # once a layer, all alike
        if found is None:
            raise self.missing(key)
        if isinstance(found, bool) or not isinstance(found, int) or not least <= found <= _LIMIT:
            raise self.wrong(key, found)
        return found

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number, as short as float32 allows: 1e-05 rather than 9.999999747378752e-06."""
        found = self.header.metadata.get(self._full(key), default)
        if found is None:
            raise self.missing(key)
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise self.wrong(key, found)
        if not (math.isfinite(found) and 0 < found < 1e30):
            raise self.wrong(key, found)
        return float(str(np.float32(found)))

    def text(self, key: str, default: str = "") -> str:
        """A string."""
        found = self.header.metadata.get(self._full(key), default)
        if not isinstance(found, str):
            raise self.wrong(key, found)
        return found

    def has(self, key: str) -> bool:
        """True when the key is there and says something: not 0, not false, not empty."""
        return bool(self.header.metadata.get(self._full(key)))

    def missing(self, key: str) -> Exception:
        """The error of a key that is not there."""
        return bad(
            f"{self.header.name} lacks the metadata {self._full(key)!r}.",
            "Convert the model again with a current llama.cpp.",
            "GGUF_METADATA",
        )

    def wrong(self, key: str, found: object) -> Exception:
        """The error of a value that cannot be."""
        return bad(
            f"{self.header.name} has {shown(found, 60)} as its metadata {self._full(key)!r}.",
            "The file is damaged, or needs a newer burnish.",
            "GGUF_METADATA",
        )

    def _full(self, key: str) -> str:
        return key if key.startswith(("general.", "tokenizer.", "split.")) else f"{self.prefix}.{key}"


def read_architecture(header: Header) -> tuple[str, Architecture]:
    """The architecture that a file names.

    Raises:
        ExportError: GGUF_ARCH (not one of `ARCHITECTURES`), GGUF_METADATA (none named), GGUF_SPLIT (the
            file is one of several).
    """
    metadata = Metadata(header, "general")
    if metadata.has("split.count") and metadata.whole("split.count") > 1:
        raise bad(
            f"{header.name} is one of {metadata.whole('split.count')} pieces of a model.",
            "Join them: llama-gguf-split --merge FIRST_PIECE WHOLE.gguf",
            "GGUF_SPLIT",
        )
    name = metadata.text("general.architecture")
    if not name:
        raise metadata.missing("general.architecture")
    if name not in ARCHITECTURES:
        raise bad(
            f"{header.name} has the architecture {shown(name, 60)!r}.",
            f"Known are: {', '.join(ARCHITECTURES)}.",
            "GGUF_ARCH",
        )
    if name == "llama" and Metadata(header, name).has("attention.sliding_window"):
        return name, ARCHITECTURES["mistral"]
    return name, ARCHITECTURES[name]


def read_config(header: Header, rope_tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """The keyword arguments of the transformers configuration that a file describes.

    Args:
        header: of the file.
        rope_tensors: the values of `rope_freqs.weight`, `rope_factors_short.weight` and
            `rope_factors_long.weight`, where the file has them: float32 [rotated dims / 2].

    Raises:
        ExportError: GGUF_METADATA (missing, impossible or not understood), GGUF_TENSORS (metadata and
            tensors contradict each other), and as `read_architecture`.
    """
    name, architecture = read_architecture(header)
    metadata = Metadata(header, name)
    _refuse_unknown(metadata)
    vocabulary, hidden = _embedding(header)
    heads = metadata.whole("attention.head_count")
    config: dict[str, Any] = {
        "model_type": architecture.model_type,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": _layers(metadata),
        "intermediate_size": metadata.whole("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.whole("attention.head_count_kv", heads),
        "rms_norm_eps": metadata.number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": metadata.whole("context_length"),
        "tie_word_embeddings": "output.weight" not in header.tensors,
    }
    config |= _attention(metadata, architecture, hidden, heads)
    config["rope_parameters"] = _rope(metadata, config, rope_tensors)
    return config | token_ids(metadata, vocabulary)


def _refuse_unknown(metadata: Metadata) -> None:
    for key in _REFUSED:
        if metadata.has(key) and key not in _PASSED:
            raise bad(
                f"{metadata.header.name} sets {metadata.prefix}.{key}, which changes the result and is not "
                "supported.",
                "Export the original model from its Hugging Face folder.",
                "GGUF_METADATA",
            )
    if metadata.header.metadata.get(f"{metadata.prefix}.attention.causal") is False:
        raise metadata.wrong("attention.causal", found=False)


def _embedding(header: Header) -> tuple[int, int]:
    found = header.tensors.get("token_embd.weight")
    if found is None or len(found.shape) != 2:
        raise bad(
            f"{header.name} has no tensor 'token_embd.weight' of two dims.",
            "It is not a language model, or the file is damaged.",
            "GGUF_TENSORS",
        )
    stated = Metadata(header, Metadata(header, "general").text("general.architecture"))
    if stated.whole("embedding_length") != found.shape[1]:
        raise bad(
            f"{header.name} states an embedding of {stated.whole('embedding_length')} and stores one of "
            f"{found.shape[1]}.",
            "The file is damaged; download or convert it again.",
            "GGUF_TENSORS",
        )
    return found.shape[0], found.shape[1]


def _layers(metadata: Metadata) -> int:
    """The number of blocks, which must be there: it decides how large a module is built."""
    stated = metadata.whole("block_count")
    parts = (name.split(".") for name in metadata.header.tensors)
    stored = {part[1] for part in parts if part[0] == "blk" and len(part) > 2}
    if stored != {str(index) for index in range(min(stated, len(stored) + 1))}:
        raise bad(
            f"{metadata.header.name} states {stated} blocks and has tensors of {len(stored)}.",
            "The file is damaged or incomplete; download or convert it again.",
            "GGUF_TENSORS",
        )
    return stated


def _attention(metadata: Metadata, architecture: Architecture, hidden: int, heads: int) -> dict[str, Any]:
    """Head size, window and biases."""
    if hidden % heads and not metadata.has("attention.key_length"):
        raise metadata.wrong("attention.head_count", heads)
    size = metadata.whole("attention.key_length", max(1, hidden // heads))
    if metadata.whole("attention.value_length", size) != size:
        raise metadata.wrong("attention.value_length", metadata.whole("attention.value_length"))
    found: dict[str, Any] = {}
    if architecture.model_type != "phi3":
        found["head_dim"] = size
    if architecture.model_type in ("mistral", "phi3"):
        window = metadata.whole("attention.sliding_window", 0, least=0)
        found["sliding_window"] = window or None
    elif metadata.has("attention.sliding_window"):
        raise metadata.wrong("attention.sliding_window", metadata.whole("attention.sliding_window"))
    if architecture.model_type in ("llama", "qwen3", "gemma"):
        found["attention_bias"] = "blk.0.attn_q.bias" in metadata.header.tensors
    if architecture.model_type == "llama":
        found["mlp_bias"] = "blk.0.ffn_up.bias" in metadata.header.tensors
    return found


def _rope(metadata: Metadata, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """The rotary embedding; what scales it is refused where transformers cannot say it."""
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    rotated = metadata.whole("rope.dimension_count", size)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": metadata.number("rope.freq_base", 10000.0)}
    if config["model_type"] == "phi3":
        rope["partial_rotary_factor"] = rotated / size
    elif rotated != size:
        raise metadata.wrong("rope.dimension_count", rotated)
    scaling = metadata.text("rope.scaling.type", "none")
    if "rope_factors_long.weight" in tensors or "rope_factors_short.weight" in tensors:
        return rope | _longrope(metadata, config, tensors)
    if "rope_freqs.weight" in tensors:
        return rope | _llama3(metadata, rope["rope_theta"], tensors["rope_freqs.weight"], size)
    if scaling == "none":
        return rope
    if scaling not in ("linear", "yarn") or config["model_type"] == "phi3":
        raise metadata.wrong("rope.scaling.type", scaling)
    rope |= {"rope_type": scaling, "factor": metadata.number("rope.scaling.factor")}
    if scaling == "yarn":
        rope["original_max_position_embeddings"] = metadata.whole("rope.scaling.original_context_length")
    return rope


def _longrope(metadata: Metadata, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    try:
        short, long = (tensors[f"rope_factors_{kind}.weight"] for kind in ("short", "long"))
    except KeyError as error:
        raise bad(
            f"{metadata.header.name} lacks the tensor {error.args[0]!r}.",
            "Convert the model again with a current llama.cpp.",
            "GGUF_TENSORS",
        ) from None
    original = metadata.whole("rope.scaling.original_context_length")
    config["original_max_position_embeddings"] = original
    found: dict[str, Any] = {
        "rope_type": "longrope",
        "short_factor": [float(str(each)) for each in short],
        "long_factor": [float(str(each)) for each in long],
        "original_max_position_embeddings": original,
    }
    if metadata.has("rope.scaling.attn_factor"):
        found["attention_factor"] = metadata.number("rope.scaling.attn_factor")
    return found


def _llama3(metadata: Metadata, theta: float, stored: np.ndarray, size: int) -> dict[str, Any]:
    """Llama 3.1's scaling, recognised by its result: llama.cpp stores one divisor for each frequency."""
    low, high, original = 1.0, 4.0, 8192
    wavelength = 2 * math.pi * theta ** (np.arange(0, size, 2) / size)
    factor = float(stored.max())
    smooth = np.clip((original / wavelength - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if stored.shape != expected.shape or not np.allclose(stored, expected, rtol=1e-4):
        raise bad(
            f"{metadata.header.name} scales its rotary frequencies (rope_freqs.weight) in an unknown way.",
            "Export the original model from its Hugging Face folder.",
            "GGUF_METADATA",
        )
    return {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }  # fmt: skip


def token_ids(metadata: Metadata, vocabulary: int) -> dict[str, int | None]:
    """Ids of the special tokens by transformers' names; None where the file has none.

    Raises:
        ExportError: GGUF_METADATA: an id outside the vocabulary.
    """
    found: dict[str, int | None] = {}
    for ours, theirs in _IDS.items():
        key = f"tokenizer.ggml.{theirs}_token_id"
        found[ours] = metadata.whole(key, least=0) if key in metadata.header.metadata else None
        if (found[ours] or 0) >= vocabulary:
            raise metadata.wrong(key, found[ours])
    return found
