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
from burnish.wire_fields import (
    BYTES,
    FIELDS,
    FIXED32,
    FIXED64,
    LABELLED,
    NAMED,
    ONCE,
    REPEATED,
    TEXT,
    USUAL,
    VARINT,
)

Buffer = bytes | mmap.mmap

_SHORT: Final = 1 << 12  # bytes of a message that is remembered
_MEMORY: Final = 1 << 24  # bytes that may be remembered
_OBJECT: Final = 200  # bytes that an entry of a dict takes besides
_LONG: Final = 1 << 14  # bytes whose number takes more than two bytes
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
    """A message that is being walked."""

    kind: str
    at: int
    end: int
    outer: _Frame | None
    start: int
    left: int
    """Fields that were left to look at when it began."""
    name: str | None = None
    seen: int = 0
    """A bit for each singular message that was there."""
    height: int = 0
    """Messages below it, at the deepest place."""
    bare: bool = True
    """No tensor is in it."""

    @property
    def label(self) -> str:
        """How messages call it: by its own name, or that of what it is in."""
        if self.name is not None:
            return f"{self.kind} '{shown(self.name)}'"
        return self.outer.label if self.outer is not None and self.outer.kind in LABELLED else ""


@final
class Walk:
    """One walk over the bytes of a model; `run` does it.

    Short messages that say the same many times (types, attributes, metadata) are looked at once.

    Args:
        buffer: the file's bytes or memory map; never written, weights are stepped over.
        name: what messages call the file.
    """

    def __init__(self, buffer: Buffer, name: str, limits: Limits) -> None:
        self._buffer, self._name, self._limits = buffer, name, limits
        self._left = limits.max_fields
        self._found = Found()
        self._memory = _MEMORY
        self._known: dict[str, dict[bytes, tuple[int, int]]] = {kind: {} for kind in REPEATED}

    def run(self) -> Iterator[Tensor]:
        """Yield every tensor, and leave the rest in `found`.

        Raises:
            ModelError: MODEL_PARSE, MODEL_DEPTH, MODEL_SIZE, MODEL_UTF8, TENSOR_DTYPE, TENSOR_SIZE.
        """
        frame: _Frame | None = _Frame("model", 0, len(self._buffer), None, 0, self._left)
        depth = 0
        while frame is not None:
            inner = self._advance(frame, depth)
            if inner is None:
                frame, depth = self._leave(frame), depth - 1
                continue
            kind, at, end = inner
            if kind == "tensor":
                frame.bare = False
                yield self._tensor(at, end, frame.label)
            elif kind == "opset":
                found = self._found
                imports = found.opsets if frame.kind == "model" else found.function_opsets
                imports.append(self._opset(at, end))
            else:
                self._found.graphs += (frame.kind, kind) == ("model", "graph")
                inside = _Frame(kind, at, end, frame, at, self._left)
                self._check_depth(inside, depth + 1)
                if kind == "entry":
                    self._entry(at, end, inside)
                    inside.at = end
                frame, depth = inside, depth + 1

    def _advance(self, frame: _Frame, depth: int) -> tuple[str, int, int] | None:
        """Go on in a message to the next in it that has to be looked into: its kind, start and end.

        None: the message is at its end.
        """
        buffer, end, at, left = self._buffer, frame.end, frame.at, self._left
        usual, named, once = USUAL[frame.kind], frame.kind in NAMED, ONCE.get(frame.kind, ())
        while at < end:
            kind, length = usual.get(buffer[at]), _LONG
            if kind is not None and at + 2 < end:
                number, length, value = buffer[at] >> 3, buffer[at + 1], at + 2
                if length > 127:
                    length, value = length & 127 | buffer[at + 2] << 7, at + 3
                after = value + length
            if length < _LONG and after <= end and left:
                left -= 1
            else:
                self._left = left
                kind, number, value, after = self._unusual(frame, at)
                left = self._left
            at = after
            if kind == TEXT:
                try:
                    text = buffer[value:after].decode()
                except UnicodeDecodeError:
                    raise self._not_text(value, after, frame.label) from None
                if named:
                    _name(frame, number, text)
            elif kind is not None:
                if number in once:
                    self._once(frame, number, value)
                known = self._known.get(kind) if after - value <= _SHORT else None
                hit = known.get(buffer[value:after]) if known is not None else None
                if hit is not None and hit[0] <= left and depth + hit[1] < self._limits.max_depth:
                    left -= hit[0]
                    frame.height = hit[1] + 1 if hit[1] >= frame.height else frame.height
                    continue
                frame.at, self._left = at, left
                return kind, value, after
        self._left = left
        return None

    def _remember(self, kind: str, at: int, end: int, fields: int, height: int) -> None:
        """Keep that a message is as it should be, with what it has: fields, and levels of messages in it."""
        size = end - at
        if kind in REPEATED and size <= _SHORT and self._memory >= size:
            self._memory -= size + _OBJECT
            self._known[kind][self._buffer[at:end]] = fields, height

    def _unusual(self, frame: _Frame, at: int) -> tuple[str | None, int, int, int]:
        """Read a field with all checks: the kind of what is in it (None: nothing to look at), and where."""
        number, wire, value, after = self._field(at, frame.end)
        if wire == VARINT:
            self._number(frame, number, value)
        return FIELDS[frame.kind].get(number) if wire == BYTES else None, number, value, after

    def _leave(self, frame: _Frame) -> _Frame | None:
        """Back to the message around one that is at its end, which is remembered if that is worth it."""
        outer = frame.outer
        if outer is not None:
            outer.height = max(outer.height, frame.height + 1)
            outer.bare = outer.bare and frame.bare
        if frame.bare:
            self._remember(frame.kind, frame.start, frame.end, frame.left - self._left, frame.height)
        return outer

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
        if wire == VARINT:
            value, after = self._varint(at, end)
            return number, wire, value, after
        if wire == BYTES:
            length = self._buffer[at] if at < end else 128
            length, at = (length, at + 1) if length < 128 else self._varint(at, end)
        elif wire in (FIXED64, FIXED32):
            length = 8 if wire == FIXED64 else 4
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
        if frame.seen >> number & 1:
            raise self._damaged(at, f"is the second of its kind in one {frame.kind}")
        frame.seen |= 1 << number

    def _decoded(self, at: int, end: int, label: str) -> str:
        try:
            return self._buffer[at:end].decode()
        except UnicodeDecodeError:
            raise self._not_text(at, end, label) from None

    def _not_text(self, at: int, end: int, label: str) -> ModelError:
        return ModelError(
            f"{self._name} has a name or text at byte {at} that is not UTF-8: "
            f"{shown(self._buffer[at : min(end, at + 40)])}{label and f' ({label})'}.",
            "The file is damaged or was not written as ONNX; export it again.",
            code="MODEL_UTF8",
        )

    def _check_depth(self, frame: _Frame, depth: int) -> None:
        if depth > self._limits.max_depth:
            at: _Frame | None = frame
            while at is not None and not at.label:
                at = at.outer
            raise ModelError(
                f"{self._name} nests messages more than {self._limits.max_depth} deep, "
                f"at {at.label if at else 'its graph'}.",
                "Reduce the nesting of If, Loop and Scan; protobuf readers stop at about 31 levels.",
                code="MODEL_DEPTH",
            )

    def _opset(self, at: int, end: int) -> tuple[str, int]:
        domain, version = "", 0
        while at < end:
            number, wire, value, at = self._field(at, end)
            if number == 1 and wire == BYTES:
                domain = self._decoded(value, at, "opset import")
            elif number == 2 and wire == VARINT:
                version = value
        return domain, version

    def _tensor(self, at: int, end: int, owner: str) -> Tensor:
        tensor = Tensor(f"the tensor of {owner}" if owner else "an unnamed tensor")
        while at < end:
            number, wire, value, at = self._field(at, end)
            if number in (1, 4, 5, 6, 7, 10, 11):
                self._values(tensor, number, wire, (value, at))
            elif number == 2 and wire == VARINT:
                tensor.dtype = value
            elif number == 8 and wire == BYTES:
                name = self._decoded(value, at, tensor.label)
                tensor.label = f"tensor '{shown(name)}'" if name else tensor.label
            elif number == 9 and wire == BYTES:
                tensor.raw = at - value
            elif number == 13 and wire == BYTES:
                tensor.entries.append(self._entry(value, at, tensor))
            elif number == 14 and wire == VARINT:
                tensor.external = value == 1
        if tensor.external:
            self._found.external.append(tensor)
        return tensor

    def _entry(self, at: int, end: int, owner: _Frame | Tensor) -> tuple[str, str]:
        texts = {1: "", 2: ""}
        while at < end:
            number, wire, value, at = self._field(at, end)
            if number in texts and wire == BYTES:
                try:
                    texts[number] = self._buffer[value:at].decode()
                except UnicodeDecodeError:
                    raise self._not_text(value, at, owner.label) from None
        return texts[1], texts[2]

    def _values(self, tensor: Tensor, number: int, wire: int, span: tuple[int, int]) -> None:
        """Count the values of a repeated field, packed or not; keep those of `dims` (field 1)."""
        value, end = span
        if number == 1:
            while wire == BYTES and value < end:
                dim, value = self._varint(value, end)
                tensor.dims.append(_signed(dim))
            if wire == VARINT:
                tensor.dims.append(_signed(value))
            return
        count = 1
        if wire == BYTES and number in (4, 10):
            count = (end - value) // (4 if number == 4 else 8)
        elif wire == BYTES and number != 6:
            count = _varints(self._buffer, value, end)
        tensor.typed[number] = tensor.typed.get(number, 0) + count

    def _damaged(self, at: int, why: str) -> ModelError:
        return ModelError(
            f"{self._name} is truncated or damaged: the field at byte {at} {why}.",
            "Copy or export it again; compare its size or hash with the original.",
            code="MODEL_PARSE",
        )


def _name(frame: _Frame, number: int, text: str) -> None:
    """Take a text of a message that has a name for that name, if it is."""
    if frame.kind != "node":
        frame.name = text if number == 1 else frame.name
    elif text and (number == 3 or (number in (2, 4) and not frame.name)):
        frame.name = text  # 2 output, 3 name, 4 op_type; the name wins over the first output over the type


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _varints(buffer: Buffer, at: int, end: int, step: int = 1 << 20) -> int:
    """How many varints end in a span: bytes without the continuation bit."""
    high = bytes(range(128, 256))
    return sum(len(buffer[i : min(i + step, end)].translate(None, high)) for i in range(at, end, step))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
