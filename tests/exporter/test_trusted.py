"""Sources that run code when they are loaded: refused, or loaded where they are trusted, and it is said."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner, Result

import burnish
from burnish.artifact import Artifact
from burnish.cli import main
from burnish.errors import ExportError

pytestmark = pytest.mark.torch

NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x).relu()
"""

OWN = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

class OwnConfig(PretrainedConfig):
    model_type = "quite-my-own"
    vocab_size = 50

class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.table = torch.nn.Embedding(50, 4)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, return_dict=True):
        return SequenceClassifierOutput(logits=self.table(input_ids).mean(1))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a module that can be unpickled."""
    (tmp_path / "trusted_net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    np.savez("inputs.npz", x=np.ones((2, 3), np.float32))
    yield tmp_path
    sys.modules.pop("trusted_net", None)


def net() -> torch.nn.Module:
    import trusted_net  # type: ignore[import-not-found]

    return trusted_net.Net()  # type: ignore[no-any-return]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["export", *arguments, "-o", "out.burnish"])


def receipt_notes(folder: Path) -> list[str]:
    found = json.loads((folder / "out.burnish" / "burnish.json").read_text())
    return [note for receipt in found["receipts"] for note in receipt.get("notes", [])]


def test_module_in_a_pickle(here: Path) -> None:
    torch.save(net(), "net.pt")
    assert run("net.pt").exit_code == 1
    done = run("net.pt", "--trust-code", "--inputs", "inputs.npz", "--dynamic", "x.0=batch")
    assert done.exit_code == 0, done.output
    assert "runs the code inside" in done.stderr
    assert any("--trust-code" in note for note in receipt_notes(here))
    assert Artifact.open(here / "out.burnish").manifest.inputs[0].shape == ("batch", 3)


def test_exported_program(here: Path) -> None:
    batch = torch.export.Dim("batch", max=32)
    program = torch.export.export(net(), (torch.ones(3, 3),), dynamic_shapes={"x": {0: batch}})
    torch.export.save(program, "net.pt2")
    assert run("net.pt2").exit_code == 1
    done = run("net.pt2", "--trust-code")
    assert done.exit_code == 0, done.output
    assert any("--trust-code" in note for note in receipt_notes(here))
    assert "batch: 1 to 32" in done.stdout


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("inputs", [None, "inputs.npz"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pickles_that_hold_no_module(inputs: str | None) -> None:
    torch.save(net().state_dict(), "state.pth")
    torch.save([1, 2], "list.pt")
    torch.jit.script(net()).save("script.pt")
    Path("broken.pt").write_bytes(b"nothing")
    expected = {
        "state.pth": ("holds weights only", "load_state_dict"),
        "list.pt": ("holds a list", "torch.save(module, path)"),
        "script.pt": ("is a TorchScript archive", "package.module:callable"),
        "broken.pt": ("torch cannot load 'broken.pt'", "by hand"),
        "absent.pt": ("There is no file 'absent.pt'", "path"),
    }
    for name, (what, hint) in expected.items():
        with pytest.raises(ExportError) as caught:
            burnish.export(name, inputs, trust_code=True)
        assert caught.value.code == "EXPORT_SOURCE"
        assert what in caught.value.what
        assert hint in caught.value.hint


@pytest.mark.usefixtures("here")
def test_inputs_are_needed_and_must_be_arrays() -> None:
    torch.save(net(), "net.pt")
    Path("text.npz").write_text("no arrays")
    for inputs, says in (
        (None, "--inputs FILE.npz"),
        ("text.npz", "numpy.savez"),
        ("none.npz", "numpy.savez"),
    ):
        with pytest.raises(ExportError) as caught:
            burnish.export("net.pt", inputs, trust_code=True)
        assert caught.value.code == "EXPORT_INPUTS"
        assert says in caught.value.hint


def test_dynamic_must_name_an_axis(here: Path) -> None:
    done = run("net.pt", "--trust-code", "--dynamic", "x=batch")
    assert done.exit_code == 2
    assert "INPUT.AXIS=NAME" in done.stderr


def bert(folder: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16,
    )  # fmt: skip
    model = transformers.BertModel(config).eval()
    config.architectures = ["BertModel"]
    config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def test_folder_with_pickled_weights_only(here: Path) -> None:
    bert(here / "bert")
    with pytest.raises(ExportError) as caught:
        burnish.export(here / "bert")
    assert caught.value.code == "PICKLE_REFUSED"
    assert "--trust-code" in caught.value.hint
    made = burnish.export(here / "bert", trust_code=True)
    assert any("--trust-code" in note for note in made.manifest.receipts[0].notes)


def own(folder: Path) -> None:
    folder.mkdir()
    (folder / "modeling_own.py").write_text(OWN)
    settings = {
        "model_type": "quite-my-own", "architectures": ["OwnModel"],
        "auto_map": {
            "AutoConfig": "modeling_own.OwnConfig",
            "AutoModelForSequenceClassification": "modeling_own.OwnModel",
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings))
    from safetensors.torch import save_file

    save_file({"table.weight": torch.randn(50, 4)}, folder / "model.safetensors", {"format": "pt"})


def test_folder_with_code_of_its_own(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(here / "cache"))
    own(here / "own")
    with pytest.raises(ExportError) as caught:
        burnish.export(here / "own")
    assert caught.value.code == "CODE_REFUSED"
    made = burnish.export(here / "own", trust_code=True)
    assert [spec.name for spec in made.manifest.outputs] == ["logits"]
    assert any("--trust-code" in note for note in made.manifest.receipts[0].notes)


def test_unknown_model_type_names_the_nearest(here: Path) -> None:
    bert(here / "bert")
    text = (here / "bert" / "config.json").read_text()
    (here / "bert" / "config.json").write_text(text.replace('"model_type": "bert"', '"model_type": "brt"'))
    with pytest.raises(ExportError) as caught:
        burnish.export(here / "bert", trust_code=True)
    assert caught.value.code == "EXPORT_SOURCE"
    assert "no model type 'brt'" in caught.value.what
    assert "'bert'" in caught.value.hint or "'bart'" in caught.value.hint
