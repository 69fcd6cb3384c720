"""Recordings as samples: waveforms or log-mel spectra, as the artifact's preprocessor_config.json says."""

from __future__ import annotations

import wave
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt

from burnish.errors import CalibrationError, MissingDependencyError
from burnish.feeds import dtype_of
from burnish.manifest import TensorSpec
from burnish.runtime.readers import Attachments, Feeds, no_place, processor_of

Wave = npt.NDArray[np.float32]
"""[samples], -1 to 1."""

_WAVEFORM: Final = ("Wav2Vec2FeatureExtractor", "")
_LOG_MEL: Final = "WhisperFeatureExtractor"


@final
class AudioReader:
    """One sample of each recording: [1, samples], or [1, mel bands, frames] for Whisper.

    `.wav` is read here, the rest by soundfile, if that is installed.
    """

    def __init__(self, specs: Sequence[TensorSpec], attachments: Attachments) -> None:
        self._attachments = attachments
        values = [spec for spec in specs if spec.meaning == "values"]
        others = [spec for spec in specs if spec.meaning not in ("values", "mask")]
        if len(values) != 1 or others:
            raise no_place(
                f"The model does not take recordings alone: its inputs are "
                f"{', '.join(spec.name for spec in specs)}.",
                "Give .npz files with an array for each input.",
            )
        self._values, self._masks = values[0], [spec for spec in specs if spec.meaning == "mask"]

    def read(self, path: Path) -> Iterator[Feeds]:
        """One sample."""
        config = processor_of(self._attachments, path, "a recording becomes an input")
        kind = str(config.get("feature_extractor_type", ""))
        if kind not in (*_WAVEFORM, _LOG_MEL):
            raise no_place(f"burnish does not know the preprocessor {kind!r}.", "Give .npz files instead.")
        sound, rate = _decoded(path)
        wanted = int(config.get("sampling_rate", 16_000))
        if rate != wanted:
            raise CalibrationError(
                f"{path} has {rate} samples a second, the model wants {wanted}.",
                f"Convert it: ffmpeg -i IN -ar {wanted} OUT.wav",
                code="CALIB_FORMAT",
            )
        found = log_mel(sound, config) if kind == _LOG_MEL else _waveform(sound, config)
        feeds = {self._values.name: found[None].astype(dtype_of(self._values.dtype))}
        for spec in self._masks:
            feeds[spec.name] = np.ones((1, found.shape[-1]), dtype_of(spec.dtype))
        yield feeds


def _waveform(sound: Wave, config: dict[str, Any]) -> npt.NDArray[np.float32]:
    if not config.get("do_normalize"):
        return sound
    return np.asarray((sound - sound.mean()) / np.sqrt(sound.var() + 1e-7), np.float32)


def log_mel(sound: Wave, config: dict[str, Any]) -> npt.NDArray[np.float32]:
    """The spectrum that Whisper takes, [mel bands, frames]: 30 s, filled with silence.

    Source: Radford et al., arXiv 2212.04356, section 2.2; the scaling is that of OpenAI's code.
    """
    rate, size, hop = (int(config.get(key, default)) for key, default in
                       (("sampling_rate", 16_000), ("n_fft", 400), ("hop_length", 160)))  # fmt: skip
    length = rate * int(config.get("chunk_length", 30))
    padded = np.pad(sound[:length].astype(np.float64), (0, max(0, length - len(sound))))
    padded = np.pad(padded, size // 2, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop][: length // hop]
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    bands = mel_filters(int(config.get("feature_size", 80)), size, rate)
    spectrum = np.log10(np.maximum(power @ bands, 1e-10)).T
    return np.asarray((np.maximum(spectrum, spectrum.max() - 8.0) + 4.0) / 4.0, np.float32)


def mel_filters(bands: int, size: int, rate: int) -> npt.NDArray[np.float64]:
    """Triangles of equal area on the mel scale of Slaney's Auditory Toolbox, [size / 2 + 1, bands]."""
    frequencies = np.linspace(0.0, rate / 2, size // 2 + 1)
    edges = _hertz(np.linspace(0.0, _mel(rate / 2), bands + 2))
    slopes = edges[None] - frequencies[:, None]
    widths = np.diff(edges)
    rising, falling = -slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return np.asarray(triangles * (2.0 / (edges[2:] - edges[:-2])))


def _mel(hertz: float) -> float:
    """Linear below 1 kHz, logarithmic above."""
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * float(np.log(hertz / 1000) / np.log(6.4))


def _hertz(mel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    above = 1000.0 * np.exp(np.log(6.4) * (mel - 15) / 27)
    return np.where(mel < 15, mel * 200 / 3, above)


def _decoded(path: Path) -> tuple[Wave, int]:
    """The mean of the channels, and samples a second."""
    try:
        return _wav(path) if path.suffix.lower() == ".wav" else _by_soundfile(path)
    except (OSError, EOFError, wave.Error, ValueError) as error:
        raise CalibrationError(
            f"{path} cannot be read as a recording: {error}.", "Give a .wav file of PCM.", code="CALIB_FORMAT"
        ) from error


def _wav(path: Path) -> tuple[Wave, int]:
    with path.open("rb") as stream, wave.open(stream) as file:
        width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
        data = np.frombuffer(file.readframes(file.getnframes()), np.uint8).reshape(-1, width)
    if not len(data):
        raise CalibrationError(f"{path} holds no sound.", "Leave it out.", code="CALIB_EMPTY")
    signed = data ^ np.uint8(128) if width == 1 else data  # 8 bits are unsigned there, more are signed
    whole = np.zeros((len(data), 4), np.uint8)
    whole[:, 4 - width :] = signed
    values = whole.view("<i4").reshape(-1, channels).mean(axis=1) / 2.0**31
    return values.astype(np.float32), rate


def _by_soundfile(path: Path) -> tuple[Wave, int]:
    try:
        import soundfile
    except ImportError as error:
        raise MissingDependencyError(
            f"{path.name} needs soundfile to be read.", "pip install soundfile, or give .wav or .npz files."
        ) from error
    sound, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return np.asarray(sound.mean(axis=1), np.float32), int(rate)
