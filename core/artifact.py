"""A finished model: a folder with `model.onnx`, `burnish.json` and what belongs to them, written once.

    model.onnx       the graph, with its weights when they fit
    model.onnx.data  the weights when they are large
    burnish.json     inputs, outputs, recipe, receipts, and size and sha256 of every other file; written last
    timings.json     seconds, the only thing that differs from run to run; it is not hashed
    (attachments)    tokenizer files and the like

Files that `burnish.json` does not list are tolerated when a folder is opened, and never read; a folder that
holds some is not overwritten. This module imports no onnx-ir until the graph is asked for: the runtime opens
artifacts without it.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, Self, final

import msgspec

from burnish.disk import Chunk
from burnish.errors import ArtifactError, ModelError, shown
from burnish.files import Data, staged_folder, write_file
from burnish.manifest import FORMAT, FileRecord, Manifest, decode, encode
from burnish.model_file import check_model_file
from burnish.reader import (
    chunks_of,
    hashed,
    open_inside,
    open_regular,
    record_of,
    safe_relative,
    sidecar_path,
)

if TYPE_CHECKING:
    import onnx_ir as ir

MODEL: Final = "model.onnx"
DATA: Final = "model.onnx.data"
MANIFEST: Final = "burnish.json"
TIMINGS: Final = "timings.json"

_RESERVED: Final = (MODEL, DATA, MANIFEST, TIMINGS)
_MANIFEST_BYTES: Final = 64 << 20  # a manifest is text about a model; a larger one is not a manifest


@final
@dataclasses.dataclass(frozen=True)
class DataFile:
    """A file of weights that was written already, on the file system that an artifact is to be on."""

    path: Path
    record: FileRecord


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Artifact:
    """A model with its manifest, on disk or in memory.

    Example::

        artifact = Artifact.open("fast.burnish")
        artifact.manifest.inputs, artifact.attachments["tokenizer.json"]
    """

    manifest: Manifest
    path: Path | None = None
    """The folder, or the plain `.onnx` file; None while it is only in memory."""
    model_path: Path | None = None
    """The `.onnx` file; None while the artifact is only in memory."""
    attachments: Mapping[str, Path | bytes] = dataclasses.field(default_factory=dict)
    """Other files that belong to the model, by their relative path in the folder."""
    _made: ir.Model | None = dataclasses.field(default=None, repr=False)
    _data: DataFile | None = dataclasses.field(default=None, repr=False)
    _external_from: int | None = dataclasses.field(default=None, repr=False)

    @classmethod
    def create(
        cls, model: ir.Model, manifest: Manifest, attachments: Mapping[str, Path | bytes] | None = None, *,
        data: DataFile | None = None, external_from: int | None = None,
    ) -> Self:  # fmt: skip
        """An artifact in memory; the model is copied, so that changing it later changes nothing here.

        Args:
            model, manifest: sizes and hashes of files are filled in when they are written.
            attachments: other files, by their relative path in the folder.
            data: a file named `DATA` that has the model's external tensors; saving a folder moves it there.
            external_from: bytes of weights from which on they go to a data file.

        Raises:
            ArtifactError: an attachment's name leads out of the folder or is taken (ARTIFACT_INVALID).
        """
        from burnish.model import copy_model

        for name in attachments or {}:
            if safe_relative(name) is None or name in _RESERVED or name != str(PurePosixPath(name)):
                raise ArtifactError(
                    f"An attachment cannot be named '{shown(name)}'.",
                    f"Use a relative path without '..', and none of {', '.join(_RESERVED)}.",
                )
        return cls(manifest, None, None, dict(attachments or {}), copy_model(model), data, external_from)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a folder (or a plain `.onnx` file) after verifying every file that the manifest lists.

        Raises:
            ArtifactError: ARTIFACT_MANIFEST, ARTIFACT_MISSING or ARTIFACT_HASH, naming the file.
            ModelError, ExternalDataError: the model file cannot be used.
        """
        folder = Path(path)
        if folder.is_file():
            return cls.from_onnx(folder)
        while True:
            before = _identity(folder)
            try:
                return cls._open_folder(folder)
            except (ArtifactError, ModelError):
                if before is None or before == _identity(folder):
                    raise  # otherwise a writer replaced the folder meanwhile: read the new one

    @classmethod
    def _open_folder(cls, folder: Path) -> Self:
        manifest = decoded_manifest(read_manifest(folder), folder / MANIFEST)
        if manifest.parts:
            raise ArtifactError(
                f"'{shown(folder)}' holds {len(manifest.parts)} models: {', '.join(manifest.parts)}.",
                f"Give one of them: {shown(folder / manifest.parts[0])}",
            )
        if MODEL not in manifest.files:
            raise _missing(folder, MODEL, "is not listed in its burnish.json")
        for name, record in manifest.files.items():
            verify_file(folder, name, record)
        model = check_model_file(folder / MODEL)
        for name in model.data.keys() - manifest.files.keys():
            raise _mismatch(folder, name, "holds weights, but burnish.json has no hash of it")
        others = {name: folder / name for name in manifest.files if name != MODEL and name not in model.data}
        return cls(manifest, folder, folder / MODEL, others)

    @classmethod
    def from_onnx(cls, path: str | Path) -> Self:
        """A plain `.onnx` file as an artifact.

        The manifest is that of `NAME.burnish.json` beside it when its hash of the `.onnx` still fits;
        otherwise it is read from the graph (which needs onnx-ir).

        Raises:
            ModelError, ExternalDataError: the file cannot be used.
            ArtifactError: the file beside it is not a manifest (ARTIFACT_MANIFEST).
        """
        path = Path(path)
        file = check_model_file(path)
        known = _sidecar(path, file.data)
        if known is not None:
            return cls(known, path, path)
        from burnish.model import load_model, signature

        model = load_model(path)
        return cls(signature(model), path, path, _made=model)

    @functools.cached_property
    def model(self) -> ir.Model:
        """The graph, read on first use. It is shared: rewrite a `burnish.model.copy_model` of it."""
        if self._made is not None:
            return self._made
        from burnish.model import load_model

        return load_model(self.model_path or "")

    def model_bytes(self) -> bytes:
        """The model as one protobuf, weights inside.

        Raises:
            ModelError: it is over 2 GB (MODEL_SIZE); use `model_path`.
        """
        if self.model_path is not None and not check_model_file(self.model_path).data:
            with open_regular(self.model_path, follow=True) as file:
                return file.read()
        from burnish.model import to_bytes

        return to_bytes(self.model)

    def save(self, path: str | Path, *, timings: Mapping[str, float] | None = None) -> Artifact:
        """Write the artifact, whole or not at all; return it as it is on disk.

        The same model, manifest and attachments give the same bytes, `timings.json` excepted.

        Args:
            path: a folder; or a file that ends in `.onnx`, which gets a `.burnish.json` beside it and no
                attachments.
            timings: seconds by name for `timings.json`; default: the seconds of the receipts.

        Raises:
            OutputError: OUTPUT_PATH (also: the folder exists and holds other files) or DISK_FULL.
            ArtifactError: an attachment cannot be read (ARTIFACT_MISSING).
        """
        from burnish.model import EXTERNAL_THRESHOLD, save_model

        target = Path(path)
        if target.suffix == ".onnx":
            least = EXTERNAL_THRESHOLD if self._external_from is None else self._external_from
            save_model(self.model, target, self.manifest, external_threshold=least)
            return Artifact.from_onnx(target)
        with staged_folder(target, owned=owned_files(target)) as stage:
            self.fill(stage, timings=timings)
        manifest = decoded_manifest(read_manifest(target), target)
        others = {name: target / name for name in self.attachments}
        return Artifact(manifest, target, target / MODEL, others)

    def fill(self, stage: Path, *, timings: Mapping[str, float] | None = None) -> dict[str, FileRecord]:
        """Write everything into an empty folder, manifest last; return what has a hash, manifest included."""
        records = dict(self._write(stage))
        manifest = encode(msgspec.structs.replace(self.manifest, files=records))
        if seconds := _seconds(self.manifest, timings):
            write_file(stage / TIMINGS, seconds)
        write_file(stage / MANIFEST, manifest)
        return records | {MANIFEST: record_of([manifest])}

    def _write(self, stage: Path) -> Iterator[tuple[str, FileRecord]]:
        """Write everything that has a hash; yield the records."""
        from burnish.model import EXTERNAL_THRESHOLD, Split, graph_bytes
        from burnish.serialising import pieces
        from burnish.weights import weight_bytes

        contents: dict[str, Data | Path] = {}
        least = EXTERNAL_THRESHOLD if self._external_from is None else self._external_from
        if self._data is not None:
            os.rename(self._data.path, stage / DATA)
            yield DATA, self._data.record
            contents[MODEL] = graph_bytes(self.model)
        elif weight_bytes(self.model) < least:
            contents[MODEL] = pieces(self.model)
        else:
            split = Split(self.model)
            contents[DATA], contents[MODEL] = split.content(), split.to_bytes(DATA)
        contents |= self.attachments
        for name in sorted(contents):
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            chunks = hashed(chunks_of_data(name, contents.pop(name)))
            write_file(stage / name, chunks)
            yield name, chunks.record


def chunks_of_data(name: str, data: Data | Path) -> Iterator[Chunk]:
    """The bytes of an attachment or of what was made, in pieces.

    Raises:
        ArtifactError: a file cannot be read (ARTIFACT_MISSING).
    """
    if isinstance(data, bytes):
        yield data
    elif isinstance(data, Path):
        try:
            with open_regular(data, follow=True) as file:
                yield from chunks_of(file)
        except OSError as error:
            raise ArtifactError(
                f"Attachment '{shown(name)}' cannot be read from '{shown(data)}': {error.strerror}.",
                "Give a file that is there, or its bytes.",
                code="ARTIFACT_MISSING",
            ) from error
    else:
        yield from data


def _seconds(manifest: Manifest, timings: Mapping[str, float] | None) -> bytes:
    receipts = [(f"{n:02d} {r.step}", r) for n, r in enumerate(manifest.receipts, start=1)]
    if timings is None:
        timings = {step: r.seconds for step, r in receipts if r.seconds is not None}
    found: dict[str, object] = {"seconds": dict(timings)} if timings else {}
    if measured := {step: r.measured for step, r in receipts if r.measured}:
        found["measured"] = measured
    return msgspec.json.format(msgspec.json.encode(found), indent=2) if found else b""


def owned_files(folder: Path) -> frozenset[str]:
    """The files that a new artifact may replace: those of an artifact that is there already."""
    try:
        listed = decoded_manifest(read_manifest(folder), folder / MANIFEST).files
    except ArtifactError:
        return frozenset()
    inner = {f"{name.rpartition('/')[0]}/{TIMINGS}" for name in listed if name.endswith(f"/{MANIFEST}")}
    return frozenset({*listed, *inner, MANIFEST, TIMINGS})


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        info = os.stat(folder)
    except (OSError, ValueError):
        return None
    return info.st_dev, info.st_ino


def read_manifest(folder: Path) -> bytes:
    """The bytes of a folder's manifest.

    Raises:
        ArtifactError: there is none that can be read (ARTIFACT_MISSING).
    """
    try:
        with open_inside(folder, PurePosixPath(MANIFEST)) as file:
            return file.read(_MANIFEST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ArtifactError(
            f"'{shown(folder)}' is not an artifact: its {MANIFEST} cannot be read ({why}).",
            "Give a folder that burnish wrote, or an .onnx file.",
            code="ARTIFACT_MISSING",
        ) from error


class _Version(msgspec.Struct):
    format: int = FORMAT


def decoded_manifest(data: bytes, path: Path) -> Manifest:
    """The manifest in those bytes; `path` is for the message.

    Raises:
        ArtifactError: ARTIFACT_MANIFEST.
    """
    try:
        if len(data) > _MANIFEST_BYTES:
            raise msgspec.DecodeError(f"it has more than {_MANIFEST_BYTES} bytes")
        version = msgspec.json.decode(data, type=_Version).format
        if version != FORMAT:
            raise msgspec.DecodeError(f"its format is {version}, and this burnish reads {FORMAT}")
        manifest = decode(data)
        if bad := next((name for name in manifest.files if safe_relative(name) is None), None):
            raise msgspec.DecodeError(f"it lists '{shown(bad)}', which is not a path inside the folder")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(
            f"'{shown(path)}' is not a manifest: {error}.",
            "Write the artifact again with this version of burnish, or upgrade burnish.",
            code="ARTIFACT_MANIFEST",
        ) from error
    return manifest


def verify_file(folder: Path, name: str, record: FileRecord) -> None:
    """Compare a file of the folder with its size and sha256.

    Raises:
        ArtifactError: ARTIFACT_MISSING or ARTIFACT_HASH.
    """
    try:
        with open_inside(folder, PurePosixPath(name)) as file:
            size = os.fstat(file.fileno()).st_size
            if size != record.size:
                raise _mismatch(folder, name, f"has {size} bytes instead of {record.size}")
            if record_of(chunks_of(file)) != record:
                raise _mismatch(folder, name, "has another sha256 than burnish.json says")
    except OSError as error:
        raise _missing(folder, name, f"cannot be read: {error.strerror}") from error


def _missing(folder: Path, name: str, why: str) -> ArtifactError:
    return ArtifactError(
        f"'{shown(name)}' of artifact '{shown(folder)}' {why}.",
        "The folder was copied in part; copy or write it again.",
        code="ARTIFACT_MISSING",
    )


def _mismatch(folder: Path, name: str, why: str) -> ArtifactError:
    return ArtifactError(
        f"'{shown(name)}' of artifact '{shown(folder)}' {why}.",
        "The file was changed or damaged; copy or write the artifact again.",
        code="ARTIFACT_HASH",
    )


def _sidecar(path: Path, data: Mapping[str, int]) -> Manifest | None:
    """The manifest beside a plain `.onnx`, if it was written for these very bytes."""
    beside = sidecar_path(path)
    try:
        with open_regular(beside, follow=True) as file:
            manifest = decoded_manifest(file.read(_MANIFEST_BYTES + 1), beside)
    except OSError:
        return None
    with open_regular(path, follow=True) as file:
        record = record_of(chunks_of(file))
    sizes = {name: manifest.files[name].size for name in data if name in manifest.files}
    return manifest if record in manifest.files.values() and sizes == data else None
