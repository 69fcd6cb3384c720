"""Relu(Relu(x))  ->  Relu(x);   Cast(Cast(x))  ->  Cast(x);   x + 0.0  ->  x"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import ClassVar, Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, constant_of, is_op
from burnish.passes.cleanup.clamps import CLAMPS, merge_clamps
from burnish.passes.cleanup.zero_signs import ZeroSigns
from burnish.passes.editing import Round, until_stable

_IDEMPOTENT: Final = frozenset({"Abs", "Ceil", "Floor", "Relu", "Round", "Sign"})
_INVOLUTIONS: Final = frozenset({"BitwiseNot", "Neg", "Not"})
_MAX_BYTES: Final = 1 << 16
_D: Final = ir.DataType
_BITS: Final = {_D.FLOAT16: 11, _D.BFLOAT16: 8, _D.FLOAT: 24, _D.DOUBLE: 53}
"""Of the significand."""
_EXPONENTS: Final = {_D.FLOAT16: 5, _D.BFLOAT16: 8, _D.FLOAT: 8, _D.DOUBLE: 11}
_SIGNED: Final = (_D.INT8, _D.INT16, _D.INT32, _D.INT64)
_UNSIGNED: Final = (_D.UINT8, _D.UINT16, _D.UINT32, _D.UINT64)


@final
@dataclasses.dataclass(frozen=True)
class SimplifyArithmetic(Pass):
    """Leave out arithmetic that is undone, done twice, or could be done at once.

    - Relu, Abs, Round ... of itself; Neg, Not of itself;
    - Cast of a Cast to a dtype that holds every number of the first one;
    - Clip, Relu, Max and Min with scalar bounds in a row become one Clip;
    - x + 0.0 goes where nothing can see that -0.0 becomes 0.0 by it: no division reads what follows.

    Kept: Reciprocal of Reciprocal, which rounds.
    """

    name: ClassVar[str] = "simplify-arithmetic"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many nodes were removed or merged."""
        return until_stable(model, context, lambda round_: _Simplifier(round_).visit)


@final
class _Simplifier:
    def __init__(self, round_: Round) -> None:
        self._round = round_

    @cached_property
    def _zeros(self) -> ZeroSigns:
        return ZeroSigns(self._round.model)

    def visit(self, node: ir.Node) -> None:
        """Simplify a node, or merge it with the one before."""
        if node.domain:
            return
        if node.op_type in ("Add", "Sub"):
            self._drop_zero(node)
        elif node.op_type == "Cast":
            self._skip_cast(node)
        elif node.op_type in _IDEMPOTENT and _follows_itself(node):
            self._round.replace(node.outputs[0], node.inputs[0])
        elif node.op_type in _INVOLUTIONS and _follows_itself(node):
            self._round.replace(node.outputs[0], _source(node))
        if node.graph is not None and node.op_type in CLAMPS:
            merge_clamps(node, self._round)

    def _drop_zero(self, node: ir.Node) -> None:
        for place in (0, 1) if node.op_type == "Add" else (0,):
            x, zeros = node.inputs[place], constant_of(node.inputs[1 - place], _MAX_BYTES)
            if zeros is None or zeros.dtype.kind != "f" or zeros.size == 0 or np.any(zeros != 0):
                continue
            harmless = np.signbit(zeros) == (node.op_type == "Add")  # x + -0.0 and x - 0.0 are x
            before, after = self._round.shapes[x].shape, self._round.shapes[node.outputs[0]].shape
            if before is None or before != after:
                continue
            if not np.all(harmless) and self._zeros.show(node.outputs[0]):
                self._round.context.miss(node, "it makes 0.0 of -0.0, and something divides by what follows")
            else:
                self._round.replace(node.outputs[0], x)
            return

    def _skip_cast(self, node: ir.Node) -> None:
        source = _source(node) if _follows_itself(node) else None
        if source is None or node.inputs[0] is None:
            return
        types = [self._round.shapes[value].dtype for value in (source, node.inputs[0], node.outputs[0])]
        first, between, last = types
        if first is None or between is None or last is None or not _holds(between, first):
            return
        if first == last:
            self._round.replace(node.outputs[0], source)
        elif _casts_alike(first, between, last) and self._round.context.permit(node):
            self._round.editor.set_input(node, 0, source)


def _follows_itself(node: ir.Node) -> bool:
    maker = None if not node.inputs or node.inputs[0] is None else node.inputs[0].producer()
    return maker is not None and is_op(maker, node.op_type)


def _source(node: ir.Node) -> ir.Value | None:
    """What the node before reads."""
    maker = None if node.inputs[0] is None else node.inputs[0].producer()
    return None if maker is None else maker.inputs[0]


def _holds(wide: ir.DataType, narrow: ir.DataType) -> bool:
    """True when every number of a dtype is one of the other."""
    if narrow == wide or narrow == _D.BOOL:
        return narrow == wide or wide in (*_BITS, *_SIGNED, *_UNSIGNED)
    if narrow in _BITS:
        return wide in _BITS and _BITS[wide] >= _BITS[narrow] and _EXPONENTS[wide] >= _EXPONENTS[narrow]
    if narrow not in (*_SIGNED, *_UNSIGNED):
        return False
    needed = narrow.bitwidth - (1 if narrow in _SIGNED else 0)
    if wide in _BITS:
        return _BITS[wide] >= needed and 2 ** (_EXPONENTS[wide] - 1) > needed
    if wide in _UNSIGNED:
        return narrow in _UNSIGNED and wide.bitwidth >= needed
    return wide in _SIGNED and wide.bitwidth - 1 >= needed


def _casts_alike(first: ir.DataType, between: ir.DataType, last: ir.DataType) -> bool:
    """True when it does not matter for the last dtype which of the two, both exact, it is cast from.

    What is too large for an integer is undefined from a float, and wraps around from an integer.
    """
    integers = (*_SIGNED, *_UNSIGNED, _D.BOOL)
    if last in _BITS or last == _D.BOOL or _holds(last, first):
        return last in (*_BITS, *integers)
    return last in integers and first in integers and between in integers
