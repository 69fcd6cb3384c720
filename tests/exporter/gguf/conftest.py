"""Small GGUF files as llama.cpp's converter writes them, from transformers modules with random weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]
CHAT = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"

Made = tuple[Path, Any]
"""The file, and the module that computes what it stores."""


def byte_letter(byte: int) -> str:
    """How a byte-level vocabulary spells a byte."""
    others = [each for each in range(256) if each not in BYTES]
    return chr(byte) if byte in BYTES else chr(256 + others.index(byte))


def byte_level(pre: str = "smollm") -> dict[str, Any]:
    """Tokenizer metadata of the kind `gpt2`: bytes, a few merges, control tokens, one of the user."""
    letters = [byte_letter(byte) for byte in range(256)]
    merges = ["t h", "th e", "Ġ the", "i n", "Ġ a", "1 9", "19 8", "e r", "Ġ in"]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>"]
    tokens = [*special, *letters, *(merge.replace(" ", "") for merge in merges)]
    return {
        "ggml.model": "gpt2", "ggml.pre": pre, "ggml.tokens": tokens, "ggml.merges": merges,
        "ggml.token_type": [3, 3, 3, 4] + [1] * (len(tokens) - 4), "ggml.bos_token_id": 1,
        "ggml.eos_token_id": 2, "ggml.padding_token_id": 0, "ggml.add_bos_token": False,
        "chat_template": CHAT,
    }  # fmt: skip


def sentencepiece() -> dict[str, Any]:
    """Tokenizer metadata of the kind `llama`: bytes, letters and pieces with scores, no merges."""
    letters = [chr(code) for code in range(33, 127)]
    pieces = ["▁", "th", "the", "▁the", "in", "▁in", "an", "▁a", "er"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *letters]
    return {
        "ggml.model": "llama", "ggml.tokens": tokens,
        "ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(tokens) - 259)],
        "ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259),
        "ggml.bos_token_id": 1, "ggml.eos_token_id": 2, "ggml.unknown_token_id": 0,
        "ggml.add_bos_token": True,
        "chat_template": "{{ bos_token }}{% for m in messages %}[{{ m['content'] }}]{% endfor %}",
    }  # fmt: skip


@dataclasses.dataclass
class GgufMaker:
    """Writes GGUF files into a folder; every change that a test wants is an argument."""

    folder: Path

    def __call__(
        self,
        arch: str = "llama",
        kind: str = "F32",
        *,
        config: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        tensors: Mapping[str, np.ndarray] | None = None,
        tokenizer: Mapping[str, Any] | None = None,
        drop: tuple[str, ...] = (),
        model_type: str | None = None,
    ) -> Made:
        """A file of an architecture, and the module of what it stores.

        Args:
            arch: `general.architecture`.
            kind: the GGML type of the matrices.
            config: changes to the small configuration.
            metadata: added to what the configuration says; a key with None is left out.
            tensors: float32 tensors added to the weights.
            tokenizer: its metadata, without `tokenizer.`.
            drop: tensors that are left out.
            model_type: of transformers, where it is not `arch`.
        """
        module = make_module(model_type or arch, config or {})
        path = self.folder / f"{arch}-{kind}-{len(list(self.folder.iterdir()))}.gguf"
        writer, gguf = self._writer(path, arch)
        said = {**_metadata(module.config), **(metadata or {})}
        for key, value in said.items():
            if value is not None:
                _add(writer, key if key.startswith(("general.", "split.")) else f"{arch}.{key}", value)
        for key, value in (tokenizer if tokenizer is not None else byte_level()).items():
            _add(writer, f"tokenizer.{key}", value)
        for name, data, quant in self._tensors(gguf, arch, module, kind):
            if name not in drop:
                writer.add_tensor(name, data, raw_dtype=quant)
        for name, data in (tensors or {}).items():
            writer.add_tensor(name, data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path, module

    def _writer(self, path: Path, arch: str) -> tuple[Any, Any]:
        gguf = pytest.importorskip("gguf")
        return gguf.GGUFWriter(path, arch), gguf

    def _tensors(self, gguf: Any, arch: str, module: Any, kind: str) -> list[tuple[str, np.ndarray, Any]]:
        """Name, stored data and type of each; the module gets the values that the file can hold."""
        import torch

        known = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
        table = gguf.get_tensor_name_map(known["llama" if arch == "mistral" else arch], 99)
        found = []
        for name, value in module.state_dict().items():
            if name == "lm_head.weight" and module.config.tie_word_embeddings:
                continue
            stored = table.get_name(name, (".weight", ".bias"))
            order = _row_order(arch, stored, module.config, value.shape[0])
            offset = 1.0 if arch == "gemma" and "norm" in stored else 0.0
            quant = gguf.GGMLQuantizationType[kind if value.ndim == 2 else "F32"]
            data = _quantised(gguf, value.numpy()[order] + np.float32(offset), quant)
            found.append((stored, data, quant))
            values = gguf.dequantize(data, quant).reshape(value.shape)[np.argsort(order)]
            value.copy_(torch.from_numpy(values - np.float32(offset)))
        return found


def make_module(model_type: str, changes: Mapping[str, Any]) -> Any:
    """A small random decoder of transformers."""
    import torch
    import transformers

    small = {
        "vocab_size": 269, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    small |= {"qwen3": {"head_dim": 32}, "gemma": {"head_dim": 32, "tie_word_embeddings": True}}.get(
        model_type, {}
    )
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(model_type, **{**small, **changes})
    module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for value in module.parameters():  # norms and biases too: they start as ones and zeros
            value.requires_grad_(requires_grad=False)
            value.add_(torch.randn(value.shape) * 0.1)
    return module


def _metadata(config: Any) -> dict[str, Any]:
    """What llama.cpp's converter says of a configuration."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    return {
        "block_count": config.num_hidden_layers, "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps, "rope.freq_base": rope["rope_theta"],
        "attention.key_length": size, "attention.value_length": size,
        "rope.dimension_count": int(size * rope.get("partial_rotary_factor", 1.0)),
        "attention.sliding_window": getattr(config, "sliding_window", None),
    }  # fmt: skip


def _row_order(arch: str, name: str, config: Any, rows: int) -> np.ndarray:
    """`permute` of llama.cpp's convert_hf_to_gguf.py, as the row that comes to each place."""
    order = np.arange(rows)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(
        name.split(".")[-2]
    )
    if arch not in ("llama", "mistral") or heads is None:
        return order
    return order.reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(rows)


def _quantised(gguf: Any, values: np.ndarray, quant: Any) -> np.ndarray:
    """The stored data; the gguf package cannot quantise K types, whose blocks are random then."""
    try:
        return gguf.quantize(np.ascontiguousarray(values), quant)
    except NotImplementedError:
        elements, nbytes = gguf.GGML_QUANT_SIZES[quant]
        rng = np.random.default_rng(values.shape[0])
        blocks = rng.integers(0, 256, (*values.shape[:-1], values.shape[-1] // elements, nbytes), np.uint8)
        scale = np.array([0.001], np.float16).view(np.uint8)
        blocks[..., :2] = blocks[..., 2:4] = scale  # Q4_K: d and dmin
        return blocks.reshape(*values.shape[:-1], -1)


def _add(writer: Any, key: str, value: Any) -> None:
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    add.get(type(value), writer.add_array)(key, value)


@pytest.fixture
def make_gguf(tmp_path: Path) -> GgufMaker:
    """Writes small GGUF files; skipped where the gguf package is not installed."""
    pytest.importorskip("gguf")
    folder = tmp_path / "gguf"
    folder.mkdir()
    return GgufMaker(folder)


@pytest.fixture
def vocabularies() -> Callable[[str], dict[str, Any]]:
    """Tokenizer metadata: `sentencepiece`, or byte-level with that value of `tokenizer.ggml.pre`."""
    return lambda name: sentencepiece() if name == "sentencepiece" else byte_level(name)
