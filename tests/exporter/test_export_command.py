"""`burnish.export` and `burnish export`, from a source to files that run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import burnish
from burnish.cli import main
from burnish.errors import ExportError, OutputError

pytestmark = pytest.mark.torch

MODELS = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x):
        print("in forward")
        return {"logits": self.layer(x).relu()}

def build():
    torch.manual_seed(0)
    print("in build")
    return Net(), {"x": torch.ones(1, 3)}, {"x": {0: "batch"}}

def half():
    made = torch.nn.Linear(3, 2).bfloat16()
    return made, torch.ones(2, 3, dtype=torch.bfloat16), {"input": {0: "batch"}}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "command_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "command_models", raising=False)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["export", *arguments])


def test_plain_file(here: Path) -> None:
    done = run("command_models:build", "-o", "net.onnx")
    assert done.exit_code == 0, done.output
    assert "logits: float32[batch, 2]" in done.stdout
    assert "against PyTorch" in done.stdout
    assert (here / "net.burnish.json").is_file()
    with burnish.load("net.onnx") as session:
        assert session(x=np.ones((4, 3), np.float32))["logits"].shape == (4, 2)


def test_artifact_with_its_receipt(here: Path) -> None:
    done = run("command_models:build", "-o", "net.burnish", "--dim", "batch=1:16", "--opset", "23")
    assert done.exit_code == 0, done.output
    manifest = json.loads((here / "net.burnish" / "burnish.json").read_text())
    assert manifest["dims"] == {"batch": {"max": 16}}
    assert manifest["source"] == "torch: command_models:build"
    (receipt,) = manifest["receipts"]
    assert receipt["step"] == "export"
    assert {"batch": 16} in receipt["assignments"]
    assert str(here) not in (here / "net.burnish" / "burnish.json").read_text()
    assert str(here).encode() not in (here / "net.burnish" / "model.onnx").read_bytes()


@pytest.mark.usefixtures("here")
def test_json_is_alone_on_stdout() -> None:
    done = run("command_models:build", "-o", "net.onnx", "--json")
    found = json.loads(done.stdout)
    assert found["output"] == "net.onnx"
    assert found["inputs"][0]["shape"] == ["batch", 3]
    assert "Written" in done.stderr


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["command_models:bild", "-o", "n.onnx"], 1, "Did you mean 'build'?"),
        (["command_models:build", "-o", "n.onnx", "--dim", "bach=1:4"], 1, "Did you mean 'batch'?"),
        (["model.pt", "-o", "n.onnx"], 1, "is a pickle"),
        (["command_models:build", "-o", "n.onnx", "--dim", "batch=4"], 2, "NAME=MIN:MAX"),
        (["command_models:build", "-o", "n.onnx", "--opset", "25"], 2, "18<=x<=24"),
        (["command_models:build"], 2, "--output"),
    ],
)
def test_errors_are_two_lines_and_have_a_status(arguments: list[str], status: int, says: str) -> None:
    done = run(*arguments)
    assert done.exit_code == status
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("n.onnx").exists()


@pytest.mark.usefixtures("here")
def test_error_as_json_has_its_code() -> None:
    done = run("model.pt", "-o", "n.onnx", "--json")
    assert json.loads(done.stdout)["error"]["code"] == "PICKLE_REFUSED"


def test_python_in_memory_and_written(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
    made = burnish.export(net, torch.ones(2, 3), dynamic={"input": {0: "batch"}})
    assert made.manifest.receipts[0].step == "export"
    assert made.manifest.versions["torch"] == torch.__version__
    written = made.save(tmp_path / "net.burnish")
    with burnish.load(written) as session:
        out = session(input=np.ones((5, 3), np.float32))["output"]
    expected = net(torch.ones(5, 3)).detach().numpy()
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_same_module_gives_the_same_artifact(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 4)
    for name in ("a", "b"):
        burnish.export(net, torch.ones(2, 3), dynamic={"input": {0: "batch"}}).save(tmp_path / name)
    for file in ("model.onnx", "burnish.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_module_without_inputs() -> None:
    with pytest.raises(ExportError) as caught:
        burnish.export(torch.nn.Linear(3, 4))
    assert caught.value.code == "EXPORT_INPUTS"


def test_without_torch_export_says_what_to_install(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import burnish\n"
        "from burnish.errors import MissingDependencyError\n"
        "try: burnish.export('models:build', output='m.onnx')\n"
        "except MissingDependencyError as error: print(error.code, error.hint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == 'DEPENDENCY_MISSING Install it: pip install "burnish[export]"', done.stderr


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["taken.onnx", "taken.burnish", "file"])
def test_outputs_that_cannot_be_written_are_refused_before_the_work(name: str) -> None:
    if name == "file":
        Path(name).write_text("")
    else:
        Path(name).mkdir()
        Path(name, "diary.txt").write_text("dear diary")
    with pytest.raises(OutputError) as caught:
        burnish.export("command_models:build", output=name, tell=lambda text: pytest.fail(f"already {text}"))
    assert caught.value.code == "OUTPUT_PATH"
    assert not any(path.name.startswith(".burnish") for path in Path().iterdir())


def test_bfloat16_modules_of_a_callable_get_inputs_of_their_new_type(here: Path) -> None:
    done = run("command_models:half", "-o", "half.burnish")
    assert done.exit_code == 0, done.output
    assert "input: float32[batch, 3]" in done.stdout
    assert "converted from bfloat16 to float32" in " ".join(done.stdout.split())


def test_no_temporary_file_stays(here: Path) -> None:
    folder = here / "temporary"
    folder.mkdir()
    known = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", "from burnish.cli import main; main()", "export", "command_models:build",
         "-o", "net.onnx", "--json"],
        env=known | {"TMPDIR": str(folder)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["output"] == "net.onnx", "what the module prints is not on stdout"
    assert list(folder.iterdir()) == []
