"""Images as samples: resized, cropped and normalised as the artifact's preprocessor_config.json says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt

from burnish.errors import CalibrationError, MissingDependencyError
from burnish.feeds import dtype_of
from burnish.manifest import TensorSpec
from burnish.runtime.readers import Attachments, Feeds, no_place, processor_of

Pixels = npt.NDArray[np.float32]
"""[height, width, channels], 0 to 255."""

_NETPBM: Final = re.compile(rb"P([56])\s+(?:#.*\n)*(\d+)\s+(\d+)\s+255\s")
_BICUBIC: Final = 3  # PIL.Image.BICUBIC; anything else is resized bilinearly
_SHARPNESS: Final = -0.5  # the parameter a of the cubic kernel, as Pillow has it


@final
class ImageReader:
    """One sample, [1, channels, height, width] (or channels last), of each image.

    `.ppm` and `.pgm` are read here, the rest by Pillow, if that is installed.
    """

    def __init__(self, specs: Sequence[TensorSpec], attachments: Attachments) -> None:
        fitting = [s for s in specs if s.meaning == "values" and s.shape is not None and len(s.shape) == 4]
        if len(specs) != 1 or not fitting:
            raise no_place(
                f"The model does not take images alone: its inputs are {', '.join(s.name for s in specs)}.",
                "Give .npz files with an array for each input.",
            )
        self._spec, self._attachments = fitting[0], attachments

    def read(self, path: Path) -> Iterator[Feeds]:
        """One sample."""
        config = processor_of(self._attachments, path, "an image becomes an input")
        pixels = prepared(_decoded(path), config)
        shape = self._spec.shape or ()
        gray = 1 in (shape[1], shape[3]) and 3 not in (shape[1], shape[3])
        if gray:
            pixels = pixels.mean(axis=2, keepdims=True)
        last = shape[3] in (1, 3) and shape[1] not in (1, 3)
        array = pixels if last else pixels.transpose(2, 0, 1)
        yield {self._spec.name: np.ascontiguousarray(array[None]).astype(dtype_of(self._spec.dtype))}


def prepared(pixels: Pixels, config: dict[str, Any]) -> Pixels:
    """Pixels as a preprocessor of transformers prepares them: resize, crop, scale, normalise.

    Args:
        pixels: [height, width, 3].
        config: the content of a preprocessor_config.json.

    Raises:
        CalibrationError: a size in it is no size (CALIB_PROCESSOR).
    """
    if config.get("do_resize") and config.get("size"):
        target = _resized_to(config["size"], pixels.shape[0], pixels.shape[1])
        pixels = resize(pixels, *target, cubic=config.get("resample") == _BICUBIC)
    if config.get("do_center_crop") and config.get("crop_size"):
        pixels = _cropped(pixels, *_sides(config["crop_size"]))
    if config.get("do_rescale", True):
        pixels = pixels * np.float32(config.get("rescale_factor", 1 / 255))
    if config.get("do_normalize"):
        mean, std = (np.array(config.get(name, default), np.float32)
                     for name, default in (("image_mean", 0.5), ("image_std", 0.5)))  # fmt: skip
        pixels = (pixels - mean) / std
    return np.asarray(pixels, np.float32)


def resize(pixels: Pixels, height: int, width: int, *, cubic: bool) -> Pixels:
    """Resize with a kernel that widens where the image shrinks, as Pillow does, rounded to whole values."""
    rows = _kernel(pixels.shape[0], height, cubic=cubic)
    columns = _kernel(pixels.shape[1], width, cubic=cubic)
    found = np.einsum("oh,hwc->owc", rows, pixels, optimize=True)
    found = np.einsum("ow,hwc->hoc", columns, found, optimize=True)
    return np.asarray(np.clip(np.rint(found), 0, 255), np.float32)


def _kernel(size: int, wanted: int, *, cubic: bool) -> npt.NDArray[np.float64]:
    """[wanted, size]: what each new value takes of the old ones."""
    scale = size / wanted
    centre = (np.arange(wanted)[:, None] + 0.5) * scale - 0.5
    x = np.abs(np.arange(size)[None] - centre) / max(scale, 1.0)
    if cubic:
        a = _SHARPNESS
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * (x**3 - 5 * x**2 + 8 * x - 4)
        weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    else:
        weights = np.maximum(1.0 - x, 0.0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _resized_to(size: Any, height: int, width: int) -> tuple[int, int]:
    """Height and width after a resize; `shortest_edge` (or a number) keeps the shape of the image."""
    edge = size.get("shortest_edge") if isinstance(size, dict) else size
    if not isinstance(edge, int):
        return _sides(size)
    if height <= width:
        return edge, max(1, int(edge * width / height))
    return max(1, int(edge * height / width)), edge


def _sides(size: Any) -> tuple[int, int]:
    sides = (size.get("height"), size.get("width")) if isinstance(size, dict) else (size, size)
    if not all(isinstance(side, int) and side > 0 for side in sides):
        raise no_place(f"preprocessor_config.json has no size: {size!r}.", "Give .npz files instead.")
    return int(sides[0] or 0), int(sides[1] or 0)


def _cropped(pixels: Pixels, height: int, width: int) -> Pixels:
    """The middle of an image; what is missing there is black."""
    missing = [max(0, wanted - has) for wanted, has in zip((height, width), pixels.shape, strict=False)]
    if any(missing):
        around = [(-(-more // 2), more // 2) for more in missing]
        pixels = np.pad(pixels, (*around, (0, 0)))
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def _decoded(path: Path) -> Pixels:
    try:
        if path.suffix.lower() in (".ppm", ".pgm"):
            return _netpbm(path.read_bytes())
        return _by_pillow(path)
    except (OSError, ValueError) as error:
        raise CalibrationError(
            f"{path} cannot be read as an image: {error}.", "Give another file.", code="CALIB_FORMAT"
        ) from error


def _netpbm(data: bytes) -> Pixels:
    """Binary PPM or PGM of 8 bits (netpbm.sourceforge.net/doc/ppm.html)."""
    match = _NETPBM.match(data)
    if match is None:
        raise ValueError("it is no binary PPM or PGM of 8 bits")
    width, height, channels = int(match[2]), int(match[3]), 3 if match[1] == b"6" else 1
    pixels = np.frombuffer(data, np.uint8, width * height * channels, match.end())
    whole = pixels.reshape(height, width, channels).astype(np.float32)
    return np.broadcast_to(whole, (height, width, 3)).copy()


def _by_pillow(path: Path) -> Pixels:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError(
            f"{path.name} needs Pillow to be read.", "pip install pillow, or give .ppm or .npz files."
        ) from error
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.float32)
