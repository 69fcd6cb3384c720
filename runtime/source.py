"""What a session is opened from: a path, an artifact, or bytes; what is known about it besides the graph."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Protocol, TypeAlias, final, runtime_checkable

from burnish.errors import ModelError
from burnish.manifest import Manifest
from burnish.model_file import check_model_file
from burnish.reader import sidecar_path


@runtime_checkable
class ArtifactLike(Protocol):
    """What `burnish.artifact.Artifact` gives a session."""

    @property
    def manifest(self) -> Manifest:
        """Inputs and outputs with their ranges, and the target."""

    @property
    def model_path(self) -> Path | None:
        """The model file; None where the artifact is only in memory."""

    def model_bytes(self) -> bytes:
        """The model as one protobuf, weights inside."""


Source: TypeAlias = "str | os.PathLike[str] | bytes | ArtifactLike"
"""A path of an `.onnx` file or an artifact folder, an Artifact, or a serialised ModelProto."""


@final
@dataclasses.dataclass(frozen=True)
class Opened:
    """A model ready for onnxruntime."""

    data: Path | bytes
    name: str
    """How messages call it."""
    manifest: Manifest | None = None

    @property
    def for_onnxruntime(self) -> str | bytes:
        """The first argument of `onnxruntime.InferenceSession`."""
        return self.data if isinstance(self.data, bytes) else os.fspath(self.data)


def open_model(source: Source) -> Opened:
    """Check a model before onnxruntime sees it.

    Raises:
        ModelError, ExternalDataError, ArtifactError: it cannot be used; the code says why.
    """
    if isinstance(source, bytes):
        return _from_bytes(source)
    if isinstance(source, ArtifactLike):
        return _from_artifact(source)
    if isinstance(source, (str, os.PathLike)):
        return _from_path(Path(source))
    raise ModelError(
        f"A session cannot be opened from a {type(source).__name__}.",
        "Give a path, an Artifact, or the bytes of a model.",
        code="MODEL_KIND",
    )


def _from_bytes(data: bytes) -> Opened:
    if not data:
        raise ModelError("The model is empty.", "Give its bytes.", code="MODEL_PARSE")
    return Opened(data, f"<model of {len(data)} bytes>")


def _from_artifact(artifact: ArtifactLike) -> Opened:
    path = artifact.model_path
    if path is None:
        return Opened(artifact.model_bytes(), "<artifact in memory>", artifact.manifest)
    return Opened(path, str(path), artifact.manifest)


def _from_path(path: Path) -> Opened:
    """The manifest is the folder's, or that beside a plain file; without one, the graph alone is known."""
    if path.is_dir() or sidecar_path(path).is_file():
        from burnish.artifact import Artifact

        return _from_artifact(Artifact.open(path))
    check_model_file(path)
    return Opened(path, str(path))
