"""Folders of images, recordings and texts as samples; what is refused, and how that is said."""

import importlib.util
import json
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from burnish.errors import BurnishError, CalibrationError, MissingDependencyError
from burnish.manifest import TensorSpec
from burnish.runtime.read_audio import log_mel, mel_filters
from burnish.runtime.read_images import prepared, resize
from burnish.runtime.samples import Dataset, check_sample, open_dataset, read_samples
from burnish.runtime.spool import spooled

PICTURE = (TensorSpec("pixel_values", "float32", ("batch", 3, "height", "width")),)
SOUND = (TensorSpec("input_values", "float32", ("batch", "samples")),)
TEXT = (
    TensorSpec("input_ids", "int64", ("batch", "sequence"), "token_ids", 8),
    TensorSpec("attention_mask", "int64", ("batch", "sequence"), "mask"),
    TensorSpec("token_type_ids", "int32", ("batch", "sequence"), "segments", 2),
    TensorSpec("position_ids", "int64", ("batch", "sequence"), "positions"),
)
SPECS = (TensorSpec("x", "float32", ("N", 4)),)


def read(folder: Path, specs: Sequence[TensorSpec], **attachments: object) -> list[dict[str, np.ndarray]]:
    files = {name.replace("_json", ".json"): json.dumps(v).encode() for name, v in attachments.items()}
    found = list(read_samples(folder, specs, files))
    for number, sample in enumerate(found):
        check_sample(number, sample, specs)
    return found


def refused(folder: Path, specs: Sequence[TensorSpec], **attachments: object) -> BurnishError:
    with pytest.raises(BurnishError) as caught:
        read(folder, specs, **attachments)
    return caught.value


# -- images ----------------------------------------------------------------------------------------------


def picture(path: Path, pixels: np.ndarray) -> None:
    kind = b"P6" if pixels.ndim == 3 else b"P5"
    height, width = pixels.shape[:2]
    path.write_bytes(kind + b"\n# drawn\n%d %d\n255\n" % (width, height) + pixels.tobytes())


def drawn(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_images_are_scaled_and_normalised(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / f"{number}.ppm", drawn(5 + number, 7, number))
    config = {"do_normalize": True, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
    found = read(tmp_path, PICTURE, preprocessor_config_json=config)
    assert [sample["pixel_values"].shape for sample in found] == [(1, 3, 5 + n, 7) for n in range(3)]
    for channel in range(3):
        expected = drawn(6, 7, 1)[..., channel] / 255 - config["image_mean"][channel]  # type: ignore[index]
        expected = expected / config["image_std"][channel]  # type: ignore[index]
        np.testing.assert_allclose(found[1]["pixel_values"][0, channel], expected, atol=1e-5)


def test_images_are_resized_and_cropped(tmp_path: Path) -> None:
    picture(tmp_path / "a.ppm", drawn(30, 50))
    picture(tmp_path / "b.pgm", drawn(40, 20)[..., 0])
    config = {"do_resize": True, "size": {"shortest_edge": 16}, "do_center_crop": True, "crop_size": 12}
    for sample in read(tmp_path, PICTURE, preprocessor_config_json=config):
        assert sample["pixel_values"].shape == (1, 3, 12, 12)
    exact = {"do_resize": True, "size": {"height": 9, "width": 11}, "resample": 3}
    assert read(tmp_path, PICTURE, preprocessor_config_json=exact)[0]["pixel_values"].shape == (1, 3, 9, 11)


def test_a_crop_larger_than_the_image_is_filled() -> None:
    pixels = prepared(
        np.ones((4, 5, 3), np.float32), {"do_center_crop": True, "crop_size": 8, "do_rescale": False}
    )
    assert pixels.shape == (8, 8, 3)
    assert pixels.sum() == 4 * 5 * 3


def test_gray_and_channels_last(tmp_path: Path) -> None:
    picture(tmp_path / "a.ppm", drawn(6, 7))
    gray = (TensorSpec("x", "float32", ("N", 1, 6, 7)),)
    last = (TensorSpec("x", "float32", ("N", 6, 7, 3)),)
    (one,), (three,) = (read(tmp_path, spec, preprocessor_config_json={}) for spec in (gray, last))
    np.testing.assert_allclose(one["x"][0, 0], three["x"][0].mean(axis=2), rtol=1e-5)
    np.testing.assert_allclose(three["x"][0], drawn(6, 7) / np.float32(255), rtol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize("cubic", [True, False])
@pytest.mark.parametrize("size", [(16, 16), (11, 40), (64, 50)])
def test_resizing_is_that_of_torch(size: tuple[int, int], cubic: bool) -> None:
    import torch

    pixels = drawn(32, 45).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(pixels).permute(2, 0, 1)[None], size, antialias=True,
        mode="bicubic" if cubic else "bilinear",
    )[0].permute(1, 2, 0)  # fmt: skip
    found = resize(pixels, *size, cubic=cubic)
    assert np.abs(found - np.clip(expected.numpy(), 0, 255)).max() <= 0.51


def test_images_that_cannot_be_used(tmp_path: Path) -> None:
    picture(tmp_path / "a.ppm", drawn(6, 7))
    assert refused(tmp_path, PICTURE).code == "CALIB_PROCESSOR"
    assert "preprocessor_config.json" in refused(tmp_path, PICTURE).hint
    assert "not take images alone" in refused(tmp_path, TEXT).what
    wrong = refused(tmp_path, PICTURE, preprocessor_config_json={"do_resize": True, "size": {"height": -1}})
    assert "no size" in wrong.what
    (tmp_path / "a.ppm").write_bytes(b"P6\n7 6\n255\nshort")
    broken = refused(tmp_path, PICTURE, preprocessor_config_json={})
    assert broken.code == "CALIB_FORMAT"
    assert "a.ppm" in broken.what


@pytest.mark.skipif(importlib.util.find_spec("PIL") is not None, reason="Pillow is installed")
def test_what_needs_pillow_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(MissingDependencyError, match=r"a\.jpg needs Pillow"):
        read(tmp_path, PICTURE, preprocessor_config_json={})


def test_the_settings_may_lie_beside_the_samples(tmp_path: Path) -> None:
    picture(tmp_path / "a.ppm", drawn(6, 7))
    (tmp_path / "preprocessor_config.json").write_text('{"do_rescale": false}')
    assert read(tmp_path, PICTURE)[0]["pixel_values"].max() > 200
    (tmp_path / "preprocessor_config.json").write_text("[1]")
    assert "holds no settings" in refused(tmp_path, PICTURE).what
    (tmp_path / "preprocessor_config.json").write_text("{")
    assert "is not JSON" in refused(tmp_path, PICTURE).what


# -- recordings --------------------------------------------------------------------------------------------


def record(path: Path, sound: np.ndarray, rate: int = 16_000, width: int = 2, channels: int = 1) -> None:
    """Full scale is -1 to 1; the samples of channels alternate."""
    scaled = np.clip(sound * 2.0 ** (8 * width - 1), -(2.0 ** (8 * width - 1)), 2.0 ** (8 * width - 1) - 1)
    whole = np.rint(scaled).astype(np.int64) + (128 if width == 1 else 0)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(whole.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width].tobytes())


def tone(count: int = 1600) -> np.ndarray:
    return (0.5 * np.sin(np.arange(count) * 0.1)).astype(np.float32)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_recordings_of_every_width(width: int, tmp_path: Path) -> None:
    record(tmp_path / "a.wav", tone(), width=width)
    (sample,) = read(tmp_path, SOUND, preprocessor_config_json={})
    np.testing.assert_allclose(sample["input_values"][0], tone(), atol=1.1 * 2.0 ** (1 - 8 * width))


def test_channels_are_averaged_and_loudness_normalised(tmp_path: Path) -> None:
    record(tmp_path / "a.wav", np.stack([tone(), tone() * 0], axis=1).ravel(), channels=2)
    masked = (*SOUND, TensorSpec("attention_mask", "int64", ("batch", "samples"), "mask"))
    (sample,) = read(tmp_path, masked, preprocessor_config_json={"do_normalize": True})
    values = sample["input_values"][0]
    assert abs(values.mean()) < 1e-5
    assert values.std() == pytest.approx(1.0, abs=1e-3)
    np.testing.assert_array_equal(sample["attention_mask"], np.ones((1, 1600)))


WHISPER = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 80}


def test_whisper_takes_30_seconds_of_log_mel(tmp_path: Path) -> None:
    record(tmp_path / "a.wav", tone(20_000))
    spec = (TensorSpec("input_features", "float32", ("batch", 80, 3000)),)
    (sample,) = read(tmp_path, spec, preprocessor_config_json=WHISPER)
    assert sample["input_features"].shape == (1, 80, 3000)
    band = int(sample["input_features"][0, :, :100].mean(axis=1).argmax())
    peak = np.linspace(0, 8000, 201)[mel_filters(80, 400, 16_000)[:, band].argmax()]
    assert abs(peak - 0.1 * 16_000 / (2 * np.pi)) < 60


@pytest.mark.torch
def test_log_mel_is_that_of_transformers() -> None:
    from transformers import WhisperFeatureExtractor

    sound = np.random.default_rng(0).standard_normal(30_000).astype(np.float32) * np.linspace(0, 1, 30_000)
    expected = WhisperFeatureExtractor()(sound, sampling_rate=16_000, return_tensors="np")["input_features"][
        0
    ]
    np.testing.assert_allclose(log_mel(sound.astype(np.float32), WHISPER), expected, atol=2e-3)


def test_recordings_that_cannot_be_used(tmp_path: Path) -> None:
    record(tmp_path / "a.wav", tone(), rate=8000)
    assert "has 8000 samples a second" in refused(tmp_path, SOUND, preprocessor_config_json={}).what
    other = refused(
        tmp_path, SOUND, preprocessor_config_json={"feature_extractor_type": "ASTFeatureExtractor"}
    )
    assert "'ASTFeatureExtractor'" in other.what
    assert "not take recordings alone" in refused(tmp_path, TEXT).what
    (tmp_path / "a.wav").write_bytes(b"RIFF nothing")
    assert refused(tmp_path, SOUND, preprocessor_config_json={}).code == "CALIB_FORMAT"
    record(tmp_path / "a.wav", tone(0))
    assert refused(tmp_path, SOUND, preprocessor_config_json={}).code == "CALIB_EMPTY"


@pytest.mark.skipif(importlib.util.find_spec("soundfile") is not None, reason="soundfile is installed")
def test_what_needs_soundfile_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.flac").write_bytes(b"fLaC")
    with pytest.raises(MissingDependencyError, match=r"a\.flac needs soundfile"):
        read(tmp_path, SOUND, preprocessor_config_json={})


# -- texts -------------------------------------------------------------------------------------------------


@pytest.fixture
def tokenizer() -> dict[str, object]:
    """Words by number, [CLS] in front."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {word: number for number, word in enumerate(["[PAD]", "[CLS]", "[UNK]", "a", "cat", "sat"])}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    made.enable_padding(pad_id=0, pad_token="[PAD]", length=64)
    found: dict[str, object] = json.loads(made.to_str())
    return found


def test_each_line_is_a_sample(tmp_path: Path, tokenizer: dict[str, object]) -> None:
    (tmp_path / "b.txt").write_text("a cat\n\n  \na cat sat\n", encoding="utf-8")
    (tmp_path / "a.txt").write_text("dog sat", encoding="utf-8")
    found = read(tmp_path, TEXT, tokenizer_json=tokenizer)
    assert [sample["input_ids"].tolist() for sample in found] == [[[1, 2, 5]], [[1, 3, 4]], [[1, 3, 4, 5]]]
    assert found[2]["attention_mask"].tolist() == [[1, 1, 1, 1]]
    assert found[2]["position_ids"].tolist() == [[0, 1, 2, 3]]
    assert found[2]["token_type_ids"].dtype == np.int32


def test_lines_are_cut_and_filled(tmp_path: Path, tokenizer: dict[str, object]) -> None:
    (tmp_path / "a.txt").write_text("a cat sat\na", encoding="utf-8")
    fixed = tuple(TensorSpec(s.name, s.dtype, ("batch", 3), s.meaning, s.high) for s in TEXT[:2])
    found = read(tmp_path, fixed, tokenizer_json=tokenizer)
    assert [sample["input_ids"].tolist() for sample in found] == [[[1, 3, 4]], [[1, 3, 0]]]
    assert found[1]["attention_mask"].tolist() == [[1, 1, 0]]
    limit = {"model_max_length": 2}
    found = read(tmp_path, TEXT, tokenizer_json=tokenizer, tokenizer_config_json=limit)
    assert found[0]["input_ids"].tolist() == [[1, 3]]


def test_texts_that_cannot_be_used(tmp_path: Path, tokenizer: dict[str, object]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a cat", encoding="utf-8")
    assert "has a tokenizer.json" in refused(tmp_path, TEXT).what
    assert "'input_values' is neither" in refused(tmp_path, SOUND).what
    assert "cannot be used" in refused(tmp_path, TEXT, tokenizer_json={}).what
    path.write_bytes(b"\xff\xfe\x00")
    assert refused(tmp_path, TEXT, tokenizer_json=tokenizer).code == "CALIB_FORMAT"
    path.write_text("\n")
    assert refused(tmp_path, TEXT, tokenizer_json=tokenizer).code == "CALIB_EMPTY"


# -- data sets -----------------------------------------------------------------------------------------------


def test_arrays_come_before_other_kinds(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((1, 4), np.float32))
    picture(tmp_path / "b.ppm", drawn(3, 3))
    (tmp_path / "c.txt").write_text("text")
    dataset = open_dataset(tmp_path, SPECS)
    assert [list(sample) for sample in dataset] == [["x"]]
    assert [list(sample) for sample in dataset] == [["x"]], "it can be read again"


def test_a_file_is_named_in_errors(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((1, 5), np.float32))
    (sample,) = open_dataset(tmp_path, SPECS)
    with pytest.raises(
        CalibrationError, match=r"'x' of calibration sample 0 \(.*a\.npz\) has shape \[1, 5\]"
    ):
        check_sample(0, sample, SPECS)


def test_changed_samples_keep_their_file_and_may_be_left_out() -> None:
    data = Dataset(lambda: iter([{"x": np.full(1, n)} for n in range(4)]), 4)
    doubled = data.mapped(lambda feeds: {"x": feeds["x"] * 2} if feeds["x"][0] % 2 else None)
    assert [int(feeds["x"][0]) for feeds in doubled] == [2, 6]


def test_an_iterator_is_kept_on_disk(tmp_path: Path) -> None:
    import ml_dtypes

    given = [
        {"x": np.arange(6).reshape(2, 3), "y.npy": np.array(3.5, np.float16)},
        {"file": np.zeros((0, 3)), "z": np.ones(3, ml_dtypes.bfloat16), "b": np.array([True, False])},
    ]
    kept = spooled(iter(given), tmp_path)
    for _ in range(2):
        for a, b in zip(kept, given, strict=True):
            assert list(a) == list(b)
            for name, array in b.items():
                assert (a[name].dtype, a[name].shape) == (array.dtype, array.shape)
                np.testing.assert_array_equal(a[name], array)
    assert len(list(tmp_path.iterdir())) == 2


def test_python_objects_are_not_kept_on_disk(tmp_path: Path) -> None:
    words = [{"x": np.array(["a", "b"], dtype=object)}]
    with pytest.raises(CalibrationError, match="'x' of calibration sample 0 holds Python objects"):
        spooled(iter(words), tmp_path)
