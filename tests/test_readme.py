"""What is written for people to copy is run, and what is shown is what is there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from burnish.cli import COMMANDS, main
from burnish.passes.registry import PASSES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


COMMAND_LINES = [
    line for block in blocks(README, "bash") for line in block.splitlines() if line.startswith("burnish ")
]


def test_the_commands_of_the_readme_run(
    encoder_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    encoder_path.rename(tmp_path / "model.onnx")
    assert len(COMMAND_LINES) >= 6
    for line in COMMAND_LINES:
        result = CliRunner().invoke(main, shlex.split(line, comments=True)[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}"


def test_the_table_names_every_command() -> None:
    named = re.findall(r"^\| `burnish ([\w-]+)", README, re.MULTILINE)
    assert named == list(COMMANDS)


def test_the_make_targets_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    asked = re.findall(r"^make ([a-z-]+)", "\n".join(blocks(README, "bash")), re.MULTILINE)
    assert {"demo", "test"} <= set(asked) <= set(targets)


@pytest.mark.torch
def test_the_python_example_runs(tmp_path: Path) -> None:
    (example,) = [block for block in blocks(README, "python") if "burnish.export" in block]
    done = subprocess.run(
        [sys.executable, "-P", "-c", example + "\nprint(sorted(out), out[session.outputs[0].name].shape)"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("(16, 8)")
    assert (tmp_path / "model.burnish" / "burnish.json").exists()
    assert len(example.strip().splitlines()) <= 12


def test_the_pass_shown_is_the_pass_there_is() -> None:
    (shown,) = [block for block in blocks(README, "python") if "class RemoveIdentity" in block]
    source = (ROOT / "passes/cleanup/remove_identity.py").read_text(encoding="utf-8")
    assert shown == source


def test_the_snippets_of_the_docs_run() -> None:
    snippets = [
        block for path in sorted((ROOT / "docs").glob("*.md")) for block in blocks(path.read_text(), "python")
    ]
    assert snippets
    for snippet in snippets:
        done = subprocess.run(
            [sys.executable, "-P", "-c", snippet], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_the_examples_run(encoder_path: Path, tmp_path: Path) -> None:
    arguments = {"optimize_a_model": [str(encoder_path), str(tmp_path / "fast.onnx")], "own_pass": []}
    every = {path.stem: path for path in sorted((ROOT / "examples").glob("*.py"))}
    textbook = ROOT / "tests" / "examples" / "test_textbook.py"  # which runs those in its table
    tested = re.findall(r'Example\("(\w+)"', textbook.read_text(encoding="utf-8"))
    assert {*arguments, *tested} == set(every)
    for path in map(every.__getitem__, arguments):
        command = [sys.executable, "-P", str(path), *arguments[path.stem]]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, f"{path.name}\n{done.stderr}"


def test_the_readme_shows_real_output() -> None:
    (shown,) = [block for block in blocks(README, "text") if "burnish-int8" in block]
    assert all(name in shown for name in ("torch", "onnxruntime", "burnish-fp32"))


def test_files_that_the_readme_links_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_passes_named_in_the_readme_exist() -> None:
    recipes = re.findall(r'--recipe "([^"]+)"', README)
    names = [re.sub(r"\{.*", "", name) for recipe in recipes for name in recipe.split(",")]
    assert names
    assert set(names) <= set(PASSES)
