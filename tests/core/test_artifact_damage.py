"""Artifacts that are damaged, forged, killed while written, or replaced while opened."""

import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import pytest

from burnish import model as model_module
from burnish.artifact import Artifact
from burnish.errors import ArtifactError, BurnishError, ExternalDataError, ModelError
from burnish.manifest import Receipt
from burnish.model import save_model, signature
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


# What is wrong with a folder: a change, the code, and the file that the message names.
def flip(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return change


def edited(**fields: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        manifest = json.loads((folder / "burnish.json").read_bytes())
        (folder / "burnish.json").write_text(json.dumps(manifest | fields))

    return change


def replaced(old: str, new: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        text = (folder / "burnish.json").read_text()
        assert old in text
        (folder / "burnish.json").write_text(text.replace(old, new))

    return change


def latin(folder: Path) -> None:
    data = (folder / "burnish.json").read_bytes()
    (folder / "burnish.json").write_bytes(data.replace(b"fuse-gelu", b"\xe9"))


def linked(name: str, how: Callable[[Path, Path], object]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        outside = folder.parent / "outside"
        (folder / name).rename(outside)
        how(folder / name, outside)

    return change


WRONG: list[tuple[str, Callable[[Path], object], str, str]] = [
    ("flipped bit in the model", flip("model.onnx"), "ARTIFACT_HASH", "model.onnx"),
    ("flipped bit elsewhere", flip("extra/vocab.txt"), "ARTIFACT_HASH", "extra/vocab.txt"),
    ("shorter", lambda d: (d / "model.onnx").write_bytes(b"x"), "ARTIFACT_HASH", "has 1 bytes instead of"),
    ("model missing", lambda d: (d / "model.onnx").unlink(), "ARTIFACT_MISSING", "model.onnx"),
    ("attachment missing", lambda d: (d / "tokenizer.json").unlink(), "ARTIFACT_MISSING", "tokenizer.json"),
    ("folder of it missing", lambda d: shutil.rmtree(d / "extra"), "ARTIFACT_MISSING", "extra/vocab.txt"),
    ("manifest missing", lambda d: (d / "burnish.json").unlink(), "ARTIFACT_MISSING", "burnish.json"),
    ("folder missing", shutil.rmtree, "ARTIFACT_MISSING", "art"),
    ("manifest empty", lambda d: (d / "burnish.json").write_bytes(b""), "ARTIFACT_MANIFEST", "burnish.json"),
    ("not JSON", lambda d: (d / "burnish.json").write_bytes(b"{"), "ARTIFACT_MANIFEST", "burnish.json"),
    ("not UTF-8", latin, "ARTIFACT_MANIFEST", "burnish.json"),
    ("a list", lambda d: (d / "burnish.json").write_bytes(b"[]"), "ARTIFACT_MANIFEST", "burnish.json"),
    (
        "100,000 brackets",
        lambda d: (d / "burnish.json").write_bytes(b"[" * 100_000),
        "ARTIFACT_MANIFEST",
        "json",
    ),
    ("a field of another type", edited(recipe=3), "ARTIFACT_MANIFEST", "recipe"),
    ("inputs missing", replaced('"inputs"', '"imputs"'), "ARTIFACT_MANIFEST", "inputs"),
    ("a newer format", edited(format=2), "ARTIFACT_MANIFEST", "format is 2"),
    ("a path outside", replaced("extra/vocab.txt", "../vocab.txt"), "ARTIFACT_MANIFEST", "../vocab.txt"),
    ("an absolute path", replaced("extra/vocab.txt", "/etc/passwd"), "ARTIFACT_MANIFEST", "/etc/passwd"),
    ("no model listed", replaced('"model.onnx"', '"other.onnx"'), "ARTIFACT_MISSING", "model.onnx"),
    (
        "symlinked model",
        linked("model.onnx", lambda a, b: a.symlink_to(b)),
        "ARTIFACT_MISSING",
        "symbolic link",
    ),
    ("symlinked folder", linked("extra", lambda a, b: a.symlink_to(b)), "ARTIFACT_MISSING", "symbolic link"),
    ("hard link", linked("model.onnx", lambda a, b: a.hardlink_to(b)), "ARTIFACT_MISSING", "hard link"),
    ("pipe", linked("tokenizer.json", lambda a, b: os.mkfifo(a)), "ARTIFACT_MISSING", "not a regular file"),
]


@pytest.mark.parametrize(
    ("change", "code", "culprit"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG]
)
@pytest.mark.timeout(20)
def test_what_is_wrong_is_named(
    saved: Path, change: Callable[[Path], object], code: str, culprit: str
) -> None:
    change(saved)
    with pytest.raises(ArtifactError) as caught:
        Artifact.open(saved)
    assert caught.value.code == code
    assert culprit in caught.value.what
    assert str(caught.value).count("\n") == 1


def test_every_flipped_byte_is_noticed(saved: Path) -> None:
    """Whatever byte of a listed file changes; in the manifest itself, what is read stays well formed."""
    good = state(saved)
    for name in ("model.onnx", "tokenizer.json", "extra/vocab.txt"):
        for at in range(0, len(good[name]), max(1, len(good[name]) // 50)):
            data = bytearray(good[name])
            data[at] ^= 0x10
            (saved / name).write_bytes(data)
            with pytest.raises(ArtifactError, match=name) as caught:
                Artifact.open(saved)
            assert caught.value.code == "ARTIFACT_HASH"
        (saved / name).write_bytes(good[name])
    codes = set()
    for at in range(0, len(good["burnish.json"]), 7):
        data = bytearray(good["burnish.json"])
        data[at] ^= 0x10
        (saved / "burnish.json").write_bytes(data)
        try:
            Artifact.open(saved)
        except BurnishError as error:
            codes.add(error.code)
    assert codes == {"ARTIFACT_MANIFEST", "ARTIFACT_MISSING", "ARTIFACT_HASH"}


@pytest.mark.usefixtures("with_data")
def test_weights_that_the_manifest_does_not_list(tmp_path: Path) -> None:
    created().save(tmp_path / "art")
    manifest = json.loads((tmp_path / "art" / "burnish.json").read_bytes())
    del manifest["files"]["model.onnx.data"]
    (tmp_path / "art" / "burnish.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data") as caught:
        Artifact.open(tmp_path / "art")
    assert caught.value.code == "ARTIFACT_HASH"


def test_a_bad_model_with_a_right_hash(saved: Path) -> None:
    artifact = Artifact.open(saved)
    (saved / "model.onnx").write_bytes(b"GGUF")
    manifest = json.loads((saved / "burnish.json").read_bytes())
    digest = hashlib.sha256(b"GGUF").hexdigest()
    manifest["files"]["model.onnx"] = {"size": 4, "sha256": digest}
    (saved / "burnish.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match="GGUF"):
        Artifact.open(artifact.path or "")


def test_external_data_is_checked_on_opening(tmp_path: Path) -> None:
    save_model(make(), tmp_path / "m.onnx", created().manifest, external_threshold=0)
    (data,) = tmp_path.glob("*.data")
    data.rename(tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ExternalDataError) as caught:
        Artifact.from_onnx(tmp_path / "m.onnx")
    assert caught.value.code == "EXT_PATH"


def save_in_turn(folder: Path, *artifacts: Artifact) -> int:
    """A child process that saves them over each other until it is killed; its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            while True:
                for artifact in artifacts:
                    artifact.save(folder)
        finally:
            os._exit(1)
    return pid


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL, "it had failed before"


@pytest.mark.usefixtures("with_data")
def test_kill_9_while_saving(tmp_path: Path) -> None:
    first, second = created(0), created(1)
    first.save(tmp_path / "art")
    expected = {artifact.model_bytes() for artifact in (first, second)}
    rng = np.random.default_rng(0)
    for _ in range(20):
        pid = save_in_turn(tmp_path / "art", second, first)
        time.sleep(0.02 + rng.random() * 0.1)
        kill(pid)
        assert Artifact.open(tmp_path / "art").model_bytes() in expected
    first.save(tmp_path / "art")
    assert [path.name for path in tmp_path.iterdir()] == ["art"]


def test_opening_while_it_is_replaced(tmp_path: Path) -> None:
    """Each open sees one version as a whole, though files vanish under it."""
    first, second = created(0), created(1)
    hashes = {hashlib.sha256(artifact.model_bytes()).hexdigest() for artifact in (first, second)}
    first.save(tmp_path / "art")
    pid = save_in_turn(tmp_path / "art", second, first)
    opened = {Artifact.open(tmp_path / "art").manifest.files["model.onnx"].sha256 for _ in range(200)}
    kill(pid)
    assert opened <= hashes
