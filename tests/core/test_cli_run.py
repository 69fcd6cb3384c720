"""burnish run, bench and doctor from the command line."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from click.testing import CliRunner, Result

from burnish.cli import main
from burnish.runtime.providers import availability


def burnish(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def last_error(result: Result) -> dict[str, str]:
    found: dict[str, str] = json.loads(result.stdout)["error"]
    return found


@pytest.fixture
def gather(tmp_path: Path) -> Path:
    """Rows of a table of 5 by token ids, with a mask; ids above 4 do not run."""
    text = """
        <ir_version: 10, opset_import: ["": 21]>
        g (int64[batch, sequence] input_ids, int64[batch, sequence] attention_mask)
            => (float[batch, sequence, 2] hidden, int64[batch, sequence] kept)
            <float[5, 2] table = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}>
        {
            hidden = Gather (table, input_ids)
            kept = Identity (attention_mask)
        }
    """
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_random_inputs_respect_what_inputs_mean(gather: Path) -> None:
    result = burnish("run", gather, "--dim", "sequence=6", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["provider"] == "cpu"
    assert found["inputs"] == {"input_ids": [1, 6], "attention_mask": [1, 6]}
    hidden, kept = found["outputs"]
    assert (hidden["shape"], hidden["dtype"], hidden["not_finite"]) == ([1, 6, 2], "float32", 0)
    assert 0 <= hidden["min"] <= hidden["max"] <= 9
    assert (kept["min"], kept["max"]) == (1, 1)


def test_the_seed_decides(gather: Path) -> None:
    runs = [json.loads(burnish("run", gather, "--json", "--seed", seed).stdout) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_given_arrays_decide_the_sizes_of_random_ones(gather: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array([[4, 0, 1]]))
    out = tmp_path / "out"
    result = burnish(
        "run",
        gather,
        "--input",
        f"input_ids={tmp_path / 'ids.npy'}",
        "-o",
        out,
        "-i",
        "attention_mask=random",
    )
    assert result.exit_code == 0, result.output
    assert np.load(out / "hidden.npy").tolist() == [[[8, 9], [0, 1], [2, 3]]]
    assert np.load(out / "kept.npy").shape == (1, 3)
    assert "hidden" in result.stdout
    assert "attention_mask [1, 3]" in result.stdout


def test_outputs_whose_names_are_no_file_names(tmp_path: Path) -> None:
    text = """
        <ir_version: 10, opset_import: ["": 21]>
        g (float[2] x) => (float[2] y, float[2] z) { y = Relu (x)  z = Neg (x) }
    """
    proto = onnx.parser.parse_model(text)
    for node, output, name in zip(proto.graph.node, proto.graph.output, ("../up", "a/b"), strict=True):
        node.output[0] = output.name = name
    onnx.save(proto, tmp_path / "m.onnx")
    result = burnish("run", tmp_path / "m.onnx", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["_up.npy", "a_b.npy"]


def test_human_output_goes_to_stderr_with_json(gather: Path) -> None:
    result = burnish("run", gather, "--json")
    assert "Ran on cpu" in result.stderr
    assert "Ran on cpu" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--input", "input_idz=random"), "INPUT_UNKNOWN"),
        (("--input", "input_ids=none.npy"), "INPUT_FILE"),
        (("--dim", "seq=3"), "DIM_UNKNOWN"),
        (("--provider", "cudaa"), "EP_UNKNOWN"),
    ],
)
def test_typed_errors(arguments: tuple[str, ...], code: str, gather: Path) -> None:
    result = burnish("run", gather, *arguments, "--json")
    assert result.exit_code == 1
    assert last_error(result)["code"] == code


@pytest.mark.parametrize(
    ("array", "code"),
    [
        (np.zeros((1, 3), np.int32), "INPUT_DTYPE"), (np.zeros(3, np.int64), "INPUT_RANK"),
        (np.full((1, 3), 99), "MODEL_RUN"), (np.array([{}]), "INPUT_FILE"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit(array: np.ndarray, code: str, gather: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", array, allow_pickle=True)
    result = burnish("run", gather, "--input", f"input_ids={tmp_path / 'ids.npy'}", "--json")
    assert result.exit_code == 1
    assert last_error(result)["code"] == code


def test_npz_is_refused_by_name(gather: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "ids.npz", a=np.zeros(1))
    result = burnish("run", gather, "--input", f"input_ids={tmp_path / 'ids.npz'}", "--json")
    assert last_error(result)["code"] == "INPUT_FILE"


def test_output_that_is_a_file(gather: Path) -> None:
    result = burnish("run", gather, "-o", gather, "--json")
    assert result.exit_code == 1
    assert last_error(result)["code"] == "OUTPUT_PATH"


@pytest.mark.skipif(availability("cuda").usable, reason="CUDA works on this machine")
def test_missing_provider_is_two_lines_and_status_1(gather: Path) -> None:
    result = burnish("run", gather, "--provider", "cuda")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: Provider 'cuda' does not work here:")
    assert len(result.stderr.strip().splitlines()) == 2
    auto = burnish("run", gather, "--provider", "auto", "--json")
    assert json.loads(auto.stdout)["provider"] == "cpu"
    assert "cuda" in json.loads(auto.stdout)["why"]


@pytest.mark.parametrize("arguments", [("--dim", "sequence=x"), ("--dim", "sequence"), ("-t", "0")])
def test_usage_errors(arguments: tuple[str, ...], gather: Path) -> None:
    assert burnish("run", gather, *arguments).exit_code == 2


def test_bench_prints_a_row_for_each_model(gather: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(gather.read_bytes())
    result = burnish(
        "bench", gather, other, "--batch", "1,2", "--dim", "sequence=4", "--runs", 2, "--no-memory"
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.count("other.onnx") == 2
    assert "batch 2, sequence 4" in result.stdout
    assert "1.00×" in result.stdout


def test_bench_json(gather: Path) -> None:
    result = burnish("bench", gather, "--runs", 2, "--json", "--threads", 1)
    found = json.loads(result.stdout)
    assert found["threads"] == 1
    case = found["cases"][0]
    assert case["times"]["n"] == 2
    assert case["sizes"] == {"batch": 1, "sequence": 128}
    assert {"p50_ms", "p90_ms", "p99_ms", "min_ms"} <= case["times"].keys()
    assert case["peak_bytes"] is None or case["peak_bytes"] > 0


@pytest.mark.parametrize("arguments", [("--batch", "0"), ("--batch", "1,x"), ("--runs", "0")])
def test_bench_usage_errors(arguments: tuple[str, ...], gather: Path) -> None:
    assert burnish("bench", gather, *arguments).exit_code == 2


def test_bench_without_a_model_is_a_usage_error() -> None:
    assert burnish("bench").exit_code == 2


def test_bench_of_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    result = burnish("bench", tmp_path / "m.onnx", "--json")
    assert result.exit_code == 1
    assert last_error(result)["code"] == "MODEL_PARSE"


def test_doctor_for_people_and_for_machines() -> None:
    result = burnish("doctor")
    assert result.exit_code == 0, result.output
    for word in ("cpu", "openvino", "cuda", "tensorrt", "threads", "telemetry", "versions"):
        assert word in result.stdout
    if not availability("cuda").usable and availability("cuda").fixes:
        assert "onnxruntime-gpu[cuda,cudnn]" in result.stdout
    found = json.loads(burnish("doctor", "--json").stdout)
    assert {"versions", "machine", "telemetry", "providers", "problems"} == found.keys()
    assert found["providers"][0] == {
        "name": "cpu", "works": True, "why": "runs; always there", "missing": [], "fixes": [],
    }  # fmt: skip
