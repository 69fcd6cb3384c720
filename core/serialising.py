"""A model as the bytes of its protobuf: whole, or piece by piece, so that large weights are never in memory.

The pieces together are exactly what `burnish.model.to_bytes` gives. What protobuf would hold twice on the way
(the message, and its bytes) is only the graph; the values of large initializers are put in between.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Final

import onnx
import onnx_ir as ir
from google.protobuf.message import EncodeError, Message

from burnish.disk import Chunk
from burnish.errors import ModelError, shown
from burnish.weights import bytes_of, embed, weight_bytes

MOST: Final = 2**31 - 1
"""Bytes of one protobuf."""
SERDE: Final = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""What onnx-ir raises for what it cannot represent; its SerdeError is a RuntimeError."""
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
    copy = model.clone(deep_copy=False)
    apart = _set_apart(copy)
    embed(copy)
    proto = _proto(copy)
    try:
        initializers = [_initializer(tensor, apart.get(tensor.name)) for tensor in proto.graph.initializer]
        head, tail = _around(proto.graph, "initializer")
        start, end = _around(proto, "graph")
    except EncodeError as error:
        raise _too_large(model, weight_bytes(model)) from error
    size = len(head) + sum(length for length, _ in initializers) + len(tail)
    opening = start + _key(proto, "graph", size) + head
    if len(opening) + size - len(head) + len(end) > MOST:
        raise _too_large(model, weight_bytes(model))
    return _gathered(itertools.chain([opening], *(chunks for _, chunks in initializers), [tail + end]))


def _set_apart(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Replace, in place, large initializers of the main graph by ones without values; return them by name."""
    found: dict[str, ir.TensorProtocol] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes >= _LEAST and _is_raw(tensor):
            found[name] = tensor
            value.const_value = _without_values(tensor)
    return found


def _is_raw(tensor: ir.TensorProtocol) -> bool:
    """True where the values are written as `raw_data`, and nothing unusual beside them."""
    if not isinstance(tensor, ir.TensorProtoTensor):
        return tensor.dtype != ir.DataType.STRING
    usual = {"dims", "data_type", "name", "doc_string", "raw_data"}
    return tensor.raw.HasField("raw_data") and usual.issuperset(
        field.name for field, _ in tensor.raw.ListFields()
    )


def _without_values(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    proto = onnx.TensorProto(data_type=tensor.dtype.value, dims=tensor.shape.numpy())
    if tensor.doc_string:
        proto.doc_string = tensor.doc_string
    bare = ir.TensorProtoTensor(proto)
    bare.metadata_props.update(tensor.metadata_props)
    return bare


def _initializer(proto: onnx.TensorProto, tensor: ir.TensorProtocol | None) -> tuple[int, Iterable[Chunk]]:
    """A field of the graph: its bytes in all, and in pieces; what the proto lacks, `tensor` has."""
    head, tail = _around(proto, "raw_data") if tensor is not None else (_bytes(proto), b"")
    if tensor is not None:
        head += _key(proto, "raw_data", tensor.nbytes)
    values = 0 if tensor is None else tensor.nbytes
    head = _key(onnx.GraphProto, "initializer", len(head) + values + len(tail)) + head
    chunks = () if tensor is None else bytes_of(tensor)
    return len(head) + values + len(tail), itertools.chain([head], chunks, [tail])


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
