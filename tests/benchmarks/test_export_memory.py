"""The memory benchmark's own parts: a folder made layer by layer, a process that is watched."""

import sys
from pathlib import Path

import onnx_ir as ir
import pytest
import transformers

from burnish.benchmarks import export_memory, export_memory_peer
from burnish.benchmarks.export_memory import Cost, limit, make_folder, report, watch

pytestmark = pytest.mark.torch


def test_folder_loads_with_every_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(export_memory.SHAPES, 0.1, (32, 48, 3, 2))
    monkeypatch.setattr(export_memory, "VOCABULARY", 100)
    size = make_folder(tmp_path, 0.1)
    model, found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert size == 2 * sum(weight.numel() for weight in model.parameters())


def test_a_process_is_watched(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "data").write_bytes(b"x" * 1000)
    code = "import time; held = b'x' * 100_000_000; time.sleep(1.5)"
    cost = watch("one", [sys.executable, "-c", code], output)
    assert cost.peak_bytes > 100_000_000
    assert cost.written_bytes == 1000
    assert cost.failure == ""
    failed = watch("two", [sys.executable, "-c", "raise SystemExit('no such thing')"], output)
    assert failed.failure == "exit 1: no such thing"


def test_report_says_whether_the_promise_was_kept() -> None:
    ours = Cost("burnish export", 100.0, 9_000_000_000, 8_000_000_000, 5_200_000_000, 20.0)
    theirs = Cost("torch.onnx.export", 80.0, 8_000_000_000, 8_000_000_000, 5_200_000_000)
    assert limit(ours) == pytest.approx(9.3e9)
    assert "9.00 GB of the promised 9.30 GB (1.5 x written + 1.5 GB): kept" in report(1.3, [ours, theirs])
    assert "1.25 x torch.onnx.export" in report(1.3, [ours, theirs])
    assert "1.00 x without the comparisons" in report(1.3, [ours, theirs])
    other = Cost("optimum-onnx", 50.0, 8_000_000_000, 8_000_000_000, 5_200_000_000)
    late = Cost("transformers.exporters", 50.0, 0, 0, 0, failure="exit 1: no")
    assert "2.00 x optimum-onnx" in report(1.3, [ours, theirs, late, other])
    assert "x transformers.exporters" not in report(1.3, [ours, theirs, late, other])
    broken = Cost("burnish export", 100.0, 9_400_000_000, 0, 5_200_000_000)
    assert "BROKEN" in report(1.3, [broken, theirs])


@pytest.mark.parametrize("peer", ["torch_alone", "transformers_exporter"])
def test_the_peers_export_the_folder(peer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(export_memory.SHAPES, 0.1, (32, 48, 2, 2))
    monkeypatch.setattr(export_memory, "VOCABULARY", 100)
    make_folder(tmp_path / "folder", 0.1)
    monkeypatch.setattr(sys, "argv", ["peer", str(tmp_path / "folder"), str(tmp_path / "model.onnx")])
    getattr(export_memory_peer, peer)()
    model = ir.load(tmp_path / "model.onnx")
    names = [value.name for value in model.graph.inputs]
    assert names[0] == "input_ids"
    assert "attention_mask" in names
    assert isinstance(model.graph.inputs[0].shape[1], ir.SymbolicDim)
