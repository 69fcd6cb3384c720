"""An `.onnx` file as a source of `burnish export`: moved to the asked opset, and compared with what it was.

Part of the orchestration: the converters are the exporter's, the judge is onnxruntime's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from burnish.artifact import Artifact
from burnish.checking import DifferentialChecker
from burnish.errors import MismatchError
from burnish.exporter.opsets import Conversion, conversions
from burnish.manifest import Manifest, Receipt
from burnish.model import node_count, signature
from burnish.passes.base import Numerics
from burnish.versions import versions

Tell = Callable[[str], object]
"""Told what is being done."""


def upgrade(path: Path, opset: int, *, seed: int = 0, tell: Tell = lambda _: None) -> Artifact:
    """A model at another opset, compared with the one before at several sizes of every dynamic dim.

    Weights in data files stay there, memory-mapped, until the result is written.

    Raises:
        ModelError, ExternalDataError: the file cannot be used, or onnxruntime cannot run it.
        ExportError: the opset is lower than the model's, or an operator cannot be converted
            (EXPORT_OPSET).
        MismatchError: what the converters made computes something else (EXPORT_PARITY).
    """
    tell("loading")
    given = Artifact.from_onnx(path)
    checker = DifferentialChecker(given.manifest, seed=seed)
    failure = ""
    for made in conversions(given.model, opset):
        tell(f"comparing opset {opset} with opset {made.before}")
        verdict = checker(given.model, made.model, Numerics.ROUNDING)
        if not verdict.difference.within(Numerics.ROUNDING.tolerance):
            failure = f"output {verdict.difference.name!r} differs by {verdict.difference.max_rel:.3g}"
            failure = verdict.failure or failure
            continue
        receipt = Receipt(
            step="export", numerics=Numerics.ROUNDING.name.lower(), nodes_before=node_count(given.model),
            nodes_after=node_count(made.model), max_abs_error=verdict.difference.max_abs,
            max_rel_error=verdict.difference.max_rel, assignments=verdict.assignments,
            notes=(*made.notes, *checker.notes),
        )  # fmt: skip
        return Artifact.create(made.model, _manifest(path, given.manifest, made, receipt))
    raise MismatchError(
        f"{path.name!r} computes something else at opset {opset}: {failure}.",
        "Ask for an opset nearer to the model's own, or export it again from its source.",
        code="EXPORT_PARITY",
    )


def _manifest(path: Path, known: Manifest, made: Conversion, receipt: Receipt) -> Manifest:
    found = signature(made.model, known)
    return msgspec.structs.replace(
        found, source=known.source or f"ONNX file {path.name!r}", receipts=(*known.receipts, receipt),
        recipe=known.recipe, versions=versions(), files={},
    )  # fmt: skip
