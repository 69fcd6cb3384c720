"""The large model of the memory benchmark, and the report."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from burnish.benchmarks import decoder
from burnish.benchmarks.decoder import layers_for, make_decoder
from burnish.benchmarks.export_memory import Cost
from burnish.benchmarks.memory import limit, main, report
from burnish.benchmarks.scale import rewrite
from burnish.model import histogram, load_model
from burnish.runtime.reference import Reference


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in {"WIDTH": 64, "INNER": 96, "HEADS": 4, "VOCABULARY": 50}.items():
        monkeypatch.setattr(decoder, name, size)


def test_the_size_is_about_what_was_asked_for(tmp_path: Path) -> None:
    wanted = 1_000_000
    size = make_decoder(tmp_path / "m.onnx", layers_for(wanted))
    assert size == (tmp_path / "m.data").stat().st_size
    assert abs(size - wanted) < 0.15 * wanted
    assert layers_for(1) == 2


def test_tokens_see_only_what_came_before(tmp_path: Path) -> None:
    make_decoder(tmp_path / "m.onnx", 2)
    model = Reference(tmp_path / "m.onnx")
    ids = np.arange(12).reshape(2, 6)
    changed = ids.copy()
    changed[:, 4] = 40
    a, b = model({"ids": ids})["logits"], model({"ids": changed})["logits"]
    np.testing.assert_array_equal(a[:, :4], b[:, :4])
    assert np.abs(a[:, 4:] - b[:, 4:]).max() > 0.01
    assert 0.1 < a.std() < 10


def test_every_layer_is_optimised(tmp_path: Path) -> None:
    make_decoder(tmp_path / "m.onnx", 3)
    _, result = rewrite(tmp_path / "m.onnx", checked=True)
    found = histogram(result)
    assert sum(count for op, count in found.items() if op.endswith("Attention")) == 3
    assert not {"Softmax", "Pow", "Trilu"} & found.keys()
    assert load_model(tmp_path / "m.onnx").graph.initializers["embed"].const_value is not None


def test_the_report_says_whether_the_promise_was_kept() -> None:
    ours = Cost("burnish checked", 60.0, 4_200_000_000, 1, 2_500_000_000)
    assert limit(2_500_000_000) == pytest.approx(4.25e9)
    late = Cost("onnxsim", 50.0, 9_000_000_000, 1, 0)
    text = report([ours, late], 2_500_000_000)
    assert "4.20 GB of the promised 4.25 GB (1.3 x weights + 1 GB): kept" in text
    assert "| onnxsim | 9.00 | 3.60 | 0.00 | 50 | wrote no model |" in text
    assert "BROKEN" in report([Cost("burnish checked", 1.0, 4_300_000_000, 1, 1)], 2_500_000_000)
    assert "BROKEN" in report([Cost("burnish checked", 1.0, 1, 1, 1, failure="exit 1: no")], 2_500_000_000)


def test_the_command_makes_measures_and_removes(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["--gigabytes", "0.001", "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "| burnish checked |" in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["burnish.log", "memory.json", "memory.md"]
