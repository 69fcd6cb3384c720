"""optimize, quantize, verify, inspect and passes from the command line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from burnish.cli import COMMANDS, main
from burnish.model import save_model, signature
from burnish.testing import parse


def burnish(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_help_lists_every_command() -> None:
    result = burnish("--help")
    assert result.exit_code == 0
    assert all(f"  {name} " in result.output for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_and_json(name: str) -> None:
    result = burnish(name, "--help")
    assert result.exit_code == 0
    assert f"  burnish {name}" in result.output
    assert "--json" in result.output


def test_an_unknown_command_is_a_usage_error() -> None:
    result = burnish("optimise", "x.onnx")
    assert result.exit_code == 2
    assert "No such command" in result.output


def test_optimize_prints_receipts_and_writes(encoder_path: Path, tmp_path: Path) -> None:
    result = burnish("optimize", encoder_path, "-o", tmp_path / "fast.onnx", "--no-measured")
    assert result.exit_code == 0, result.output
    assert "remove-identity" in result.stdout
    assert (tmp_path / "fast.onnx").exists()


def test_optimize_json_is_alone_on_stdout(encoder_path: Path, tmp_path: Path) -> None:
    result = burnish("optimize", encoder_path, "-o", tmp_path / "fast.onnx", "--no-measured", "--json")
    receipts = json.loads(result.stdout)["receipts"]
    assert "remove-identity" in [receipt["step"] for receipt in receipts]
    assert "remove-identity" in result.stderr


def test_errors_are_two_lines_and_status_1(encoder_path: Path, tmp_path: Path) -> None:
    result = burnish("optimize", encoder_path, "-o", tmp_path / "x.onnx", "--recipe", "fuse-gelo")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-2:] == [
        "Error: No pass named 'fuse-gelo'.",
        "Did you mean 'fuse-gelu'?",
    ]
    assert not (tmp_path / "x.onnx").exists()


def test_errors_as_json(tmp_path: Path) -> None:
    result = burnish("optimize", tmp_path / "no.onnx", "-o", tmp_path / "x.onnx", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["code"].startswith("MODEL_")


def test_a_missing_option_is_a_usage_error(encoder_path: Path) -> None:
    assert burnish("optimize", encoder_path).exit_code == 2


def test_a_bad_size_is_a_usage_error(encoder_path: Path, tmp_path: Path) -> None:
    result = burnish("optimize", encoder_path, "-o", tmp_path / "x.onnx", "--dim", "sequence=long")
    assert result.exit_code == 2
    assert "'long' is not a size" in result.output


def test_quantize_static_from_npz(
    encoder_path: Path, tmp_path: Path, encoder_feeds: Callable[[int], list[dict[str, np.ndarray]]]
) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    for number, feeds in enumerate(encoder_feeds(3)):
        np.savez(folder / f"{number}.npz", **feeds)
    output = tmp_path / "int8.onnx"
    result = burnish("quantize", encoder_path, "-o", output, "--data", folder, "--no-measured")
    assert result.exit_code == 0, result.output
    facts = json.loads(burnish("inspect", output, "--json").stdout)
    assert facts["ops"]["QuantizeLinear"] >= 2


def test_quantize_needs_data(encoder_path: Path, tmp_path: Path) -> None:
    result = burnish("quantize", encoder_path, "-o", tmp_path / "x.onnx")
    assert result.exit_code == 1
    assert "needs calibration data" in result.stderr


def test_verify_equal_and_different(encoder_path: Path, tmp_path: Path) -> None:
    fast = tmp_path / "fast.onnx"
    burnish("optimize", encoder_path, "-o", fast, "--no-measured")
    same = burnish("verify", encoder_path, fast)
    assert same.exit_code == 0
    assert "Equal: largest difference" in same.stdout
    burnish("quantize", encoder_path, "-o", tmp_path / "int8.onnx", "--data", "random", "--no-measured")
    different = burnish("verify", encoder_path, tmp_path / "int8.onnx", "--tolerance", "1e-6")
    assert different.exit_code == 1
    assert "differ by" in different.stderr


def test_inspect_tells_the_facts(encoder_path: Path) -> None:
    facts = json.loads(burnish("inspect", encoder_path, "--json").stdout)
    assert facts["nodes"] == 15
    assert facts["ops"]["MatMul"] == 2
    assert facts["parameters"] == 20 * 8 + 8 * 16 + 16 + 16 * 8 + 8 + 8 + 8 + 3 + 1
    assert facts["macs"] == 128 * (8 * 16 + 16 * 8)
    assert facts["inputs"][0]["meaning"] == "token_ids"
    text = burnish("inspect", encoder_path).stdout
    assert "input_ids: int64[batch, sequence]" in text


def test_passes_lists_and_shows() -> None:
    assert "fuse-attention" in burnish("passes").stdout
    shown = burnish("passes", "fold-constants").stdout
    assert "max_bytes" in shown
    assert json.loads(burnish("passes", "--json").stdout)[0]["name"] == "remove-identity"


def test_passes_unknown() -> None:
    result = burnish("passes", "fuse-gelo")
    assert result.exit_code == 1
    assert "Did you mean" in result.stderr


def test_ctrl_c_leaves_nothing_half_written(encoder_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    code = (
        "import os, signal, sys\n"
        "from burnish.passes import runner\n"
        "original = runner._step\n"
        "def step(*arguments):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    return original(*arguments)\n"
        "runner._step = step\n"
        "from burnish.cli import main\n"
        "main()\n"
    )
    command = [sys.executable, "-P", "-c", code, "optimize", str(encoder_path), "-o", str(folder / "x.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert list(folder.iterdir()) == []


def test_brackets_are_not_taken_for_markup(tmp_path: Path) -> None:
    model = parse("g (float[batch, sequence] x) => (float[batch, sequence] y) { y = Identity (x) }")
    model.graph.outputs[0].name = "y[bold]"
    path = tmp_path / "a[b].onnx"
    save_model(model, path, signature(model))
    assert "y[bold]: float32[batch, sequence]" in burnish("inspect", path).stdout
    assert "(output 'y[bold]')" in " ".join(burnish("verify", path, path).stdout.split())
    result = burnish("optimize", path, "-o", tmp_path / "c[d].onnx", "--no-measured")
    assert "c[d].onnx" in result.stdout


def test_inspect_shows_every_receipt_that_compared_or_noted(encoder_path: Path, tmp_path: Path) -> None:
    burnish("optimize", encoder_path, "-o", tmp_path / "fast", "--no-measured", "-r", "remove-identity")
    shown = burnish("inspect", tmp_path / "fast").stdout
    assert "deployed: kept, max error" in shown
    assert "at 4 sets of sizes" in shown


def test_inspect_says_what_it_does_not_count(tmp_path: Path) -> None:
    model = parse(
        """g (float[batch, 4] x) => (float[batch, 4] y) {
        a = MatMul (x, w)
        y = Einsum <equation = "ij,jk->ik"> (a, w)
    }""",
        weights={"w": np.ones((4, 4), np.float32)},
    )
    save_model(model, tmp_path / "m.onnx", signature(model))
    facts = json.loads(burnish("inspect", tmp_path / "m.onnx", "--json").stdout)
    assert facts["macs"] == 16
    assert facts["macs_note"].endswith("not counted: 1 Einsum")


def test_inspect_of_a_model_whose_inputs_have_no_rank(tmp_path: Path) -> None:
    model = parse("g (float x) => (float y) { y = Neg (x) }")
    model.graph.inputs[0].shape = model.graph.outputs[0].shape = None
    save_model(model, tmp_path / "m.onnx", signature(model))
    result = burnish("inspect", tmp_path / "m.onnx")
    assert result.exit_code == 0, result.output
    assert "not counted" in result.stdout


def test_a_size_of_an_unknown_dim_is_named(encoder_path: Path, tmp_path: Path) -> None:
    result = burnish("optimize", encoder_path, "-o", tmp_path / "x.onnx", "--dim", "sequenze=8")
    assert result.exit_code == 1
    assert "no dynamic dim 'sequenze'" in result.stderr
