"""The kinds of model that the API takes, and how each is given back: path, Artifact, ModelProto, ir.Model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeGuard, final

from burnish.artifact import Artifact, owned_files
from burnish.errors import ArtifactError, OutputError, shown
from burnish.files import need_place
from burnish.manifest import Manifest
from burnish.model import copy_model, signature

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

ModelLike: TypeAlias = "str | os.PathLike[str] | Artifact | onnx.ModelProto | ir.Model"
"""A path of an `.onnx` file or an artifact folder, an Artifact, a ModelProto, or an ir.Model."""


@final
@dataclasses.dataclass(frozen=True)
class Source:
    """A model with what is known about it, and the kind it came as."""

    given: ModelLike
    model: ir.Model
    """A copy: rewriting it never touches what was given."""
    manifest: Manifest
    attachments: Mapping[str, Path | bytes]

    def give_back(
        self, model: ir.Model, manifest: Manifest, output: str | os.PathLike[str] | None
    ) -> ModelLike:
        """The rewritten model as the kind that was given; also written to `output`, if any.

        Raises:
            OutputError: a path was given without an `output`, or it cannot be written.
        """
        artifact = Artifact.create(model, manifest, self.attachments)
        if output is not None:
            artifact = write(artifact, Path(output))
        if isinstance(self.given, Artifact):
            return artifact
        if isinstance(self.given, (str, os.PathLike)):
            return Path(output) if output is not None else Path(self.given)
        if _is_proto(self.given):
            import onnx_ir

            return onnx_ir.to_proto(model)
        return model


def open_source(given: ModelLike) -> Source:
    """Read any kind of model; what was given stays as it is.

    Raises:
        ModelError, ArtifactError: it cannot be used; the code says why.
    """
    if isinstance(given, (str, os.PathLike)):
        artifact = open_artifact(Path(given))
        return Source(given, copy_model(artifact.model), artifact.manifest, artifact.attachments)
    if isinstance(given, Artifact):
        return Source(given, copy_model(given.model), given.manifest, given.attachments)
    import onnx_ir

    if _is_proto(given):
        # onnx-ir's deserialised graph shares its initializers with the proto: passes would change both.
        import copy

        from burnish.graph_check import validate

        validate(given)
        model = onnx_ir.serde.deserialize_model(copy.deepcopy(given))
    elif isinstance(given, onnx_ir.Model):
        model = copy_model(given)
    else:
        raise ArtifactError(
            f"Cannot take a model from a {type(given).__name__}.",
            "Give a path, an Artifact, an onnx.ModelProto or an onnx_ir.Model.",
            code="MODEL_KIND",
        )
    return Source(given, model, signature(model), {})


def open_artifact(path: Path) -> Artifact:
    """An artifact folder, or a plain `.onnx` file as an artifact."""
    return Artifact.open(path) if path.is_dir() else Artifact.from_onnx(path)


def write(artifact: Artifact, output: Path) -> Artifact:
    """Write to a plain `.onnx` (with data file when large, and a `.burnish.json`) or to a folder."""
    return artifact.save(output)


def left_out(attachments: Mapping[str, Path | bytes], output: object) -> tuple[str, ...]:
    """What is said of attachments that a plain `.onnx` cannot carry."""
    plain = isinstance(output, (str, os.PathLike)) and Path(output).suffix == ".onnx"
    names = ", ".join(sorted(attachments))
    return (f"not written with a plain .onnx (a folder would hold them): {names}",) if plain and names else ()


def need_output(given: ModelLike, output: object) -> None:
    """A path in needs a path out: a model is never overwritten without being asked.

    Raises:
        OutputError: `output` is missing, or its folder cannot be written to (OUTPUT_PATH), said early.
    """
    if isinstance(output, (str, os.PathLike)):
        need_folder(Path(output))
    if isinstance(given, (str, os.PathLike)) and output is None:
        raise OutputError(
            f"No output given for {os.fspath(given)!r}.",
            "Pass output=..., ending in .onnx or a folder.",
        )


def need_folder(output: Path) -> None:
    """It must be possible to write `output`, before minutes of work are spent on it.

    Raises:
        OutputError: its folder is missing or not writable; it is something else than what is to be written,
            or a folder that holds files of others (OUTPUT_PATH).
    """
    folder = output.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        why = "you may not write there" if folder.is_dir() else "there is no such folder"
        raise OutputError(
            f"Cannot write '{shown(output)}': {why}.",
            "Choose a path in an existing folder that you may write to.",
            code="OUTPUT_PATH",
        )
    plain = output.suffix == ".onnx"
    need_place(output, folder=not plain, owned=() if plain else owned_files(output))


def _is_proto(given: ModelLike) -> TypeGuard[onnx.ModelProto]:
    return type(given).__name__ == "ModelProto" and hasattr(given, "SerializeToString")
