"""A CTranslate2 file of Whisper as a transformers model: names, values, and what is refused."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from burnish.benchmarks import kit  # noqa: E402
from burnish.benchmarks.ctranslate2_file import read_tensors  # noqa: E402
from burnish.benchmarks.kit import KitError  # noqa: E402
from burnish.benchmarks.whisper_kit import whisper_folder, whisper_model  # noqa: E402

HEADS = 2
PARTS = {
    "layer_norm": "{side}/layer_norm", "self_attn_layer_norm": "{own}/layer_norm",
    "final_layer_norm": "{layer}/ffn/layer_norm", "encoder_attn_layer_norm": "{cross}/layer_norm",
    "self_attn.out_proj": "{own}/linear_1", "encoder_attn.out_proj": "{cross}/linear_2",
    "encoder_attn.q_proj": "{cross}/linear_0", "fc1": "{layer}/ffn/linear_0", "fc2": "{layer}/ffn/linear_1",
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(3)
    config = transformers.WhisperConfig(
        vocab_size=51864, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS, encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=80,
        max_source_positions=12, max_target_positions=10,
    )  # fmt: skip
    made = transformers.WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weight in made.parameters():  # biases and norms are zeros and ones otherwise
            weight.add_(torch.randn(weight.shape) * 0.1)
    return made


def stored(model: Any) -> dict[str, np.ndarray]:
    """The tensors as CTranslate2's converter names them."""
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    found = {"encoder/num_heads": np.int16(HEADS), "decoder/num_heads": np.int16(HEADS)}
    found["decoder/embeddings/weight"] = weights["model.decoder.embed_tokens.weight"]
    for side in ("encoder", "decoder"):
        found[f"{side}/position_encodings/encodings"] = weights[f"model.{side}.embed_positions.weight"]
        put(found, weights, f"model.{side}.layer_norm", f"{side}/layer_norm")
        for number in range(2):
            layer(found, weights, f"model.{side}.layers.{number}", f"{side}/layer_{number}")
    for number in (1, 2):
        put(found, weights, f"model.encoder.conv{number}", f"encoder/conv{number}")
    return {name: np.asarray(value) for name, value in found.items()}


def layer(found: dict[str, Any], weights: dict[str, np.ndarray], ours: str, theirs: str) -> None:
    places = {"side": "", "layer": theirs, "own": f"{theirs}/self_attention", "cross": f"{theirs}/attention"}
    for part, place in PARTS.items():
        if part != "layer_norm" and f"{ours}.{part}.weight" in weights:
            put(found, weights, f"{ours}.{part}", place.format(**places))
    for attention, place, parts in (("self_attn", "own", "qkv"), ("encoder_attn", "cross", "kv")):
        if f"{ours}.{attention}.k_proj.weight" in weights:
            name = f"{places[place]}/linear_{'0' if place == 'own' else '1'}"
            of = {p: f"{ours}.{attention}.{p}_proj" for p in parts}
            found[f"{name}/weight"] = np.concatenate([weights[f"{of[p]}.weight"] for p in parts])
            biases = [weights.get(f"{of[p]}.bias", np.zeros(16, np.float32)) for p in parts]
            found[f"{name}/bias"] = np.concatenate(biases)


def put(found: dict[str, Any], weights: dict[str, np.ndarray], ours: str, theirs: str) -> None:
    norm = theirs.endswith("layer_norm")
    found[f"{theirs}/{'gamma' if norm else 'weight'}"] = weights[f"{ours}.weight"]
    found[f"{theirs}/{'beta' if norm else 'bias'}"] = weights[f"{ours}.bias"]


def test_every_weight_comes_to_its_place(model: Any) -> None:
    made = whisper_model(stored(model))
    found, wanted = made.state_dict(), model.state_dict()
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(found[name], wanted[name]), name
    assert not made.training
    assert made.config.max_target_positions == 10
    assert made.generation_config.decoder_start_token_id == 50257


def test_missing_weights_and_biases_of_keys_are_refused(model: Any) -> None:
    parts = stored(model)
    parts["encoder/layer_0/self_attention/linear_0/bias"] = np.ones(48, np.float32)
    with pytest.raises(KitError, match="have a bias"):
        whisper_model(parts)
    del parts["encoder/layer_0/self_attention/linear_0/bias"]
    with pytest.raises(KitError, match="there is no") as caught:
        whisper_model(parts)
    assert caught.value.code == "KIT_MEMBER"


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def file_of(tensors: dict[str, np.ndarray], aliases: dict[str, str], version: int = 6) -> bytes:
    types = {"float32": 0, "int16": 2, "float16": 4}
    data = struct.pack("<I", version) + text("WhisperSpec") + struct.pack("<II", 3, len(tensors))
    for name, array in tensors.items():
        data += text(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        data += struct.pack("<BI", types[array.dtype.name], array.nbytes) + array.tobytes()
    data += struct.pack("<I", len(aliases))
    return data + b"".join(text(name) + text(of) for name, of in aliases.items())


def test_file(tmp_path: Path) -> None:
    tensors = {"a/weight": np.arange(6, dtype=np.float16).reshape(2, 3), "heads": np.array(6, np.int16)}
    path = tmp_path / "model.bin"
    path.write_bytes(file_of(tensors, {"b/weight": "a/weight"}))
    found = read_tensors(path)
    assert {*found} == {"a/weight", "heads", "b/weight"}
    np.testing.assert_array_equal(found["b/weight"], tensors["a/weight"])
    assert found["heads"] == 6


@pytest.mark.parametrize("change", [lambda data: data[:40], lambda data: b"\5" + data[1:], lambda _: b"?"])
def test_file_that_cannot_be_read(tmp_path: Path, change: Any) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(change(file_of({"a": np.zeros((4, 4), np.float32)}, {})))
    with pytest.raises(KitError) as caught:
        read_tensors(path)
    assert caught.value.code == "KIT_MEMBER"


@pytest.mark.kit
@pytest.mark.slow
def test_whisper_tiny_of_the_kit() -> None:
    try:
        kit.fetch("whisper-tiny-en")
    except KitError as error:
        pytest.skip(error.what)
    folder = whisper_folder()
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder)
    assert sum(weight.numel() for weight in model.parameters()) == 37_760_256
    assert whisper_folder() == folder
