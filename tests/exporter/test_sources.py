import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from burnish.errors import ExportError, MissingDependencyError
from burnish.exporter.sources import resolve

pytestmark = pytest.mark.torch

MODELS = """
import torch

def build():
    return torch.nn.Linear(3, 2), {"input": torch.ones(2, 3)}

def build_dynamic():
    return torch.nn.Linear(3, 2), (torch.ones(2, 3),), {"input": {0: "batch"}}

def breaks():
    raise RuntimeError("no weights here")

def exits():
    print("on my way out")
    raise SystemExit(3)

def returns_module_only():
    return torch.nn.Linear(3, 2)

class Zoo:
    @staticmethod
    def build():
        return build()

NUMBER = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a module and a package in it."""
    (tmp_path / "my_models.py").write_text(MODELS)
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "__init__.py").write_text("")
    (tmp_path / "zoo" / "small.py").write_text(MODELS)
    (tmp_path / "needy.py").write_text("import surely_not_installed\n")
    (tmp_path / "torchless.py").write_text("raise ModuleNotFoundError('x', name='torch')\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("my_models", "zoo", "zoo.small", "needy", "torchless", "broken", "leaves"):
        sys.modules.pop(name, None)


def code_of(source: Any, **options: Any) -> tuple[str, str]:
    with pytest.raises(ExportError) as caught:
        resolve(source, **options)
    return caught.value.code, str(caught.value)


def test_callable_with_module_and_inputs() -> None:
    found = resolve("my_models:build")
    assert isinstance(found.module, torch.nn.Linear)
    assert list(found.inputs) == ["input"]
    assert found.dynamic is None
    assert found.description == "torch: my_models:build"


def test_callable_in_a_package_with_dynamic_dims() -> None:
    assert resolve("zoo.small:build_dynamic").dynamic == {"input": {0: "batch"}}


def test_attribute_of_a_class() -> None:
    assert isinstance(resolve("my_models:Zoo.build").module, torch.nn.Linear)


def test_the_path_is_as_before(folder: Path) -> None:
    before = list(sys.path)
    resolve("my_models:build")
    assert sys.path == before
    assert str(folder) not in sys.path


def test_module_object() -> None:
    found = resolve(torch.nn.Linear(3, 2), torch.ones(2, 3))
    assert found.description == "torch: torch.nn.modules.linear.Linear"
    assert code_of(torch.nn.Linear(3, 2))[0] == "EXPORT_INPUTS"
    assert code_of(42) == (
        "EXPORT_SOURCE",
        (
            "Cannot export a int.\n"
            "Give a torch.nn.Module, package.module:callable, a Hugging Face folder or a GGUF file."
        ),
    )


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("my_model:build", "Did you mean 'my_models'?"),
        ("zoo.smal:build", "Did you mean 'zoo.small'?"),
        ("my_models:bild", "Did you mean 'build'?"),
        ("my_models:NUMBER", "is not callable"),
        ("my_models:breaks", "raised RuntimeError: no weights here"),
        ("my_models:exits", "raised SystemExit: 3"),
        ("leaves:build", "raised SystemExit: 0"),
        ("my_models:returns_module_only", "Return (module, inputs)"),
        ("needy:build", "needs the module 'surely_not_installed'"),
        ("broken:build", "raised ZeroDivisionError"),
        ("zo", "Did you mean 'zoo'?"),
        ("my_models.py", "is a file"),
        ("model.onnx", "burnish optimize model.onnx"),
        ("model.safetensors", "holds weights only"),
        ("zoo", "has no config.json"),
    ],
)
def test_sources_that_cannot_be_used(source: str, says: str) -> None:
    code, text = code_of(source)
    assert code == "EXPORT_SOURCE"
    assert says in text


@pytest.mark.parametrize("name", ["model.pt", "model.PTH", "m.pt2", "m.pkl", "pytorch_model.bin", "m.ckpt"])
def test_pickles_are_refused_unread(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    code, text = code_of(name)
    assert code == "PICKLE_REFUSED"
    assert "runs the code inside" in text
    assert not (folder / "pwned").exists()


def test_inputs_that_a_source_would_not_use_are_refused(folder: Path) -> None:
    (folder / "zoo" / "config.json").write_text("{}")
    for source in ("my_models:build", "zoo", "model.gguf"):
        code, text = code_of(source, inputs={"input": torch.ones(2, 3)})
        assert code == "EXPORT_INPUTS"
        assert f"{source!r} brings its own example inputs" in text


def test_what_a_callable_prints_is_not_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    code_of("my_models:exits")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "on my way out\n")


def test_task_needs_a_folder() -> None:
    for source in ("my_models:build", torch.nn.Linear(3, 2)):
        assert code_of(source, task="feature-extraction")[0] == "EXPORT_SOURCE"


def test_a_module_that_needs_torch_says_how_to_get_it() -> None:
    with pytest.raises(MissingDependencyError, match=r"burnish\[export\]") as caught:
        resolve("torchless:build")
    assert caught.value.code == "DEPENDENCY_MISSING"
