"""Weights that stay as their file quantised them: written in place of the floats, and compared with them.

Part of the orchestration (`burnish.exporting`): the exporter rewrites, onnxruntime judges.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from burnish.artifact import Artifact
from burnish.difference import Difference, worst
from burnish.errors import ExportError, MismatchError, nearest
from burnish.feeds import Assignment, make_feeds
from burnish.lending import judge
from burnish.manifest import Receipt
from burnish.model import copy_model, node_count
from burnish.passes.base import Numerics
from burnish.runtime.reference import Reference

if TYPE_CHECKING:
    from burnish.exporter.decoding import Graph

Weights = Literal["float", "keep"]
WEIGHTS: Final[tuple[Weights, ...]] = ("float", "keep")
_STEP: Final = "keep-weights"
_LARGE: Final = 10**12
"""Parameters of the largest models, of which each size of a dim is compared once."""


def check_weights(weights: str, stored: Mapping[str, Any] | None) -> bool:
    """True where weights are to be kept as they are stored.

    Raises:
        ExportError: there is no such choice, or the source stores nothing quantised (EXPORT_WEIGHTS).
    """
    if weights not in WEIGHTS:
        raise ExportError(
            f"No way to write weights is called {weights!r}.",
            nearest(weights, WEIGHTS),
            code="EXPORT_WEIGHTS",
        )
    if weights == "keep" and not stored:
        raise ExportError(
            "Only the weights of a GGUF file can be kept as they are stored.",
            "Leave weights='keep' out; burnish quantize makes a float model int8.",
            code="EXPORT_WEIGHTS",
        )
    return weights == "keep"


def keep_weights(artifact: Artifact, stored: Mapping[str, Any], *, seed: int) -> tuple[Artifact, Graph]:
    """The artifact with its weights as they are stored, where that is exact; and its graph, ready to run.

    Args:
        artifact: with float32 weights.
        stored: what the file stores, by state-dict name.
        seed: of the random inputs on which both are compared.

    Raises:
        MismatchError: an output differs by more than rounding (EXPORT_PARITY).
    """
    from burnish.exporter.decoding import Graph
    from burnish.exporter.gguf_blocks import keep_blocks

    start = time.perf_counter()
    before, after = artifact.model, copy_model(artifact.model)
    kept = keep_blocks(after, stored)
    run = judge(after)
    found, compared = _compared(artifact, judge(before), run, seed)
    furthest = max(found, key=lambda apart: apart.max_rel)
    if not furthest.within(Numerics.ROUNDING.tolerance):
        raise MismatchError(
            f"With its weights as they are stored, the graph differs from the float one in output "
            f"{furthest.name!r}: {furthest.max_rel:.3g} (allowed {Numerics.ROUNDING.tolerance:g}).",
            "Export it with weights='float'.",
            code="EXPORT_PARITY",
        )
    receipt = Receipt(
        step=_STEP, rewrites=kept.weights, numerics=Numerics.ROUNDING.name.lower(),
        max_abs_error=max(apart.max_abs for apart in found), max_rel_error=furthest.max_rel,
        nodes_before=node_count(before), nodes_after=node_count(after), assignments=tuple(compared),
        notes=kept.notes, seconds=time.perf_counter() - start,
    )  # fmt: skip
    receipts = (*artifact.manifest.receipts, receipt)
    manifest = msgspec.structs.replace(artifact.manifest, receipts=receipts)
    return Artifact.create(after, manifest, artifact.attachments), Graph(manifest, run)


def _compared(
    artifact: Artifact, before: Reference, after: Reference, seed: int
) -> tuple[list[Difference], list[Assignment]]:
    """How far apart they are, at sizes that hold each level of each dim at least once."""
    from burnish.exporter.lattice import lattice

    interface = artifact.manifest
    sizes = lattice(interface.inputs, interface.dims, _LARGE)
    cases = [make_feeds(interface.inputs, each, seed=seed + number) for number, each in enumerate(sizes)]
    return [worst(before(feeds), after(feeds)) for feeds in cases], sizes
