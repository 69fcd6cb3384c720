"""Artifact: what is written is what is opened, in one process or another."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from burnish import model as model_module
from burnish.artifact import Artifact
from burnish.errors import ArtifactError, BurnishError, OutputError
from burnish.manifest import Manifest, Receipt
from burnish.model import save_model, signature, to_bytes
from burnish.runtime.reference import Reference
from burnish.testing import parse

RECEIPTS = (Receipt("fuse-gelu", 1, max_abs_error=1e-7, seconds=1.5), Receipt("remove-unused", seconds=0.25))
ATTACHMENTS: dict[str, Path | bytes] = {"tokenizer.json": b'{"a": 1}', "extra/vocab.txt": b"a\nb\n"}


def make(seed: int = 0) -> ir.Model:
    rng = np.random.default_rng(seed)
    weights = {"w": rng.standard_normal((64, 32)).astype(np.float32)}
    return parse("g (float[batch, 64] x) => (float[batch, 32] y) { y = MatMul (x, w) }", weights=weights)


def created(seed: int = 0) -> Artifact:
    model = make(seed)
    manifest = msgspec.structs.replace(signature(model), recipe="fuse-gelu", receipts=RECEIPTS)
    return Artifact.create(model, manifest, ATTACHMENTS)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    created().save(tmp_path / "art")
    return tmp_path / "art"


@pytest.fixture
def with_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every model were large."""
    monkeypatch.setattr(model_module, "EXTERNAL_THRESHOLD", 0)


def state(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def run(source: bytes | Path) -> np.ndarray:
    return Reference(source)({"x": np.ones((2, 64), np.float32)})["y"]


def test_in_memory() -> None:
    artifact = created()
    assert artifact.path is artifact.model_path is None
    assert artifact.model_bytes() == to_bytes(make())
    assert artifact.attachments == ATTACHMENTS
    assert artifact.manifest.recipe == "fuse-gelu"


def test_saved_and_opened(saved: Path) -> None:
    assert set(state(saved)) == {"model.onnx", "burnish.json", "timings.json", *ATTACHMENTS}
    artifact = Artifact.open(saved)
    assert artifact.path == saved
    assert artifact.model_path == saved / "model.onnx"
    assert to_bytes(artifact.model) == artifact.model_bytes() == to_bytes(make())
    assert {name: Path(str(path)).read_bytes() for name, path in artifact.attachments.items()} == ATTACHMENTS
    assert set(artifact.manifest.files) == {"model.onnx", *ATTACHMENTS}
    onnx.checker.check_model(onnx.load(saved / "model.onnx"))


def test_save_returns_what_open_finds(tmp_path: Path) -> None:
    returned = created().save(tmp_path / "art")
    opened = Artifact.open(tmp_path / "art")
    for field in ("manifest", "path", "model_path", "attachments"):
        assert getattr(returned, field) == getattr(opened, field)


def test_the_manifest_is_kept(saved: Path) -> None:
    manifest = Artifact.open(saved).manifest
    assert [spec.shape for spec in manifest.inputs] == [("batch", 64)]
    assert manifest.receipts == tuple(receipt.timeless() for receipt in RECEIPTS)


@pytest.mark.usefixtures("with_data")
def test_large_weights_are_in_a_data_file(tmp_path: Path) -> None:
    artifact = created().save(tmp_path / "art")
    assert (tmp_path / "art" / "model.onnx.data").stat().st_size == 64 * 32 * 4
    assert set(artifact.manifest.files) == {"model.onnx", "model.onnx.data", *ATTACHMENTS}
    opened = Artifact.open(tmp_path / "art")
    assert set(opened.attachments) == set(ATTACHMENTS)
    assert opened.model_bytes() == to_bytes(make()), "weights inside"
    np.testing.assert_array_equal(run(tmp_path / "art" / "model.onnx"), run(opened.model_bytes()))


@pytest.mark.usefixtures("with_data")
def test_saving_over_itself(tmp_path: Path) -> None:
    created().save(tmp_path / "art")
    before = state(tmp_path)
    again = Artifact.open(tmp_path / "art")
    again.save(tmp_path / "art", timings={})
    after = state(tmp_path)
    assert after == {name: data for name, data in before.items() if name != "art/timings.json"}


def test_the_same_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        created().save(tmp_path / name)
    assert state(tmp_path / "a") == state(tmp_path / "b")


def test_only_timings_differ(tmp_path: Path) -> None:
    created().save(tmp_path / "a", timings={"optimize": 1.0})
    created().save(tmp_path / "b", timings={"optimize": 2.0})
    a, b = state(tmp_path / "a"), state(tmp_path / "b")
    assert {name for name in a if a[name] != b[name]} == {"timings.json"}
    assert json.loads(a["timings.json"]) == {"seconds": {"optimize": 1.0}}
    assert "timings.json" not in Artifact.open(tmp_path / "a").manifest.files


def test_seconds_of_receipts_are_the_default_timings(saved: Path) -> None:
    seconds = json.loads((saved / "timings.json").read_bytes())["seconds"]
    assert seconds == {"01 fuse-gelu": 1.5, "02 remove-unused": 0.25}


def in_a_new_process(code: str, *arguments: object, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def test_the_same_in_two_processes_with_other_hash_seeds(tmp_path: Path) -> None:
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("t", {str(Path(__file__))!r})
t = importlib.util.module_from_spec(spec); spec.loader.exec_module(t)
t.created().save(sys.argv[1])
"""
    for seed in ("0", "12345"):
        in_a_new_process(code, tmp_path / seed, PYTHONHASHSEED=seed)
    assert state(tmp_path / "0") == state(tmp_path / "12345")


def test_opening_needs_no_onnx(saved: Path) -> None:
    code = """
import sys
from burnish.artifact import Artifact
artifact = Artifact.open(sys.argv[1])
artifact.model_bytes()
print(sorted({"onnx", "onnx_ir", "onnxruntime", "torch", "google"} & set(sys.modules)))
assert artifact.model.graph.name == "g" and "onnx_ir" in sys.modules
"""
    assert in_a_new_process(code, saved) == "[]\n"


def test_the_model_is_a_copy() -> None:
    model = make()
    artifact = Artifact.create(model, signature(model))
    model.graph.node(0).op_type = "Gone"
    assert [node.op_type for node in artifact.model.graph] == ["MatMul"]
    assert artifact.model is artifact.model


def test_fields_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        created().manifest = Manifest((), ())  # type: ignore[misc]


def test_other_files_are_tolerated_and_not_read(saved: Path) -> None:
    (saved / "notes.txt").write_text("mine")
    os.mkfifo(saved / "pipe")
    assert set(Artifact.open(saved).attachments) == set(ATTACHMENTS)


def test_a_folder_with_other_files_is_not_overwritten(saved: Path) -> None:
    (saved / "notes.txt").write_text("mine")
    before = state(saved)
    with pytest.raises(OutputError, match=r"notes\.txt") as caught:
        created(1).save(saved)
    assert caught.value.code == "OUTPUT_PATH"
    assert state(saved) == before


def test_a_folder_that_is_no_artifact_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "model.onnx").write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"model\.onnx"):
        created().save(tmp_path / "home")
    assert state(tmp_path) == {"home/model.onnx": b"precious"}


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "art").mkdir()
    created().save(tmp_path / "art")
    Artifact.open(tmp_path / "art")


def test_attachments_of_the_old_one_go(tmp_path: Path) -> None:
    created().save(tmp_path / "art")
    Artifact.create(make(), signature(make())).save(tmp_path / "art")
    assert set(state(tmp_path / "art")) == {"model.onnx", "burnish.json"}


def test_attachments_from_paths_also_symlinked(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"tokens")
    (tmp_path / "tokenizer.json").symlink_to(tmp_path / "blob")  # as in the Hugging Face cache
    artifact = Artifact.create(make(), signature(make()), {"tokenizer.json": tmp_path / "tokenizer.json"})
    artifact.save(tmp_path / "art")
    assert (tmp_path / "art" / "tokenizer.json").read_bytes() == b"tokens"
    assert not (tmp_path / "art" / "tokenizer.json").is_symlink()


def test_an_attachment_that_is_gone(tmp_path: Path) -> None:
    artifact = Artifact.create(make(), signature(make()), {"t.json": tmp_path / "gone.json"})
    with pytest.raises(ArtifactError, match=r"'t\.json'.*gone\.json") as caught:
        artifact.save(tmp_path / "art")
    assert caught.value.code == "ARTIFACT_MISSING"
    assert state(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../x", "/x", "model.onnx", "burnish.json", "timings.json", "", "a/./b", "a\0", "c:\\x"]
)
def test_names_that_attachments_cannot_have(name: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        Artifact.create(make(), signature(make()), {name: b""})
    assert caught.value.code == "ARTIFACT_INVALID"


# Plain .onnx files.
def test_onnx_out_and_in(tmp_path: Path) -> None:
    artifact = created().save(tmp_path / "m.onnx")
    assert set(state(tmp_path)) == {"m.onnx", "m.burnish.json"}
    assert artifact.manifest.recipe == "fuse-gelu"
    again = Artifact.from_onnx(tmp_path / "m.onnx")
    assert again.manifest == artifact.manifest
    assert again.path == again.model_path == tmp_path / "m.onnx"
    assert Artifact.open(tmp_path / "m.onnx").manifest == again.manifest


@pytest.mark.usefixtures("with_data")
def test_onnx_with_data(tmp_path: Path) -> None:
    save_model(make(), tmp_path / "m.onnx", created().manifest, external_threshold=0)
    artifact = Artifact.from_onnx(tmp_path / "m.onnx")
    assert artifact.manifest.recipe == "fuse-gelu"
    assert artifact.model_bytes() == to_bytes(make())


def test_onnx_without_a_sidecar_is_read_from_the_graph(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(to_bytes(make()))
    manifest = Artifact.from_onnx(tmp_path / "m.onnx").manifest
    assert manifest == signature(make())


def test_a_sidecar_of_another_model_is_not_believed(tmp_path: Path) -> None:
    created().save(tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_bytes(to_bytes(make(1)))
    assert Artifact.from_onnx(tmp_path / "m.onnx").manifest.recipe == ""


def test_a_renamed_pair_still_belongs_together(tmp_path: Path) -> None:
    created().save(tmp_path / "m.onnx")
    (tmp_path / "m.onnx").rename(tmp_path / "n.onnx")
    (tmp_path / "m.burnish.json").rename(tmp_path / "n.burnish.json")
    assert Artifact.from_onnx(tmp_path / "n.onnx").manifest.recipe == "fuse-gelu"


def test_a_sidecar_that_is_no_manifest_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(to_bytes(make()))
    (tmp_path / "m.burnish.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"m\.burnish\.json") as caught:
        Artifact.from_onnx(tmp_path / "m.onnx")
    assert caught.value.code == "ARTIFACT_MANIFEST"


def test_a_sidecar_spares_onnx_ir(tmp_path: Path) -> None:
    created().save(tmp_path / "m.onnx")
    code = "import sys; from burnish.artifact import Artifact; Artifact.from_onnx(sys.argv[1]);"
    assert in_a_new_process(code + "print('onnx_ir' in sys.modules)", tmp_path / "m.onnx") == "False\n"


@pytest.mark.parametrize("open_", [Artifact.open, Artifact.from_onnx])
def test_a_missing_path(tmp_path: Path, open_: Callable[[Path], Artifact]) -> None:
    with pytest.raises(BurnishError, match=r"gone\.onnx"):
        open_(tmp_path / "gone.onnx")
