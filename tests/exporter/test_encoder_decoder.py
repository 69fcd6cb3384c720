from collections.abc import Callable
from pathlib import Path

import pytest

import burnish
from burnish.artifact import Artifact
from burnish.bundle import Bundle
from burnish.errors import ArtifactError, OutputError

pytestmark = pytest.mark.torch

Tiny = Callable[[str], Path]


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_text_to_text(tiny: Tiny, name: str) -> None:
    bundle = burnish.export(tiny(name))
    assert isinstance(bundle, Bundle)
    assert list(bundle.parts) == ["encoder", "decoder"]
    encoder, decoder = (part.manifest for part in bundle.parts.values())
    assert [spec.name for spec in encoder.inputs] == ["input_ids", "attention_mask"]
    assert {spec.name for spec in encoder.outputs} == {
        f"present.{layer}.encoder.{kind}" for layer in range(2) for kind in ("key", "value")
    }
    assert [spec.name for spec in decoder.inputs[:2]] == ["decoder_input_ids", "encoder_attention_mask"]
    assert {spec.name for spec in decoder.outputs} == {"logits"} | {
        f"present.{layer}.decoder.{kind}" for layer in range(2) for kind in ("key", "value")
    }
    assert decoder.outputs[0].shape == ("batch", 1, 64)
    assert decoder.dims.keys() == {"batch", "sequence", "past_sequence", "encoder_sequence"}
    (receipt,) = bundle.manifest.receipts
    assert receipt.step == "decode"


def test_speech_to_text_on_disk(tiny: Tiny, tmp_path: Path) -> None:
    bundle = burnish.export(tiny("whisper"), output=tmp_path / "out")
    assert isinstance(bundle, Bundle)
    again = Bundle.open(tmp_path / "out")
    assert again.manifest.parts == ("encoder", "decoder")
    assert "config.json" in again.attachments
    decoder = Artifact.open(tmp_path / "out" / "decoder")
    keys = {spec.name: spec.shape for spec in decoder.manifest.inputs}
    assert keys["past_key_values.1.encoder.key"] == ("batch", 4, 20, 8), "the encoder's length is fixed"
    assert "encoder_attention_mask" not in keys
    burnish.optimize(tmp_path / "out" / "decoder", output=tmp_path / "fast", measured=False)
    assert (tmp_path / "fast" / "model.onnx").is_file()


@pytest.fixture(scope="module")
def saved(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "out"
    burnish.export(tiny("whisper"), output=folder, decode_tokens=2)
    return folder


def test_a_bundle_is_no_single_model(saved: Path) -> None:
    with pytest.raises(ArtifactError, match="holds 2 models: encoder, decoder"):
        Artifact.open(saved)
    with pytest.raises(ArtifactError, match="holds one model"):
        Bundle.open(saved / "encoder")


def test_a_bundle_does_not_fit_into_one_file(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="the model has parts: encoder, decoder"):
        Bundle.open(saved).save(tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_part_is_seen(saved: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    model = folder / "decoder" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError) as caught:
        Bundle.open(folder)
    assert caught.value.code == "ARTIFACT_HASH"


def test_a_bundle_replaces_itself_but_no_others_files(saved: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(saved)
    bundle.save(tmp_path / "out")
    bundle.save(tmp_path / "out")
    (tmp_path / "out" / "encoder" / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match=r"mine\.txt"):
        bundle.save(tmp_path / "out")
    assert (tmp_path / "out" / "encoder" / "mine.txt").read_text() == "keep"


def test_a_plain_file_cannot_hold_the_parts_and_that_is_said_early(tiny: Tiny, tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(OutputError, match="is one file, but the model has parts: encoder, decoder"):
        burnish.export(tiny("bart"), output=tmp_path / "bart.onnx", tell=told.append)
    assert told == ["loading"]
    assert list(tmp_path.iterdir()) == []
