"""Several artifacts that make one model: an encoder and a decoder. A folder with a folder for each.

    burnish.json     what the parts are, and size and sha256 of every file of theirs; written last
    encoder/         an artifact: model.onnx, burnish.json …
    decoder/         another
    (attachments)    tokenizer files and the like, once

Each part is an artifact like any other: open `FOLDER/decoder` to optimise or run it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self, final

import msgspec

from burnish.artifact import (
    MANIFEST,
    Artifact,
    chunks_of_data,
    decoded_manifest,
    owned_files,
    read_manifest,
    verify_file,
)  # fmt: skip
from burnish.errors import ArtifactError, OutputError, shown
from burnish.files import staged_folder, write_file
from burnish.manifest import FileRecord, Manifest, encode
from burnish.reader import hashed


def need_folder_for(parts: Iterable[str], output: Path) -> None:
    """Refuse a plain `.onnx` as the place of several models.

    Raises:
        OutputError: OUTPUT_PATH.
    """
    if output.suffix == ".onnx":
        raise OutputError(
            f"'{shown(output)}' is one file, but the model has parts: {', '.join(parts)}.", "Give a folder."
        )


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Bundle:
    """Artifacts by the name of their folder, on disk or in memory."""

    parts: Mapping[str, Artifact]
    manifest: Manifest
    """Its `parts`, `source`, `receipts` (of what checks the parts together) and `files`."""
    path: Path | None = None
    attachments: Mapping[str, Path | bytes] = dataclasses.field(default_factory=dict)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a folder after verifying every file that its manifest lists.

        Raises:
            ArtifactError: ARTIFACT_MANIFEST, ARTIFACT_MISSING, ARTIFACT_HASH, or it holds one artifact only
                (ARTIFACT_INVALID).
        """
        folder = Path(path)
        manifest = decoded_manifest(read_manifest(folder), folder / MANIFEST)
        if not manifest.parts:
            raise ArtifactError(
                f"'{shown(folder)}' holds one model, not several.", "Open it with Artifact.open.",
            )  # fmt: skip
        for name, record in manifest.files.items():
            verify_file(folder, name, record)
        parts = {name: Artifact.open(folder / name) for name in manifest.parts}
        others = {
            name: folder / name for name in manifest.files if name.partition("/")[0] not in manifest.parts
        }
        return cls(parts, manifest, folder, others)

    def save(self, path: str | Path) -> Bundle:
        """Write all parts, whole or not at all; return the bundle as it is on disk.

        Raises:
            OutputError: OUTPUT_PATH (also: a plain `.onnx` cannot hold several models) or DISK_FULL.
            ArtifactError: an attachment cannot be read (ARTIFACT_MISSING).
        """
        target = Path(path)
        need_folder_for(self.parts, target)
        records: dict[str, FileRecord] = {}
        with staged_folder(target, owned=owned_files(target)) as stage:
            for name, part in self.parts.items():
                (stage / name).mkdir()
                for file, record in part.fill(stage / name).items():
                    records[f"{name}/{file}"] = record
            for name in sorted(self.attachments):
                chunks = hashed(chunks_of_data(name, self.attachments[name]))
                write_file(stage / name, chunks)
                records[name] = chunks.record
            manifest = msgspec.structs.replace(self.manifest, parts=tuple(self.parts), files=records)
            write_file(stage / MANIFEST, encode(manifest))
        return Bundle.open(target)
