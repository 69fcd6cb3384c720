"""Did torch keep every dim dynamic that was asked for? If not: which dim, and which line of the module.

torch.onnx.export never says: where a dim was specialised, merged with another or its range narrowed, it
"refines" the request and exports that. So the exported graph is compared with the request, and only on a
failure is the module traced once more to hear torch's reason.
"""

from __future__ import annotations

import dataclasses
import linecache
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final, final

import onnx_ir as ir

from burnish.dim_sums import parts_of
from burnish.errors import ExportError
from burnish.exporter.dims import Axis
from burnish.exporter.needs import torch
from burnish.manifest import DimRange

_GUARDS: Final = "torch.fx.experimental.symbolic_shapes"
_SYMBOL: Final = re.compile(r"create_symbol (\w+) = \d+ for L\['(\w+)'\]\.size\(\)\[(\d+)\]")
_TORCH: Final = f"{Path(torch.__file__).parent}{os.sep}"
_OWN: Final = f"{Path(__file__).parent}{os.sep}"
_UNBOUNDED: Final = 2**31


@final
@dataclasses.dataclass(frozen=True)
class Guard:
    """A condition on the sizes that torch took for granted, and the line of the module that made it."""

    text: str
    line: str


def kept_dims(
    program: Any, axes: Sequence[Axis], names: Sequence[str]
) -> tuple[dict[str, str], dict[str, DimRange], list[str]]:
    """Compare the exported program with the dims asked for.

    Args:
        program: a `torch.onnx.ONNXProgram`.
        axes: what was asked for.
        names: names of the graph's inputs, in order.

    Returns:
        The name that each symbol of the graph stands for, the range of each dim, and notes.

    Raises:
        ExportError: a dim became a constant, equal to another, or smaller than promised
            (EXPORT_SPECIALISED).
    """
    position = {name: index for index, name in enumerate(names)}
    sums = [axis for axis in axes if axis.parts]
    symbols: dict[str, str] = {}
    ranges: dict[str, DimRange] = {}
    notes: list[str] = []
    for axis in axes:
        if axis.parts:
            continue
        index = position[axis.input]
        shape = program.model.graph.inputs[index].shape
        symbol = _symbol(shape[axis.axis], axis)
        other = symbols.setdefault(symbol, axis.name)
        if other != axis.name:
            raise _specialised(
                f"The module needs dims {other!r} and {axis.name!r} to be equal",
                "Give both one name, if that is meant.",
            )
        allowed = _narrowed(axis, _traced_range(program, index, axis.axis))
        if allowed != axis.allowed and axis.name not in ranges:
            notes.append(f"dim {axis.name} ranges {_spell(allowed)}: the module's code needs that")
        ranges[axis.name] = allowed
    for axis in sums:
        _need_sum(program.model.graph.inputs[position[axis.input]].shape[axis.axis], axis, symbols)
    return symbols, ranges, notes


def _need_sum(dim: int | ir.SymbolicDim, axis: Axis, symbols: dict[str, str]) -> None:
    """The dim is the sum in the graph, or free: then it is named so, and only such sizes are promised."""
    found = str(dim) if isinstance(dim, int) else dim.value or "?"
    if found.isidentifier() and symbols.setdefault(found, axis.name) == axis.name:
        return
    terms = [symbols.get(term, term) for term in parts_of(found)]
    if sorted(terms) != sorted(axis.parts):
        raise _specialised(
            f"Dim {axis.name!r} (axis {axis.axis} of {axis.input!r}) became {found}",
            "Tie it to its parts in the module: torch._check(mask.shape[1] == past + sequence).",
        )


@contextmanager
def reasons() -> Iterator[list[Guard]]:
    """Collect the conditions that torch adds while it traces, symbols spelt as `input.axis`."""
    logger = logging.getLogger(_GUARDS)
    handler, level = _Guards(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield handler.found
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def explain(error: ExportError, guards: Sequence[Guard], dims: Mapping[str, str]) -> ExportError:
    """The error with the line of the module that is to blame, if torch said one.

    Args:
        error: what went wrong; it names dims.
        guards: what `reasons` collected.
        dims: name of the dim for each `input.axis`.
    """
    blamed = [name for name in set(dims.values()) if f"{name!r}" in error.what]
    for guard in guards:
        text = _in_dims(guard.text, dims)
        if any(re.search(rf"\b{name}\b", text) for name in blamed):
            what = f"{error.what.rstrip('.')}: {text} at {guard.line}."
            return ExportError(what, error.hint, code=error.code)
    return error


def _symbol(dim: int | ir.SymbolicDim, axis: Axis) -> str:
    if isinstance(dim, int):
        raise _specialised(
            f"Dim {axis.name!r} (axis {axis.axis} of {axis.input!r}) became the constant {dim}",
            "Use the tensor's own shape there instead of a number, or leave the dim fixed.",
        )
    if dim.value is None or not dim.value.isidentifier():
        raise _specialised(
            f"Dim {axis.name!r} (axis {axis.axis} of {axis.input!r}) became {dim.value}",
            "Leave the dim fixed, or do not let the module tie it to others.",
        )
    return dim.value


def _traced_range(program: Any, index: int, axis: int) -> DimRange:
    """The range that torch found for an axis of the graph's input at `index`."""
    found = program.exported_program
    wanted = [name for name in found.graph_signature.user_inputs if isinstance(name, str)]
    nodes = {node.name: node for node in found.graph.find_nodes(op="placeholder")}
    traced = [nodes[name] for name in wanted if name in nodes]
    if index >= len(traced) or not hasattr(traced[index].meta.get("val"), "shape"):
        return DimRange(0)
    size = traced[index].meta["val"].shape[axis]
    bounds = found.range_constraints.get(getattr(getattr(size, "node", None), "expr", None))
    if bounds is None:
        return DimRange(0)
    top = int(bounds.upper) if bounds.upper < _UNBOUNDED else None
    return DimRange(int(bounds.lower), top)


def _narrowed(axis: Axis, traced: DimRange) -> DimRange:
    low = max(axis.allowed.min, traced.min)
    tops = [top for top in (axis.allowed.max, traced.max) if top is not None]
    result = DimRange(low, min(tops, default=None))
    if result != axis.allowed and axis.promised:
        raise _specialised(
            f"Dim {axis.name!r} was to range {_spell(axis.allowed)}, but the module allows "
            f"{_spell(result)} only",
            "Give that range, or change the condition on the size.",
        )
    return result


def _spell(allowed: DimRange) -> str:
    return f"from {allowed.min} to {'any size' if allowed.max is None else allowed.max}"


def _specialised(what: str, hint: str) -> ExportError:
    return ExportError(f"{what}.", hint, code="EXPORT_SPECIALISED")


@final
class _Guards(logging.Handler):
    """Takes torch's log of guards, and at each finds the line of the module on the stack."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.found: list[Guard] = []
        self._names: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Remember what a symbol stands for, or one guard in terms of inputs."""
        text = record.getMessage()
        if symbol := _SYMBOL.match(text):
            self._names[symbol[1]] = f"{symbol[2]}.{symbol[3]}"
        elif text.startswith("eval ") and "[guard added]" in text:
            condition = text.removeprefix("eval ").partition(" [guard added]")[0]
            for name, meaning in self._names.items():
                condition = re.sub(rf"\b{name}\b", meaning, condition)
            self.found.append(Guard(condition, module_line(sys._getframe())))


def module_line(frame: FrameType | None) -> str:
    """The innermost line on a stack that is not torch's or ours, as `file.py:12 in forward: code`."""
    while frame is not None:
        code = frame.f_code
        if not code.co_filename.startswith((_TORCH, _OWN, "<")) and code.co_filename not in _LOGGING:
            source = linecache.getline(code.co_filename, frame.f_lineno).strip()
            where = f"{Path(code.co_filename).name}:{frame.f_lineno} in {code.co_name}"
            return f"{where}: {source}" if source else where
        frame = frame.f_back
    return "an unknown line"


_LOGGING: Final = frozenset({logging.__file__, linecache.__file__})


def _in_dims(condition: str, dims: Mapping[str, str]) -> str:
    for place, name in dims.items():
        condition = re.sub(rf"(?<![\w.]){re.escape(place)}\b", name, condition)
    return condition
