"""A bounded walk over the protobuf bytes of a model, without recursion, copies of weights, or onnx.

It runs before any library parses the file, so that what is hostile or broken gets a typed error here: damage,
nesting, invalid UTF-8, impossible tensors. It finds every tensor wherever it may hide (initializers,
attributes, subgraphs, functions, sparse and training parts). Field numbers: onnx/onnx.proto, IR 13.
"""

from __future__ import annotations

import dataclasses
import mmap
from collections.abc import Iterator
from typing import Final, final

from burnish.errors import ModelError, shown

Buffer = bytes | mmap.mmap

_TEXT: Final = "text"
# Message kind -> field number -> kind of the field. What is not listed is skipped.
_FIELDS: Final[dict[str, dict[int, str]]] = {
    "model": {
        2: _TEXT, 3: _TEXT, 4: _TEXT, 6: _TEXT, 7: "graph", 8: "opset", 14: "entry", 20: "training",
        25: "function",
    },
    "graph": {
        1: "node", 2: _TEXT, 5: "tensor", 10: _TEXT, 11: "value", 12: "value", 13: "value",
        14: "annotation", 15: "sparse", 16: "entry",
    },
    "node": {
        1: _TEXT, 2: _TEXT, 3: _TEXT, 4: _TEXT, 5: "attribute", 6: _TEXT, 7: _TEXT, 8: _TEXT, 9: "entry",
    },
    "attribute": {
        1: _TEXT, 5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 13: _TEXT, 14: "type", 15: "type",
        21: _TEXT, 22: "sparse", 23: "sparse",
    },
    "function": {
        1: _TEXT, 4: _TEXT, 5: _TEXT, 6: _TEXT, 7: "node", 8: _TEXT, 9: "opset", 10: _TEXT,
        11: "attribute", 12: "value", 13: _TEXT, 14: "entry",
    },
    "sparse": {1: "tensor", 2: "tensor"},
    "training": {1: "graph", 2: "graph", 3: "entry", 4: "entry"},
    "value": {1: _TEXT, 2: "type", 3: _TEXT, 4: "entry"},
    "type": {
        1: "tensor_type", 4: "holder", 5: "map", 6: _TEXT, 7: "entry", 8: "tensor_type", 9: "holder",
    },
    "holder": {1: "type"},
    "map": {2: "type"},
    "tensor_type": {2: "shape"},
    "shape": {1: "dim"},
    "dim": {2: _TEXT, 3: _TEXT},
    "annotation": {1: _TEXT, 2: "entry"},
    "entry": {1: _TEXT, 2: _TEXT},
}  # fmt: skip
# Protobuf merges a singular message that occurs twice, and no reader does it alike: refused.
_ONCE: Final = frozenset(
    {
        ("model", 7), ("attribute", 5), ("attribute", 6), ("attribute", 14), ("attribute", 22),
        ("sparse", 1), ("sparse", 2), ("training", 1), ("training", 2), ("value", 2), ("tensor_type", 2),
    }
)  # fmt: skip
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DTYPES: Final = range(1, 29)  # TensorProto.DataType of onnx 1.23; 0 is undefined


@final
@dataclasses.dataclass(frozen=True)
class Limits:
    """What a model file may ask for: bytes in one file, nested messages, fields to look at."""

    max_bytes: int = 2**31 - 1
    """Protobuf's own limit; larger models keep their weights in external data."""
    max_depth: int = 100
    """Protobuf's own limit below the model; about 31 nested subgraphs."""
    max_fields: int = 20_000_000


@final
@dataclasses.dataclass
class Tensor:
    """What a TensorProto declares: everything but the values."""

    label: str
    """How messages call it: `tensor 'w'`, or `the tensor of node 'c'`."""
    dtype: int = 0
    dims: list[int] = dataclasses.field(default_factory=list)
    external: bool = False
    entries: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    """Its external_data, as written."""
    raw: int | None = None
    """Bytes of raw_data; None: the field is absent."""
    typed: dict[int, int] = dataclasses.field(default_factory=dict)
    """Values in each typed data field, by field number."""


@final
@dataclasses.dataclass
class Found:
    """What a walk found."""

    ir_version: int = 0
    graphs: int = 0
    opsets: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    """(domain, version) of the model's opset imports."""
    function_opsets: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    external: list[Tensor] = dataclasses.field(default_factory=list)
    """Tensors whose data is in other files."""


@final
@dataclasses.dataclass(slots=True)
class _Frame:
    kind: str
    at: int
    end: int
    label: str
    seen: int = 0
    """A bit for each singular message that was there."""


@final
class Walk:
    """One walk over the bytes of a model; `run` does it.

    Args:
        buffer: the file's bytes or memory map; never written, weights are stepped over.
        name: what messages call the file.
    """

    def __init__(self, buffer: Buffer, name: str, limits: Limits) -> None:
        self._buffer, self._name, self._limits = buffer, name, limits
        self._left = limits.max_fields
        self._found = Found()

    def run(self) -> Iterator[Tensor]:
        """Yield every tensor, and leave the rest in `found`.

        Raises:
            ModelError: MODEL_PARSE, MODEL_DEPTH, MODEL_SIZE, MODEL_UTF8, TENSOR_DTYPE, TENSOR_SIZE.
        """
        stack = [_Frame("model", 0, len(self._buffer), "")]
        while stack:
            frame = stack[-1]
            if frame.at == frame.end:
                stack.pop()
                continue
            number, wire, at, frame.at = self._field(frame.at, frame.end)
            kind = _FIELDS[frame.kind].get(number)
            if wire == _VARINT:
                self._number(frame, number, at)
            if kind is None or wire != _BYTES:
                continue
            self._once(frame, number, at)
            if kind == _TEXT:
                self._text(frame, number, at)
            elif kind == "tensor":
                yield self._tensor(at, frame.at, frame.label)
            elif kind == "opset":
                found = self._found
                imports = found.opsets if frame.kind == "model" else found.function_opsets
                imports.append(self._opset(at, frame.at))
            else:
                self._found.graphs += (frame.kind, kind) == ("model", "graph")
                stack.append(_Frame(kind, at, frame.at, _inherited(frame)))
                self._check_depth(stack)

    @property
    def found(self) -> Found:
        """What `run` has found so far."""
        return self._found

    def _field(self, at: int, end: int) -> tuple[int, int, int, int]:
        """Read one field: its number, wire type, value (varint) or first byte, and the byte after it."""
        self._left -= 1
        if self._left < 0:
            raise ModelError(
                f"{self._name} has more than {self._limits.max_fields} fields.",
                "It is broken or made to exhaust its reader; a model of that size is not supported.",
                code="MODEL_SIZE",
            )
        start, tag = at, self._buffer[at] if at < end else 128
        tag, at = (tag, at + 1) if tag < 128 else self._varint(at, end)  # nearly all are one byte
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, after = self._varint(at, end)
            return number, wire, value, after
        if wire == _BYTES:
            length = self._buffer[at] if at < end else 128
            length, at = (length, at + 1) if length < 128 else self._varint(at, end)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise self._damaged(start, f"has the unknown wire type {wire}")
        if number == 0:
            raise self._damaged(start, "has the number 0")
        if at + length > end:
            raise self._damaged(start, f"runs {at + length - end} bytes past the end of what holds it")
        return number, wire, at, at + length

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        start = at
        while at < end and shift < 70:
            byte = self._buffer[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value & (2**64 - 1), at
            shift += 7
        raise self._damaged(start, "ends inside a number")

    def _number(self, frame: _Frame, number: int, value: int) -> None:
        if frame.kind == "model" and number == 1:
            self._found.ir_version = value
        elif frame.kind == "tensor_type" and number == 1 and value and value not in _DTYPES:
            raise ModelError(
                f"{_capital(frame.label or 'a value')} of {self._name} has the unknown dtype {value}.",
                "Write it with a dtype that ONNX defines (1 to 28).",
                code="TENSOR_DTYPE",
            )

    def _once(self, frame: _Frame, number: int, at: int) -> None:
        if (frame.kind, number) in _ONCE:
            if frame.seen >> number & 1:
                raise self._damaged(at, f"is the second of its kind in one {frame.kind}")
            frame.seen |= 1 << number

    def _text(self, frame: _Frame, number: int, at: int) -> None:
        text = self._decoded(at, frame.at, frame.label)
        # NodeProto: 2 output, 3 name, 4 op_type; the name wins over the first output over the type.
        if frame.kind == "node" and text and (number == 3 or not frame.label):
            frame.label = f"node '{shown(text)}'" if number in (2, 3, 4) else frame.label
        elif frame.kind in ("value", "function") and number == 1:
            frame.label = f"{frame.kind} '{shown(text)}'"

    def _decoded(self, at: int, end: int, label: str) -> str:
        try:
            return self._buffer[at:end].decode()
        except UnicodeDecodeError:
            raise ModelError(
                f"{self._name} has a name or text at byte {at} that is not UTF-8: "
                f"{shown(self._buffer[at : min(end, at + 40)])}{label and f' ({label})'}.",
                "The file is damaged or was not written as ONNX; export it again.",
                code="MODEL_UTF8",
            ) from None

    def _check_depth(self, stack: list[_Frame]) -> None:
        if len(stack) - 1 > self._limits.max_depth:
            label = next((frame.label for frame in reversed(stack) if frame.label), "its graph")
            raise ModelError(
                f"{self._name} nests messages more than {self._limits.max_depth} deep, at {label}.",
                "Reduce the nesting of If, Loop and Scan; protobuf readers stop at about 31 levels.",
                code="MODEL_DEPTH",
            )

    def _opset(self, at: int, end: int) -> tuple[str, int]:
        domain, version = "", 0
        while at < end:
            number, wire, value, at = self._field(at, end)
            if number == 1 and wire == _BYTES:
                domain = self._decoded(value, at, "opset import")
            elif number == 2 and wire == _VARINT:
                version = value
        return domain, version

    def _tensor(self, at: int, end: int, owner: str) -> Tensor:
        tensor = Tensor(f"the tensor of {owner}" if owner else "an unnamed tensor")
        while at < end:
            number, wire, value, at = self._field(at, end)
            if number in (1, 4, 5, 6, 7, 10, 11):
                self._values(tensor, number, wire, (value, at))
            elif number == 2 and wire == _VARINT:
                tensor.dtype = value
            elif number == 8 and wire == _BYTES:
                name = self._decoded(value, at, tensor.label)
                tensor.label = f"tensor '{shown(name)}'" if name else tensor.label
            elif number == 9 and wire == _BYTES:
                tensor.raw = at - value
            elif number == 13 and wire == _BYTES:
                tensor.entries.append(self._entry(value, at, tensor.label))
            elif number == 14 and wire == _VARINT:
                tensor.external = value == 1
        if tensor.external:
            self._found.external.append(tensor)
        return tensor

    def _entry(self, at: int, end: int, label: str) -> tuple[str, str]:
        texts = {1: "", 2: ""}
        while at < end:
            number, wire, value, at = self._field(at, end)
            if number in texts and wire == _BYTES:
                texts[number] = self._decoded(value, at, label)
        return texts[1], texts[2]

    def _values(self, tensor: Tensor, number: int, wire: int, span: tuple[int, int]) -> None:
        """Count the values of a repeated field, packed or not; keep those of `dims` (field 1)."""
        value, end = span
        if number == 1:
            while wire == _BYTES and value < end:
                dim, value = self._varint(value, end)
                tensor.dims.append(_signed(dim))
            if wire == _VARINT:
                tensor.dims.append(_signed(value))
            return
        count = 1
        if wire == _BYTES and number in (4, 10):
            count = (end - value) // (4 if number == 4 else 8)
        elif wire == _BYTES and number != 6:
            count = _varints(self._buffer, value, end)
        tensor.typed[number] = tensor.typed.get(number, 0) + count

    def _damaged(self, at: int, why: str) -> ModelError:
        return ModelError(
            f"{self._name} is truncated or damaged: the field at byte {at} {why}.",
            "Copy or export it again; compare its size or hash with the original.",
            code="MODEL_PARSE",
        )


def _inherited(frame: _Frame) -> str:
    return frame.label if frame.kind in ("node", "attribute", "sparse", "value", "type") else ""


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _varints(buffer: Buffer, at: int, end: int, step: int = 1 << 20) -> int:
    """How many varints end in a span: bytes without the continuation bit."""
    high = bytes(range(128, 256))
    return sum(len(buffer[i : min(i + step, end)].translate(None, high)) for i in range(at, end, step))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
