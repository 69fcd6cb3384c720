"""What `burnish.json` says: inputs and outputs with their dynamic ranges, recipe, receipts, hashes.

Everything here is deterministic: the same input, recipe and versions give the same bytes. What differs
from run to run (seconds) is in the fields that `Receipt.timeless` clears.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

FORMAT: Final = 1

Dim = int | str | None
"""A fixed size, the name of a dynamic dim, or None: dynamic without a name."""

Meaning = Literal["values", "token_ids", "mask", "positions", "segments"]
"""What an input holds. `values` are free; the others are integers with the range of their kind."""


class TensorSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """An input or output: dtype as numpy spells it (`float32`, `int64`, `bool`, `bfloat16`)."""

    name: str
    dtype: str
    shape: tuple[Dim, ...] | None = None
    """None: the rank is unknown."""
    meaning: Meaning = "values"
    high: int | None = None
    """token_ids and positions are below it (rows of the embedding table)."""


class DimRange(msgspec.Struct, frozen=True, omit_defaults=True):
    """The sizes that a dynamic dim may take: min <= size <= max (None: no bound)."""

    min: int = 1
    max: int | None = None


class Receipt(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one step did and how it was checked. Errors are against the model before the step."""

    step: str
    """The text of the pass, or `export`."""
    rewrites: int = 0
    status: Literal["kept", "unchanged", "rolled-back"] = "kept"
    numerics: str = "exact"
    max_abs_error: float | None = None
    """None: nothing changed, so nothing was compared."""
    max_rel_error: float | None = None
    """Largest |a - b| / max(1, max |b|) of an output; relative L2 norm for a lossy or coarse step."""
    nodes_before: int = 0
    nodes_after: int = 0
    assignments: tuple[dict[str, int], ...] = ()
    """The sizes of the dynamic dims it was compared at."""
    places: str = ""
    """Where it was compared, if not at the outputs: at the values that the step changed."""
    notes: tuple[str, ...] = ()
    """What did not fire and why, what was rolled back, what random data stood in for."""
    measured: tuple[str, ...] = ()
    """What was timed to decide, with the numbers."""
    seconds: float | None = None

    def timeless(self) -> Receipt:
        """The receipt without what differs from run to run: `measured` and `seconds`."""
        return msgspec.structs.replace(self, measured=(), seconds=None)


class FileRecord(msgspec.Struct, frozen=True):
    """Size in bytes and sha256 (hex) of one file of an artifact."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """The content of `burnish.json`."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dims: dict[str, DimRange] = {}
    target: str = "portable"
    """`portable`, or the only target this artifact is good for."""
    recipe: str = ""
    receipts: tuple[Receipt, ...] = ()
    source: str = ""
    """Where the model came from, in words."""
    versions: dict[str, str] = {}
    parts: tuple[str, ...] = ()
    """Of a bundle: the folders of its artifacts. It has no inputs and outputs of its own."""
    files: dict[str, FileRecord] = {}
    """Every file of the artifact but the manifest, by its relative path."""
    format: int = FORMAT

    def input(self, name: str) -> TensorSpec | None:
        """The input of that name, or None."""
        return next((spec for spec in self.inputs if spec.name == name), None)


def encode(manifest: Manifest) -> bytes:
    """The manifest as JSON text, indented and sorted: the same manifest gives the same bytes."""
    timeless = tuple(receipt.timeless() for receipt in manifest.receipts)
    plain = msgspec.structs.replace(manifest, receipts=timeless)
    return msgspec.json.format(msgspec.json.encode(plain, order="sorted"), indent=2) + b"\n"


def decode(data: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        msgspec.DecodeError: not JSON, or a field is missing or of the wrong type.
    """
    return msgspec.json.decode(data, type=Manifest)
