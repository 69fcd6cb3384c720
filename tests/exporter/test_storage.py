"""Weights in a file that PyTorch and the graph share: written once, bounded in memory, gone on failure."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers

import burnish
from burnish import files, staging
from burnish.artifact import Artifact
from burnish.errors import BurnishError, ExportError, MismatchError, OutputError
from burnish.exporter.storage import Storage, weight_size
from burnish.model import load_model

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def _everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "STREAMED", 1)


class Net(torch.nn.Module):
    """A Linear, one that shares its weight with a table, a weight that is also used as it is, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(40, 16)
        self.layer = torch.nn.Linear(16, 48)
        self.back = torch.nn.Linear(48, 16, bias=False)
        self.head = torch.nn.Linear(16, 40, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("shift", torch.randn(4, 8, 16))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.layer(self.table(ids)) @ self.layer.weight
        return self.head(hidden + self.back(hidden @ self.back.weight) + self.shift.sum((0, 1)))


def example() -> dict[str, torch.Tensor]:
    return {"ids": torch.arange(6).reshape(2, 3)}


def export(module: Any, output: Path, **options: Any) -> Artifact:
    dynamic = {"ids": {0: "batch", 1: "length"}}
    made = burnish.export(module, example(), dynamic=dynamic, output=output, **options)
    assert isinstance(made, Artifact)
    return made


def check(artifact: Artifact, module: torch.nn.Module) -> None:
    ids = np.arange(20).reshape(4, 5)
    with burnish.load(artifact) as session:
        found = session(ids=ids)["output"]
    np.testing.assert_allclose(found, module(torch.from_numpy(ids)).detach().numpy(), atol=1e-4)


def only(folder: Path, *names: str) -> bool:
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_folder_of_a_live_module(tmp_path: Path) -> None:
    net = Net()
    before = {name: (weight.data_ptr(), weight.stride()) for name, weight in net.state_dict().items()}
    made = export(net, tmp_path / "net.burnish")
    assert {n: (w.data_ptr(), w.stride()) for n, w in net.state_dict().items()} == before
    assert only(tmp_path, "net.burnish")
    assert only(tmp_path / "net.burnish", "burnish.json", "model.onnx", "model.onnx.data", "timings.json")
    assert any("as MatMul reads them" in note for note in made.manifest.receipts[0].notes)
    with torch.no_grad():
        expected = Net()
        net.layer.weight.zero_()
    check(Artifact.open(tmp_path / "net.burnish"), expected)


def test_turned_weights_keep_their_names_and_tied_ones_are_stored_once(tmp_path: Path) -> None:
    net = Net()
    made = export(net, tmp_path / "net.burnish")
    weights = {name: value.const_value for name, value in made.model.graph.initializers.items()}
    np.testing.assert_array_equal(weights["layer.weight"].numpy(), net.layer.weight.detach().numpy().T)
    np.testing.assert_array_equal(weights["back.weight"].numpy(), net.back.weight.detach().numpy().T)
    (tied,) = {"table.weight", "head.weight"} & weights.keys()
    np.testing.assert_array_equal(weights[tied].numpy(), net.table.weight.detach().numpy())
    assert (tmp_path / "net.burnish" / "model.onnx.data").stat().st_size < weight_size(net) + 5 * 4096
    onnx.checker.check_model(str(tmp_path / "net.burnish" / "model.onnx"), full_check=True)


def test_plain_file(tmp_path: Path) -> None:
    net = Net()
    made = export(net, tmp_path / "net.onnx")
    check(made, net)
    data = next(tmp_path.glob("net.*.data"))
    assert only(tmp_path, "net.onnx", "net.burnish.json", data.name)


def test_weights_that_the_graph_does_not_use_are_left_out(tmp_path: Path) -> None:
    net = Net()
    net.unused = torch.nn.Linear(100, 100)
    made = export(net, tmp_path / "net.burnish")
    check(made, net)
    assert (tmp_path / "net.burnish" / "model.onnx.data").stat().st_size < weight_size(net) - 30_000


def test_the_same_module_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        export(Net(), tmp_path / name)
    for file in ("model.onnx", "model.onnx.data", "burnish.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_an_owned_module_lives_on_the_file(tmp_path: Path) -> None:
    net, twin = Net(), Net()
    storage = Storage(tmp_path / "weights", net, output=tmp_path, adopt=True)
    for name, weight in twin.state_dict().items():
        assert torch.equal(net.state_dict()[name], weight)
    assert net.head.weight is net.table.weight
    assert net.layer.weight.stride() == (1, 48)
    assert storage.find(net.layer.weight) is not None
    assert storage.find(torch.zeros(3)) is None


def llama(folder: Path, dtype: str = "bfloat16") -> Path:
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, dtype=dtype,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def test_bfloat16_folder_becomes_float32(tmp_path: Path) -> None:
    made = burnish.export(llama(tmp_path / "llama"), output=tmp_path / "out", decode_tokens=8)
    assert isinstance(made, Artifact)
    receipt = made.manifest.receipts[0]
    assert any("converted from bfloat16 to float32" in note for note in receipt.notes)
    assert {spec.dtype for spec in made.manifest.inputs} == {"int64", "float32"}
    stored = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "llama")
    head = made.model.graph.initializers["lm_head.weight"].const_value
    np.testing.assert_array_equal(head.numpy(), stored.lm_head.weight.detach().float().numpy().T)
    assert [r.step for r in made.manifest.receipts] == ["export", "decode"]
    assert only(tmp_path, "llama", "out")


def test_small_folders_are_converted_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "STREAMED", 1 << 30)
    made = burnish.export(llama(tmp_path / "llama"), decode_tokens=4)
    assert isinstance(made, Artifact)
    assert "lm_head.weight" in made.model.graph.initializers
    assert any("converted from bfloat16" in note for note in made.manifest.receipts[0].notes)


def test_dtype_is_chosen(tmp_path: Path) -> None:
    made = burnish.export(
        llama(tmp_path / "llama", "float32"), output=tmp_path / "out", dtype="float16", decode_tokens=2
    )
    assert isinstance(made, Artifact)
    assert "weights converted from float32 to float16" in made.manifest.receipts[0].notes
    assert {spec.dtype for spec in made.manifest.inputs} == {"int64", "float16"}
    with pytest.raises(ExportError, match="There is no dtype 'float8'") as caught:
        burnish.export(tmp_path / "llama", dtype="float8")
    assert caught.value.code == "EXPORT_DTYPE"
    with pytest.raises(ExportError, match="is exported as it is") as caught:
        burnish.export(Net(), example(), dtype="float16")
    assert caught.value.code == "EXPORT_DTYPE"


def test_encoder_decoder_parts_have_files_of_their_own(tmp_path: Path) -> None:
    config = transformers.T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    made = burnish.export(tmp_path / "t5", output=tmp_path / "out", decode_tokens=4)
    assert set(made.manifest.files) >= {"encoder/model.onnx.data", "decoder/model.onnx.data"}
    assert only(tmp_path, "t5", "out")
    for part in ("encoder", "decoder"):
        load_model(tmp_path / "out" / part / "model.onnx")


def test_no_room_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.burnish").mkdir()
    write, written = os.write, 0

    def full(descriptor: int, data: Any) -> int:
        nonlocal written
        written += len(data)
        if written > 4096:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(files.os, "write", full)
    with pytest.raises(OutputError) as caught:
        export(Net(), tmp_path / "net.burnish")
    assert caught.value.code == "DISK_FULL"
    assert str(tmp_path / "net.burnish") in caught.value.what
    assert only(tmp_path, "net.burnish")
    assert only(tmp_path / "net.burnish")


def test_a_mismatch_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(self: Storage, model: Any) -> dict[str, np.ndarray]:
        return {name: array * 1.5 for name, array in arrays(self, model).items()}

    arrays = Storage.arrays
    monkeypatch.setattr(Storage, "arrays", damaged)
    with pytest.raises(MismatchError) as caught:
        export(Net(), tmp_path / "net.burnish")
    assert caught.value.code == "EXPORT_PARITY"
    assert only(tmp_path)


def test_manifest_has_the_hash_of_the_moved_file(tmp_path: Path) -> None:
    export(Net(), tmp_path / "net.burnish")
    listed = json.loads((tmp_path / "net.burnish" / "burnish.json").read_text())["files"]
    assert set(listed) == {"model.onnx", "model.onnx.data"}
    Artifact.open(tmp_path / "net.burnish")
    with open(tmp_path / "net.burnish" / "model.onnx.data", "r+b") as file:
        file.write(b"!")
    with pytest.raises(BurnishError, match="sha256"):
        Artifact.open(tmp_path / "net.burnish")
