"""An `.onnx` file as a source of `burnish export`: moved to the asked opset, and compared with what it was.

Part of the orchestration: the converters are the exporter's, the judge is onnxruntime's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from burnish.artifact import Artifact
from burnish.checking import DifferentialChecker
from burnish.errors import ExportError, MismatchError, nearest
from burnish.exporter.dims import read_range
from burnish.exporter.opsets import Conversion, conversions
from burnish.manifest import Manifest, Receipt
from burnish.model import node_count, signature
from burnish.passes.base import Numerics
from burnish.versions import versions

Ranges = Mapping[str, tuple[int, int | None]]
Tell = Callable[[str], object]
"""Told what is being done."""


_UNUSED: Final[Mapping[str, object]] = {
    "last_logits_only": True, "weights": "float", "dtype": "auto", "keep_metadata": False, "layers_once": True
}  # fmt: skip
"""Options that only a model of PyTorch has, with what they are where nobody asks; None for the others."""


def need_no_more(path: Path, options: Mapping[str, object]) -> None:
    """Refuse what would be left undone for an `.onnx` file.

    Raises:
        ExportError: an option is only for a model of PyTorch (EXPORT_SOURCE).
    """
    for name, value in options.items():
        if name != "trust_code" and value is not None and (name not in _UNUSED or value != _UNUSED[name]):
            raise ExportError(
                f"{path.name!r} is moved to an opset as it is: {name} is for a model of PyTorch.",
                "Leave it out; burnish optimize, quantize and run take the .onnx file.",
                code="EXPORT_SOURCE",
            )


def upgrade(
    path: Path, opset: int, *, seed: int = 0, ranges: Ranges | None = None, tell: Tell = lambda _: None
) -> Artifact:
    """A model at another opset, compared with the one before at several sizes of every dynamic dim.

    Weights in data files stay there, memory-mapped, until the result is written.

    Args:
        path: of the `.onnx` file.
        opset: at least the model's own.
        seed: of the random inputs on which it is compared.
        ranges: `(min, max)` of its dynamic dims by name, which a file alone does not say.
        tell: told what is being done.

    Raises:
        ModelError, ExternalDataError: the file cannot be used, or onnxruntime cannot run it.
        ExportError: the opset is lower than the model's, or an operator cannot be converted
            (EXPORT_OPSET); it has no dim of that name, or a range cannot be (EXPORT_DYNAMIC).
        MismatchError: what the converters made computes something else (EXPORT_PARITY).
    """
    tell("loading")
    given = Artifact.from_onnx(path)
    known = _within(given.manifest, ranges or {})
    checker = DifferentialChecker(known, seed=seed)
    failure = ""
    for made in conversions(given.model, opset):
        tell(f"comparing opset {opset} with opset {made.before}")
        verdict = checker(given.model, made.model, Numerics.ROUNDING)
        if not verdict.keeps(Numerics.ROUNDING):
            failure = f"output {verdict.difference.name!r} differs by {verdict.difference.max_rel:.3g}"
            failure = verdict.failure or failure
            continue
        receipt = Receipt(
            step="export", numerics=Numerics.ROUNDING.name.lower(), nodes_before=node_count(given.model),
            nodes_after=node_count(made.model), max_abs_error=verdict.difference.max_abs,
            max_rel_error=verdict.difference.max_rel, assignments=verdict.assignments,
            notes=(*made.notes, *verdict.notes(Numerics.ROUNDING), *checker.notes),
        )  # fmt: skip
        return Artifact.create(made.model, _manifest(path, known, made, receipt))
    raise MismatchError(
        f"{path.name!r} computes something else at opset {opset}: {failure}.",
        "Ask for an opset nearer to the model's own, or export it again from its source.",
        code="EXPORT_PARITY",
    )


def _within(known: Manifest, ranges: Ranges) -> Manifest:
    """The manifest with these ranges of its dims."""
    for name in ranges:
        if name not in known.dims:
            raise ExportError(
                f"No dynamic dim is named {name!r}.", nearest(name, known.dims), code="EXPORT_DYNAMIC"
            )
    found = {name: read_range(name, *given) for name, given in ranges.items()}
    return msgspec.structs.replace(known, dims=known.dims | found)


def _manifest(path: Path, known: Manifest, made: Conversion, receipt: Receipt) -> Manifest:
    found = signature(made.model, known)
    return msgspec.structs.replace(
        found, source=known.source or f"ONNX file {path.name!r}", receipts=(*known.receipts, receipt),
        recipe=known.recipe, versions=versions(), files={},
    )  # fmt: skip
