"""A few facts out of a serialised ModelProto without the onnx package: ops, nodes, inputs without a rank.

Weights are stepped over, so a file of any size costs what its nodes cost. Anything malformed ends the
walk with an error. Source: protobuf encoding (protobuf.dev/programming-guides/encoding), onnx.proto.
"""

from __future__ import annotations

import collections
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from burnish.errors import ModelError

Buffer = bytes | mmap.mmap
Span = tuple[int, int]
"""Where a message starts and ends in the buffer."""

_MODEL_GRAPH, _MODEL_FUNCTION = 7, 25
_GRAPH_NODE, _GRAPH_INPUT = 1, 11
_FUNCTION_NODE = 7
_NODE_NAME, _NODE_OP, _NODE_ATTRIBUTE, _NODE_DOMAIN = 3, 4, 5, 7
_NODE_VALUES: Final = (1, 2)  # inputs, outputs
_ATTRIBUTE_GRAPHS: Final = (6, 11)
_VALUE_NAME, _VALUE_TYPE = 1, 2
_TYPE_TENSOR, _TENSOR_SHAPE = 1, 2
_VARINT, _BYTES = 0, 2
_FIXED: Final = {1: 8, 5: 4}  # wire type -> bytes


def op_counts(model: bytes | Path) -> dict[str, int]:
    """Nodes of each op (`domain::Op` outside ai.onnx) in graph, subgraphs and functions, most frequent first.

    Raises:
        ModelError: not a protobuf (MODEL_PARSE).
        OSError: the file cannot be read.
    """
    counts: collections.Counter[str] = collections.Counter()
    data = _map(model)
    for number, span in _messages(data, (0, len(data))):
        if number in (_MODEL_GRAPH, _MODEL_FUNCTION):
            node = _GRAPH_NODE if number == _MODEL_GRAPH else _FUNCTION_NODE
            _count(data, span, node, counts)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


class Outline(NamedTuple):
    """A node: its name (empty: it has none) and the names of the values that it reads and makes."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def outlines(model: bytes | Path) -> list[Outline]:
    """The nodes of the main graph, in order.

    Raises:
        ModelError: not a protobuf (MODEL_PARSE).
        OSError: the file cannot be read.
    """
    data = _map(model)
    return [
        Outline(_text(data, node, _NODE_NAME), *(tuple(_texts(data, node, f)) for f in _NODE_VALUES))
        for number, graph in _messages(data, (0, len(data)))
        if number == _MODEL_GRAPH
        for field, node in _messages(data, graph)
        if field == _GRAPH_NODE
    ]


def rankless_inputs(model: bytes | Path) -> frozenset[str]:
    """Names of graph inputs whose type has no shape: their rank is unknown (onnxruntime calls them scalars).

    Raises:
        ModelError: not a protobuf (MODEL_PARSE).
        OSError: the file cannot be read.
    """
    data = _map(model)
    values = (
        value
        for number, graph in _messages(data, (0, len(data)))
        if number == _MODEL_GRAPH
        for field, value in _messages(data, graph)
        if field == _GRAPH_INPUT
    )
    return frozenset(_text(data, value, _VALUE_NAME) for value in values if not _has_shape(data, value))


def _map(model: bytes | Path) -> Buffer:
    if isinstance(model, bytes):
        return model
    with model.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _count(data: Buffer, graph: Span, node: int, counts: collections.Counter[str]) -> None:
    for number, span in _messages(data, graph):
        if number != node:
            continue
        domain = _text(data, span, _NODE_DOMAIN)
        op_type = _text(data, span, _NODE_OP)
        counts[op_type if domain in ("", "ai.onnx") else f"{domain}::{op_type}"] += 1
        for field, attribute in _messages(data, span):
            if field == _NODE_ATTRIBUTE:
                for part, body in _messages(data, attribute):
                    if part in _ATTRIBUTE_GRAPHS:
                        _count(data, body, _GRAPH_NODE, counts)


def _has_shape(data: Buffer, value: Span) -> bool:
    """True for a tensor with a shape, and for what is no tensor at all."""
    for number, type_ in _messages(data, value):
        if number == _VALUE_TYPE:
            for kind, tensor in _messages(data, type_):
                if kind == _TYPE_TENSOR:
                    return any(field == _TENSOR_SHAPE for field, _ in _messages(data, tensor))
    return True


def _text(data: Buffer, message: Span, wanted: int) -> str:
    return next(_texts(data, message, wanted), "")


def _texts(data: Buffer, message: Span, wanted: int) -> Iterator[str]:
    for number, (start, end) in _messages(data, message):
        if number == wanted:
            yield data[start:end].decode("utf-8", errors="replace")


def _messages(data: Buffer, span: Span) -> Iterator[tuple[int, Span]]:
    """(field number, place) of the length-delimited fields of a message; others are stepped over."""
    at, end = span
    while at < end:
        key, at = _varint(data, at, end)
        kind = key & 7
        if kind == _BYTES:
            size, at = _varint(data, at, end)
            if at + size > end:
                raise _broken(at)
            yield key >> 3, (at, at + size)
            at += size
        elif kind == _VARINT:
            _, at = _varint(data, at, end)
        elif kind in _FIXED:
            at += _FIXED[kind]
        else:
            raise _broken(at)


def _varint(data: Buffer, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _broken(at)


def _broken(at: int) -> ModelError:
    return ModelError(
        f"The model is not a readable protobuf at byte {at}.",
        "Export it again; it may be truncated.",
        code="MODEL_PARSE",
    )
