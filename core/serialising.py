"""A model as the bytes of its protobuf: whole, or piece by piece, so that large weights are never in memory.

The pieces together are exactly what `burnish.model.to_bytes` gives. What protobuf would hold twice on the way
(the message, and its bytes) is only the graph; the values of large initializers are put in between.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, final

import onnx
import onnx_ir as ir
from google.protobuf.message import EncodeError, Message

from burnish.disk import Chunk
from burnish.errors import ModelError, shown
from burnish.weights import DataFiles, byte_size, dims_of, embedded, weight_bytes

MOST: Final = 2**31 - 1
"""Bytes of one protobuf."""
SERDE: Final = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""What onnx-ir raises for what it cannot represent; its SerdeError is a RuntimeError."""
_RARE: Final = ("segment", "data_location")
_REPEATED: Final = (
    "float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data", "external_data",
    "metadata_props",
)  # fmt: skip
_LEAST: Final = 1 << 16  # bytes of values that are worth a place of their own
_PIECE: Final = 1 << 19  # bytes that small pieces are gathered to


def serialise(model: ir.Model) -> bytes:
    """The model as it is, as one protobuf; the same model gives the same bytes.

    Raises:
        ModelError: it is over 2 GB without its data files (MODEL_SIZE), or cannot be written
            (MODEL_UNSUPPORTED).
    """
    inside = weight_bytes(model, external=False)
    if inside <= MOST:
        try:
            return _bytes(_proto(model))
        except EncodeError:  # the graph itself, besides its weights, takes it over the limit
            pass
    raise _too_large(model, inside)


def _proto(model: ir.Model) -> onnx.ModelProto:
    try:
        return ir.to_proto(model)
    except SERDE as error:
        raise ModelError(
            f"Graph '{shown(model.graph.name)}' holds what cannot be written as ONNX: {root_of(error)}.",
            "Look at the attribute or tensor it names.",
            code="MODEL_UNSUPPORTED",
        ) from error


def _bytes(message: Message) -> bytes:
    return bytes(message.SerializeToString(deterministic=True))


def _too_large(model: ir.Model, inside: int) -> ModelError:
    return ModelError(
        f"Graph '{shown(model.graph.name)}' does not fit into one protobuf: {inside} bytes of its weights "
        "are inside.",
        "Save it with external data: save_model(model, path, manifest, external_threshold=0).",
        code="MODEL_SIZE",
    )


def root_of(error: BaseException) -> str:
    """What went wrong first, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return shown(f"{type(error).__name__}: {error}")


def pieces(model: ir.Model) -> Iterator[Chunk]:
    """The model as one protobuf, weights inside (external ones too), in pieces of a few MB.

    The graph is serialised at once, so that what is wrong with it is known before anything is written;
    weights are read when their piece is asked for.

    Raises:
        ModelError: it is over 2 GB, protobuf's limit (MODEL_SIZE), or cannot be written (MODEL_UNSUPPORTED).
        ExternalDataError: while the pieces are taken: a data file is gone or cut.
    """
    with _set_apart(model) as apart:
        proto = _proto(model)
    try:
        fields = [_Field.of(tensor, apart.get(tensor.name)) for tensor in proto.graph.initializer]
        head, tail = _around(proto.graph, "initializer")
        start, end = _around(proto, "graph")
    except EncodeError as error:
        raise _too_large(model, weight_bytes(model)) from error
    size = len(head) + sum(field.size for field in fields) + len(tail)
    opening = start + _key(proto, "graph", size) + head
    if len(opening) + size - len(head) + len(end) > MOST:
        raise _too_large(model, weight_bytes(model))
    return _gathered(_chunks(opening, fields, tail + end))


def _chunks(opening: bytes, fields: Iterable[_Field], ending: bytes) -> Iterator[Chunk]:
    yield opening
    with DataFiles() as files:
        for field in fields:
            yield field.head
            if field.values is not None:
                yield from files.bytes_of(field.values)
            yield field.tail
    yield ending


@contextlib.contextmanager
def _set_apart(model: ir.Model) -> Iterator[dict[str, ir.TensorProtocol]]:
    """In the block, initializers of the main graph have no values: large ones, and those in data files.

    They are yielded by name; at the end all are where they were. Other tensors of data files are in memory.
    """
    found: dict[str, ir.TensorProtocol] = {}
    initializers = model.graph.initializers
    try:
        for name, value in initializers.items():
            tensor = value.const_value
            if tensor is not None and _is_apart(tensor):
                found[name] = tensor
                value.const_value = _without_values(tensor)
        with embedded(model):
            yield found
    finally:
        for name, tensor in found.items():
            initializers[name].const_value = tensor


def _is_apart(tensor: ir.TensorProtocol) -> bool:
    """True for values worth a place of their own, written as `raw_data` with nothing unusual beside them."""
    if isinstance(tensor, ir.ExternalTensor):
        return tensor.dtype != ir.DataType.STRING
    is_large = byte_size(tensor) >= _LEAST
    if not is_large or not isinstance(tensor, ir.TensorProtoTensor):
        return is_large and tensor.dtype != ir.DataType.STRING
    raw = tensor.raw  # to list its fields would copy the values
    return raw.HasField("raw_data") and not (
        any(raw.HasField(name) for name in _RARE) or any(len(getattr(raw, name)) for name in _REPEATED)
    )


def _without_values(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    proto = onnx.TensorProto(data_type=tensor.dtype.value, dims=dims_of(tensor))
    if tensor.doc_string:
        proto.doc_string = tensor.doc_string
    bare = ir.TensorProtoTensor(proto)
    bare.metadata_props.update(tensor.metadata_props)
    return bare


@final
class _Field(NamedTuple):
    """An initializer as a field of the graph: what is before its values, they, and what is behind them."""

    head: bytes
    values: ir.TensorProtocol | None
    """None: they are in the head."""
    tail: bytes
    size: int
    """Bytes in all."""

    @classmethod
    def of(cls, proto: onnx.TensorProto, values: ir.TensorProtocol | None) -> _Field:
        """Of a tensor that has its values, or lacks `values`; its proto is used up."""
        if values is None:
            head, tail, between = _bytes(proto), b"", 0
        else:
            (head, tail), between = _around(proto, "raw_data"), byte_size(values)
            head += _key(proto, "raw_data", between)
        size = len(head) + between + len(tail)
        head = _key(onnx.GraphProto, "initializer", size) + head
        return cls(head, values, tail, len(head) + between + len(tail))


def _around(message: Message, name: str) -> tuple[bytes, bytes]:
    """The bytes of a message before and after one of its fields; fields are written by number.

    The message is left without what is before the field.
    """
    number = message.DESCRIPTOR.fields_by_name[name].number
    message.ClearField(name)
    whole = _bytes(message)
    for field, _ in message.ListFields():
        if field.number < number:
            message.ClearField(field.name)
    tail = _bytes(message)
    return whole[: len(whole) - len(tail)], tail


def _key(message: Message | type[Message], name: str, length: int) -> bytes:
    """What is written before the content of a length-delimited field."""
    return _varint(message.DESCRIPTOR.fields_by_name[name].number << 3 | 2) + _varint(length)


def _varint(number: int) -> bytes:
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def _gathered(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """The same bytes, small pieces joined."""
    small: list[Chunk] = []
    size = 0
    for chunk in chunks:
        if len(chunk) < _PIECE:
            small.append(chunk)
            size += len(chunk)
        if small and (len(chunk) >= _PIECE or size >= _PIECE):
            yield b"".join(small)
            small, size = [], 0
        if len(chunk) >= _PIECE:
            yield chunk
    if small:
        yield b"".join(small)
