"""Samples as numbers to report."""

from pathlib import Path

import onnx
import onnx.parser
import pytest

from burnish.benchmarks import measure
from burnish.benchmarks.bench import Settings, bench
from burnish.errors import InputError, ProviderError
from burnish.runtime.providers import availability


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    """y = relu(x), float32 [batch, width]."""
    text = """
        <ir_version: 10, opset_import: ["": 21]>
        g (float[batch, width] x) => (float[batch, width] y) { y = Relu (x) }
    """
    onnx.save(onnx.parser.parse_model(text), tmp_path / "relu.onnx")
    return tmp_path / "relu.onnx"


def test_measurement_in_milliseconds() -> None:
    found = measure.measurement([0.001 * n for n in range(1, 101)], warmup=3)
    assert (found.min_ms, found.n, found.warmup) == (pytest.approx(1), 100, 3)
    assert found.p50_ms == found.median_ms == pytest.approx(50.5)
    assert found.p90_ms == pytest.approx(90.1)
    assert found.p99_ms == pytest.approx(99.01)
    assert found.mean_ms == pytest.approx(50.5)


def test_speed_ratio_is_paired() -> None:
    ratio = measure.speed_ratio([2.0, 20.0, 4.0], [1.0, 10.0, 1.0])
    assert ratio.median == 2.0
    assert ratio.best == 2.0
    assert ratio.low <= ratio.median <= ratio.high


def test_interleave_and_compare() -> None:
    found = measure.interleave({"a": lambda: None, "b": lambda: None}, runs=6)
    assert [measurement.n for measurement in found.values()] == [6, 6]
    assert measure.compare_speed(lambda: None, lambda: None, runs=6).median > 0


def test_machine_and_versions_are_plain_data() -> None:
    assert measure.machine()["threads"]["intra_op"] >= 1
    assert "numpy" in measure.versions()


def test_bench_has_a_case_for_each_model_provider_and_batch(linear: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(linear.read_bytes())
    steps: list[str] = []
    report = bench(
        [str(linear), str(copy)],
        Settings(
            batches=(1, 4), dims={"width": 5}, providers=("cpu", "auto"), threads=1, runs=3, memory=False
        ),
        progress=lambda what, done, total: steps.append(what),
    )
    assert [case.name for case in report.cases[:4]] == [
        "relu.onnx (cpu)", "relu.onnx (auto)", "copy.onnx (cpu)", "copy.onnx (auto)",
    ]  # fmt: skip
    assert [case.batch for case in report.cases] == [1] * 4 + [4] * 4
    assert report.cases[4].sizes == {"batch": 4, "width": 5}
    assert report.cases[0].speedup.median == 1.0
    assert report.cases[0].file_bytes == linear.stat().st_size
    assert report.threads == 1
    assert steps == ["Loading", "Timing at batch 1", "Timing at batch 4"]


def test_bench_measures_memory_in_other_processes(linear: Path) -> None:
    case = bench([str(linear)], Settings(runs=2, threads=1)).cases[0]
    assert case.peak_bytes is None or case.peak_bytes > 0


def test_files_of_one_name_are_told_apart(linear: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "relu.onnx"
    other.parent.mkdir()
    other.write_bytes(linear.read_bytes())
    report = bench([str(linear), str(other)], Settings(runs=1, memory=False))
    assert [case.name for case in report.cases] == [str(linear), str(other)]


def test_bench_refuses_a_dim_that_no_model_has(linear: Path) -> None:
    with pytest.raises(InputError) as caught:
        bench([str(linear)], Settings(dims={"witdh": 3}))
    assert caught.value.code == "DIM_UNKNOWN"
    assert "'width'" in caught.value.hint


def test_bench_refuses_batches_where_the_batch_is_fixed(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["": 21]> g (float[1, 3] x) => (float[1, 3] y) { y = Relu (x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    with pytest.raises(InputError) as caught:
        bench([str(tmp_path / "m.onnx")], Settings(batches=(8,)))
    assert caught.value.code == "DIM_UNKNOWN"
    assert bench([str(tmp_path / "m.onnx")], Settings(runs=1, memory=False)).cases[0].sizes == {}


def test_bench_does_not_replace_a_provider(linear: Path) -> None:
    if availability("tensorrt").usable:
        pytest.skip("TensorRT works on this machine")
    with pytest.raises(ProviderError):
        bench([str(linear)], Settings(providers=("cpu", "tensorrt")))
