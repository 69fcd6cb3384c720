"""transformers' own mends for what torch.export cannot trace or translates wrongly.

transformers ships them with its exporters (`transformers.exporters`): patches of models and of torch
functions while they are traced, repairs of traced nodes, and translations of operators. They are used where
a plain trace fails: that one is of the code that really runs. The result is compared with PyTorch either way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from burnish.exporter.needs import need, torch
from burnish.exporter.sizes import SizesStaySizes, lengths_stay_sizes
from burnish.exporter.translations import translations
from burnish.exporter.values import copies

MENDED: Final = frozenset(
    {"EXPORT_DATA_DEPENDENT", "EXPORT_FAILED", "EXPORT_PARITY", "EXPORT_SPECIALISED", "EXPORT_UNSUPPORTED_OP"}
)
"""Failures after which a trace with the mends is worth a try."""

NOTE: Final = "traced with transformers' own patches, as a plain trace fails"
"""What the receipt of such an export says."""


def has_fixes(module: Any) -> bool:
    """True for a model of transformers."""
    return any(kind.__module__.startswith("transformers.") for kind in type(module).__mro__)


@contextlib.contextmanager
def fixes(module: Any) -> Iterator[None]:
    """The patches are in place inside the block, and sizes are divided as sizes."""
    onnx = need("transformers.exporters.exporter_onnx")
    dynamo = need("transformers.exporters.exporter_dynamo")
    with (
        onnx.apply_patches("dynamo"),
        onnx.apply_patches("onnx"),
        dynamo.reset_model_state(module),
        torch.fx.experimental._config.patch(backed_size_oblivious=True),
        SizesStaySizes(),
        lengths_stay_sizes(module),
    ):
        yield


def trace(module: Any, named: Mapping[str, Any], shapes: Mapping[str, Any]) -> Any:
    """The module as a `torch.export.ExportedProgram`; to be called inside `fixes`.

    Args:
        module: in eval mode.
        named: example inputs by parameter name.
        shapes: what torch.export takes as `dynamic_shapes`.
    """
    return torch.export.export(
        module, (), kwargs=copies(named), dynamic_shapes=shapes, strict=False,
        prefer_deferred_runtime_asserts_over_guards=True,
    )  # fmt: skip


def translate(traced: Any, opset: int) -> Any:
    """The ONNX program of a traced one, with transformers' repairs and translations; not optimised.

    To be called inside `fixes`.

    Args:
        traced: a `torch.export.ExportedProgram`; its nodes are repaired in place.
        opset: of the graph.
    """
    onnx = need("transformers.exporters.exporter_onnx")
    onnx.apply_fx_node_fixes("onnx", traced.graph_module)
    table: Mapping[Any, Any] = onnx._ONNX_TRANSLATION_TABLE
    program = torch.onnx.export(
        traced, opset_version=opset, dynamo=True, optimize=False, verbose=False,
        custom_translation_table=translations() | dict(table),
    )  # fmt: skip
    onnx.apply_onnx_ir_fixes(program)
    return program
