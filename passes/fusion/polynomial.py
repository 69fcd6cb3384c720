"""Read a few nodes of arithmetic as a polynomial, so that one test covers every way of writing it.

`x * 0.5 * (1 + t)`, `(t + 1) * (x / 2)` and `0.5 * x + 0.5 * t * x` are all {x: 0.5, x·t: 0.5}.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, final

import onnx_ir as ir

from burnish.passes.base import is_op
from burnish.passes.matching import close, rank, scalar

Powers = tuple[int, ...]
"""The exponent of each variable in one term."""

ARITHMETIC: Final = ("Add", "Sub", "Mul", "Div", "Pow", "Neg")
_MAX_NODES: Final = 12  # the longest known form (GELU by tanh, cube as two Muls) has 9
_MAX_DEGREE: Final = 4


@final
@dataclasses.dataclass(frozen=True)
class Polynomial:
    """A sum of terms, and the nodes it was read from (operands before users)."""

    terms: Mapping[Powers, float]
    nodes: tuple[ir.Node, ...] = ()

    def is_close(self, expected: Mapping[Powers, float], dtype: ir.DataType | None) -> bool:
        """True when it has exactly those terms, with coefficients within the precision of `dtype`."""
        terms = {powers: factor for powers, factor in self.terms.items() if factor}
        return terms.keys() == expected.keys() and all(
            close(terms[powers], factor, dtype) for powers, factor in expected.items()
        )


def read_polynomial(value: ir.Value, variables: Sequence[ir.Value]) -> Polynomial | None:
    """The polynomial in `variables` that makes `value`; None when it is not one, or a long one.

    Constants must be scalars whose rank is not above that of the first variable (0 where that is not known,
    as it may be a scalar): then every variable keeps its shape.
    """
    reader = _Reader(tuple(variables), rank(variables[0]) or 0)
    found = reader.read(value)
    return None if found is None or len(found.nodes) > _MAX_NODES else found


def operands_of(value: ir.Value) -> Iterator[ir.Value]:
    """`value` and what it is calculated from by arithmetic: each may be the variable of a polynomial."""
    todo = [value]
    seen: set[ir.Value] = set()
    while todo and len(seen) < 16:  # more than any form has
        current = todo.pop(0)
        if current in seen or scalar(current, max_rank=8) is not None:
            continue
        seen.add(current)
        yield current
        node = current.producer()
        if any(is_op(node, op) for op in ARITHMETIC) and node is not None:
            todo.extend(operand for operand in node.inputs if operand is not None)


def what_follows(x: ir.Value, t: ir.Value, expected: Mapping[Powers, float]) -> Polynomial | None:
    """The arithmetic after `t` that is `expected` in (x, t)."""
    todo = list(t.consumers())
    for _ in range(6):  # x/2 + (x/2)·t written out has 4 steps
        if not todo:
            return None
        node = todo.pop(0)
        if not any(is_op(node, op) for op in ARITHMETIC):
            continue
        found = read_polynomial(node.outputs[0], [x, t])
        if found is not None and found.is_close(expected, x.dtype):
            return found
        todo.extend(node.outputs[0].consumers())
    return None


@final
@dataclasses.dataclass(frozen=True)
class _Reader:
    variables: tuple[ir.Value, ...]
    max_rank: int

    def read(self, value: ir.Value | None, depth: int = 0) -> Polynomial | None:
        if value in self.variables:
            at = self.variables.index(value)
            return Polynomial({tuple(int(i == at) for i in range(len(self.variables))): 1.0})
        number = scalar(value, self.max_rank)
        if number is not None:
            return Polynomial({(0,) * len(self.variables): number})
        node = None if value is None else value.producer()
        if node is None or depth > _MAX_NODES or not any(is_op(node, op) for op in ARITHMETIC):
            return None
        operands = [self.read(operand, depth + 1) for operand in node.inputs]
        parts = [operand for operand in operands if operand is not None]
        terms = _combine(node, parts) if len(parts) == len(operands) else None
        if terms is None:
            return None
        nodes = dict.fromkeys(itertools.chain(*(part.nodes for part in parts), [node]))
        return Polynomial(terms, tuple(nodes))


def _combine(node: ir.Node, parts: Sequence[Polynomial]) -> Mapping[Powers, float] | None:
    match node.op_type, [part.terms for part in parts]:
        case "Add", [a, b]:
            return _add(a, b)
        case "Sub", [a, b]:
            return _add(a, _scale(b, -1.0))
        case "Mul", [a, b]:
            return _multiply(a, b)
        case "Neg", [a]:
            return _scale(a, -1.0)
        case "Div", [a, b]:
            divisor = _number(b)
            return _scale(a, 1.0 / divisor) if divisor else None
        case "Pow", [a, b]:
            return _power(a, _number(b))
    return None


def _number(terms: Mapping[Powers, float]) -> float | None:
    """The value of a polynomial without variables."""
    constants = [factor for powers, factor in terms.items() if not any(powers)]
    return constants[0] if len(constants) == len(terms) == 1 else None


def _add(a: Mapping[Powers, float], b: Mapping[Powers, float]) -> Mapping[Powers, float]:
    return {powers: a.get(powers, 0.0) + b.get(powers, 0.0) for powers in a.keys() | b.keys()}


def _scale(terms: Mapping[Powers, float], by: float) -> Mapping[Powers, float]:
    return {powers: factor * by for powers, factor in terms.items()}


def _multiply(a: Mapping[Powers, float], b: Mapping[Powers, float]) -> Mapping[Powers, float] | None:
    product: dict[Powers, float] = {}
    for (first, x), (second, y) in itertools.product(a.items(), b.items()):
        powers = tuple(i + j for i, j in zip(first, second, strict=True))
        product[powers] = product.get(powers, 0.0) + x * y
    return product if max(map(sum, product)) <= _MAX_DEGREE else None


def _power(terms: Mapping[Powers, float], exponent: float | None) -> Mapping[Powers, float] | None:
    if exponent not in (1.0, 2.0, 3.0):
        return None
    result: Mapping[Powers, float] | None = terms
    for _ in range(int(exponent) - 1):
        result = None if result is None else _multiply(result, terms)
    return result
