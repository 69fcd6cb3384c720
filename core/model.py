"""`ir.Model` in and out: load, save, serialise, describe. With `weights` the only part that knows onnx-ir.

`burnish.runtime` never imports this module: an application that embeds the runtime has no onnx-ir.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, final

import msgspec
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes.common import RemoveUnusedNodesPass

from burnish.dim_sums import is_name, names_of
from burnish.disk import Chunk
from burnish.errors import ModelError, shown
from burnish.files import Data, write_together
from burnish.graph_check import validate
from burnish.manifest import Dim, DimRange, FileRecord, Manifest, Meaning, TensorSpec, encode
from burnish.model_file import read_model_file
from burnish.reader import hashed, record_of, sidecar_path
from burnish.serialising import SERDE, pieces, root_of, serialise
from burnish.weights import content, embed, has_external, lay_out, refer, set_folder, weight_bytes

EXTERNAL_THRESHOLD: Final = 1_500_000_000
"""Bytes of weights from which on they go into a data file; protobuf's limit is 2 GB."""

_TOKENS: Final = re.compile(r"(^|_)(input_)?ids$|tokens?$")
_MASK: Final = re.compile(r"mask$")
_POSITIONS: Final = re.compile(r"position(_ids|s)?$")
_SEGMENTS: Final = re.compile(r"token_type(_ids)?$|segment(_ids)?$")
_MOVES: Final = frozenset(
    ("Cast", "Expand", "Identity", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
)
"""Operators that keep the values of their first input."""


def copy_model(model: ir.Model) -> ir.Model:
    """A copy whose graph shares nothing with the original but its (immutable) tensors."""
    return model.clone(deep_copy=False)


def to_bytes(model: ir.Model) -> bytes:
    """The model as one protobuf, weights inside (external ones too); the same model gives the same bytes.

    Raises:
        ModelError: it is over 2 GB, protobuf's limit (MODEL_SIZE).
    """
    if has_external(model):
        model = copy_model(model)
        embed(model)
    return serialise(model)


def graph_bytes(model: ir.Model) -> bytes:
    """The model as one protobuf that goes on referring to its data files.

    Raises:
        ModelError: it is over 2 GB without them (MODEL_SIZE).
    """
    return serialise(model)


def node_count(model: ir.Model) -> int:
    """Nodes of the main graph, subgraphs and functions; Constant nodes count."""
    count, todo = 0, [model.graph, *(function.graph for function in model.functions.values())]
    while todo:
        graph = todo.pop()
        count += len(graph)
        for attributes in (node.attributes.data for node in graph):  # the mapping around it is slow
            for attribute in attributes.values():
                if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
                    todo.append(attribute.as_graph())
                elif attribute.type == ir.AttributeType.GRAPHS and not attribute.is_ref():
                    todo.extend(attribute.as_graphs())
    return count


def expose(model: ir.Model, names: Sequence[str], *, alone: bool = False) -> ir.Model:
    """A copy of the model with those values of the main graph as additional outputs, or `alone`.

    Alone: without the outputs of the model, and without the nodes that only they need.

    Raises:
        ModelError: the main graph has no such value (GRAPH_DANGLING).
    """
    copy = copy_model(model)
    values = {value.name: value for node in copy.graph for value in node.outputs}
    values |= {value.name: value for value in copy.graph.inputs}
    if alone:
        copy.graph.outputs.clear()
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
    if alone:
        RemoveUnusedNodesPass()(copy)
    return copy


def signature(model: ir.Model, known: Manifest | None = None) -> Manifest:
    """What goes in and out of a model, as a fresh manifest.

    What `known` (the manifest the model came with) says of an input's meaning and of the dims is kept;
    otherwise the meaning is read from names and from the embedding table that an input indexes. Dims of
    outputs that are computed from others (`2*height`) have no range of their own.
    """
    inputs = tuple(_input(value, known) for value in model.graph.inputs if not value.is_initializer())
    outputs = tuple(_spec(value) for value in model.graph.outputs)
    free = {dim for spec in inputs for dim in spec.shape or () if isinstance(dim, str)}
    made = {dim for spec in outputs for dim in spec.shape or () if isinstance(dim, str)}
    used = {name for dim in free | set(filter(is_name, made)) for name in names_of(dim)}
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
    return tuple(_dim(dim) for dim in shape)


def _dim(dim: int | ir.SymbolicDim) -> Dim:
    """A size, a name, or None where older exporters wrote -1 or ? for a size they did not know."""
    size = dim if isinstance(dim, int) else dim.value
    if isinstance(size, int):
        return size if size >= 0 else None
    return None if size == "?" else size


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
    """Rows of the smallest table that the value indexes by Gather (through Casts, padding and the like)."""
    rows: list[int | None] = []
    for node, index in value.uses():
        if node.op_type == "Gather" and index == 1:
            table = node.inputs[0]
            axis = node.attributes.get_int("axis", 0)
            if table is not None and table.const_value is not None and axis == 0:
                rows.append(int(table.const_value.shape.numpy()[0]))
        elif depth and index == 0 and node.op_type in _MOVES:
            rows.append(_table_rows(node.outputs[0], depth - 1))
    return min((row for row in rows if row), default=None)


def histogram(model: ir.Model) -> dict[str, int]:
    """How many nodes of each op (`domain::Op` outside ai.onnx), most frequent first."""
    counts: dict[str, int] = {}
    for node in _all_nodes(model):
        name = op_name(node)
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def op_name(node: ir.Node) -> str:
    """The op of a node, as `domain::Op` outside ai.onnx."""
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def _all_nodes(model: ir.Model) -> Iterable[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def load_model(path: str | Path) -> ir.Model:
    """Read an `.onnx` file after checking it; external tensors stay memory-mapped until touched.

    Nodes in another than topological order, which onnxruntime accepts, are sorted.

    Raises:
        ModelError: the file or its graph cannot be used; the code says why.
        ExternalDataError: external data is missing, out of bounds or outside the folder.
    """
    data, file = read_model_file(path)
    name = shown(path)
    try:
        proto = onnx.ModelProto.FromString(data)
        del data
        ordered = validate(proto, name)
        model: ir.Model = ir.from_proto(proto)
    except DecodeError as error:
        deep = "Depth" in str(error)
        raise ModelError(
            f"{name} does not parse: {error}.",
            "Reduce the nesting of If, Loop and Scan." if deep else "Copy or export it again.",
            code="MODEL_DEPTH" if deep else "MODEL_PARSE",
        ) from error
    except SERDE as error:
        raise ModelError(
            f"{name} holds what onnx-ir cannot represent: {root_of(error)}.",
            "Remove it from the model; map types and sparse tensors are not supported.",
            code="MODEL_UNSUPPORTED",
        ) from error
    set_folder(model, file.path.absolute().parent)
    if not ordered:
        model.graph.sort()
        for function in model.functions.values():
            function.sort()
    return model


def save_model(
    model: ir.Model, path: str | Path, manifest: Manifest, *, external_threshold: int = EXTERNAL_THRESHOLD
) -> None:
    """Write a plain `.onnx`, with `NAME.burnish.json` beside it, and a data file when it is large.

    The data file is named by its content (`NAME.<sha256>.data`) and written first, so that at every moment
    the old or the new model can be loaded; data files of earlier versions go last. A model that was loaded
    from the same path is to be loaded again.

    Args:
        model: stays as it is.
        path: of the `.onnx` file.
        manifest: what the sidecar says; sizes and hashes are filled in.
        external_threshold: bytes of weights from which on they go into a data file.

    Raises:
        OutputError: OUTPUT_PATH or DISK_FULL; the previous files are untouched.
        ModelError: MODEL_SIZE: it is over 2 GB without what can go into a data file.
    """
    path = Path(path)
    files: dict[str | Path, Data] = {}
    records: dict[str, FileRecord] = {}
    if weight_bytes(model) < external_threshold:
        data = pieces(model)
    else:
        split = Split(model)
        record = record_of(split.content())
        location = f"{path.stem}.{record.sha256[:16]}.data"
        files[path.with_name(location)], records[location] = split.content(), record
        data = iter((split.to_bytes(location),))
    files[path] = written = hashed(data)
    files[sidecar_path(path)] = _sidecar(manifest, records, path.name, written)
    write_together(files, remove=[old for old in _data_files(path) if old not in files])


def _sidecar(
    manifest: Manifest, records: Mapping[str, FileRecord], name: str, written: hashed
) -> Iterator[bytes]:
    """The manifest, as soon as the model itself is written."""
    yield encode(msgspec.structs.replace(manifest, files={**records, name: written.record}))


@final
class Split:
    """A model about to be written with its weights in a data file; the model stays as it is."""

    def __init__(self, model: ir.Model) -> None:
        self._model = copy_model(model)
        self._places = lay_out(self._model)

    def content(self) -> Iterator[Chunk]:
        """The bytes of the data file, one tensor at a time."""
        return content(self._places)

    def to_bytes(self, location: str) -> bytes:
        """The model as one protobuf that refers to the data file `location` beside it.

        Raises:
            ModelError: it is over 2 GB without the data file (MODEL_SIZE).
        """
        embed(self._model, but=self._places)
        refer(self._places, location)
        return serialise(self._model)


def _data_files(path: Path) -> list[Path]:
    """Data files that `save_model` wrote for this path."""
    name = re.compile(re.escape(path.stem) + r"\.[0-9a-f]{16}\.data")
    try:
        return sorted(file for file in path.parent.iterdir() if name.fullmatch(file.name))
    except OSError:
        return []
