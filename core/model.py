"""`ir.Model` in and out: load, serialise, describe. The only part of the spine that knows onnx-ir.

`burnish.runtime` never imports this module: an application that embeds the runtime has no onnx-ir.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import onnx_ir as ir

from burnish.errors import ModelError
from burnish.manifest import Dim, DimRange, Manifest, Meaning, TensorSpec

_TOKENS: Final = re.compile(r"(^|_)(input_)?ids$|tokens?$")
_MASK: Final = re.compile(r"mask$")
_POSITIONS: Final = re.compile(r"position(_ids|s)?$")
_SEGMENTS: Final = re.compile(r"token_type(_ids)?$|segment(_ids)?$")


def copy_model(model: ir.Model) -> ir.Model:
    """A copy whose graph shares nothing with the original but its (immutable) tensors."""
    return model.clone(deep_copy=False)


def to_bytes(model: ir.Model) -> bytes:
    """The model as one protobuf, weights inside.

    Raises:
        ModelError: it is over 2 GB, protobuf's limit (TENSOR_SIZE).
    """
    try:
        return ir.to_proto(model).SerializeToString()
    except ValueError as error:
        raise ModelError(
            f"The model does not fit into one protobuf: {error}.",
            "Save it with external data.",
            code="TENSOR_SIZE",
        ) from error


def node_count(model: ir.Model) -> int:
    """Nodes of the main graph, subgraphs and functions; Constant nodes count."""
    functions = sum(1 for function in model.functions.values() for _ in function.all_nodes())
    return sum(1 for _ in model.graph.all_nodes()) + functions


def expose(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy of the model with those values of the main graph as additional outputs.

    Raises:
        ModelError: the main graph has no such value (GRAPH_DANGLING).
    """
    copy = copy_model(model)
    values = {value.name: value for node in copy.graph for value in node.outputs}
    values |= {value.name: value for value in copy.graph.inputs}
    outputs = {value.name for value in copy.graph.outputs}
    for name in names:
        if name not in values:
            raise ModelError(
                f"The graph has no value {name!r}.",
                "Name a value of the main graph.",
                code="GRAPH_DANGLING",
            )
        if name not in outputs:
            copy.graph.outputs.append(values[name])
    return copy


def signature(model: ir.Model, known: Manifest | None = None) -> Manifest:
    """What goes in and out of a model, as a fresh manifest.

    What `known` (the manifest the model came with) says of an input's meaning and of the dims is kept;
    otherwise the meaning is read from names and from the embedding table that an input indexes.
    """
    inputs = tuple(_input(value, known) for value in model.graph.inputs if not value.is_initializer())
    outputs = tuple(_spec(value) for value in model.graph.outputs)
    used = {dim for spec in (*inputs, *outputs) for dim in spec.shape or () if isinstance(dim, str)}
    dims = {name: range_ for name, range_ in (known.dims if known else {}).items() if name in used}
    return Manifest(
        inputs=inputs,
        outputs=outputs,
        dims=dims | {name: DimRange() for name in sorted(used - dims.keys())},
        target=known.target if known else "portable",
        source=known.source if known else "",
        recipe=known.recipe if known else "",
        receipts=known.receipts if known else (),
    )


def _input(value: ir.Value, known: Manifest | None) -> TensorSpec:
    before = known.input(value.name or "") if known else None
    spec = _spec(value)
    if before is not None:
        return TensorSpec(spec.name, spec.dtype, spec.shape, before.meaning, before.high)
    meaning = _meaning(value)
    high = _table_rows(value) if meaning in ("token_ids", "positions", "segments") else None
    return TensorSpec(spec.name, spec.dtype, spec.shape, meaning, high)


def _spec(value: ir.Value) -> TensorSpec:
    dtype = value.dtype or ir.DataType.FLOAT
    name = "str" if dtype == ir.DataType.STRING else str(dtype.numpy())
    return TensorSpec(value.name or "", name, _shape(value.shape))


def _shape(shape: ir.Shape | None) -> tuple[Dim, ...] | None:
    if shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in shape)


def _meaning(value: ir.Value) -> Meaning:
    name = (value.name or "").rpartition(".")[2].lower()
    if value.dtype is None or value.dtype.is_floating_point():
        return "mask" if _MASK.search(name) else "values"
    kinds: tuple[tuple[re.Pattern[str], Meaning], ...] = (
        (_POSITIONS, "positions"), (_SEGMENTS, "segments"), (_MASK, "mask"), (_TOKENS, "token_ids"),
    )  # fmt: skip
    for pattern, meaning in kinds:
        if pattern.search(name):
            return meaning
    return "token_ids" if _table_rows(value) else "values"


def _table_rows(value: ir.Value, depth: int = 4) -> int | None:
    """Rows of the smallest table that the value indexes by Gather (through Casts and Reshapes)."""
    rows = []
    for node, index in value.uses():
        if node.op_type == "Gather" and index == 1:
            table = node.inputs[0]
            axis = node.attributes.get_int("axis", 0)
            if table is not None and table.const_value is not None and axis == 0:
                rows.append(int(table.const_value.shape.numpy()[0]))
        elif depth and node.op_type in ("Cast", "Reshape", "Identity", "Unsqueeze", "Squeeze"):
            rows.append(_table_rows(node.outputs[0], depth - 1))
    return min((row for row in rows if row), default=None)


def histogram(model: ir.Model) -> dict[str, int]:
    """How many nodes of each op (`domain::Op` outside ai.onnx), most frequent first."""
    counts: dict[str, int] = {}
    for node in _all_nodes(model):
        name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _all_nodes(model: ir.Model) -> Iterable[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def load_model(path: str | Path) -> ir.Model:
    """Read an `.onnx` file after checking it; tensors stay memory-mapped until touched.

    Raises:
        ModelError: the file or its graph cannot be used; the code says why.
        ExternalDataError: external data is missing, out of bounds or outside the folder.
    """
    return ir.load(path)
