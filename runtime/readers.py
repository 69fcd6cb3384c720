"""Files of samples: which reader knows them, and the one for numpy's arrays.

A reader knows what the artifact says of its inputs, so that a folder of pictures, recordings or texts becomes
what the model takes.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, final

import numpy as np
import numpy.typing as npt

from burnish.errors import CalibrationError
from burnish.manifest import TensorSpec
from burnish.reader import open_regular

Feeds = dict[str, npt.NDArray[np.generic]]
"""One array for each input of the model, by name."""
Attachments = Mapping[str, Path | bytes]
"""Files of an artifact, by name."""

_KINDS: Final = {
    "arrays": (".npz", ".npy"),
    "images": (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".webp"),
    "recordings": (".flac", ".ogg", ".wav"),
    "texts": (".txt",),
}
"""Kinds of files by the end of their names; a folder is read as the first kind that it holds."""

_LARGEST: Final = 1 << 28  # bytes of a tokenizer.json; the largest known have 35 MB


class Reader(Protocol):
    """Makes samples of files of one kind."""

    def read(self, path: Path) -> Iterator[Feeds]:
        """The samples of a file, one after the other.

        Raises:
            CalibrationError: it cannot be read (CALIB_FORMAT), or holds nothing (CALIB_EMPTY).
        """


def reader_for(path: Path, specs: Sequence[TensorSpec], attachments: Attachments) -> Reader:
    """The reader of a file, by the end of its name (arrays where that says nothing).

    Args:
        path: one of the files to read.
        specs: the model's inputs.
        attachments: files of the artifact: the tokenizer or preprocessor of its inputs.

    Raises:
        CalibrationError: the model takes no such thing, or the artifact lacks the file that says how
            (CALIB_PROCESSOR).
    """
    match _kind(path):
        case "images":
            from burnish.runtime.read_images import ImageReader

            return ImageReader(specs, attachments)
        case "recordings":
            from burnish.runtime.read_audio import AudioReader

            return AudioReader(specs, attachments)
        case "texts":
            from burnish.runtime.read_texts import TextReader

            return TextReader(specs, attachments)
        case _:
            return ArrayReader(specs)


def sample_files(path: Path) -> list[Path]:
    """The file itself, or those of a folder: of the first kind that it holds, in the order of their names.

    Raises:
        CalibrationError: there is nothing there (CALIB_MISSING), or no file of any kind (CALIB_EMPTY).
    """
    if path.is_dir():
        inside = sorted(file for file in path.iterdir() if file.is_file())
        for kind in _KINDS:
            if found := [file for file in inside if _kind(file) == kind]:
                return found
        raise CalibrationError(
            f"Folder {path} holds no .npz or .npy file, and no images, recordings or texts.",
            "Save each sample with numpy.savez, one array for each input.",
            code="CALIB_EMPTY",
        )
    if not path.is_file():
        raise CalibrationError(
            f"There are no calibration samples at {path}.",
            "Give a .npz file or a folder of them.",
            code="CALIB_MISSING",
        )
    return [path]


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    return next((kind for kind, suffixes in _KINDS.items() if suffix in suffixes), "")


@final
class ArrayReader:
    """`.npz`: one array for each input, by name; `.npy`: the array of a model with one input."""

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._specs = specs

    def read(self, path: Path) -> Iterator[Feeds]:
        """One sample."""
        try:
            with path.open("rb") as stream:  # np.load leaves a broken archive open
                loaded = np.load(stream, allow_pickle=False)
                if isinstance(loaded, np.ndarray):
                    feeds: Feeds = {self._only_input(path): loaded}
                else:
                    feeds = {name: loaded[name] for name in loaded.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise CalibrationError(
                f"{path} cannot be read as numpy arrays: {error}.",
                "Save it with numpy.savez, without object arrays.",
                code="CALIB_FORMAT",
            ) from error
        yield feeds

    def _only_input(self, path: Path) -> str:
        if len(self._specs) == 1:
            return self._specs[0].name
        raise CalibrationError(
            f"{path} holds one array without a name; the model has {len(self._specs)} inputs.",
            "Save a .npz file with an array for each input.",
            code="CALIB_MISSING",
        )


def processor_file(names: Sequence[str], attachments: Attachments, path: Path, use: str) -> bytes:
    """The first file of those names: of the artifact, or in the folder of the samples; b"" where none is.

    Args:
        names: in the order in which they are looked for.
        attachments: files of the artifact.
        path: a sample.
        use: what it would say; where that is not empty, a missing file is an error.

    Raises:
        CalibrationError: there is none, or it cannot be read (CALIB_PROCESSOR).
    """
    for name in names:
        found = attachments.get(name, path.with_name(name))
        if isinstance(found, bytes):
            return found
        try:
            with open_regular(found) as file:
                return file.read(_LARGEST)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise no_place(f"{found} cannot be read: {error.strerror}.", "Export the model again.") from error
    if use:
        raise no_place(
            f"Nothing says how {use}: neither the model nor {path.parent} has a {names[0]}.",
            f"Put {names[0]} beside the samples, or give .npz files with an array for each input.",
        )
    return b""


def processor_of(attachments: Attachments, path: Path, use: str) -> dict[str, Any]:
    """The content of preprocessor_config.json; arguments as for `processor_file`.

    Raises:
        CalibrationError: there is none, or it is not JSON (CALIB_PROCESSOR).
    """
    data = processor_file(("preprocessor_config.json",), attachments, path, use)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise no_place(
            f"preprocessor_config.json is not JSON: {error}.", "Export the model again."
        ) from error
    if not isinstance(found, dict):
        raise no_place("preprocessor_config.json holds no settings.", "Export the model again.")
    return found


def no_place(what: str, hint: str) -> CalibrationError:
    """The model takes no such thing, or nothing says how to make it."""
    return CalibrationError(what, hint, code="CALIB_PROCESSOR")
