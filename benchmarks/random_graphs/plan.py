"""How a pattern is planted: in its parts, of which a near miss spoils one."""

from __future__ import annotations

from typing import Final, Literal, final

import numpy as np

from burnish.benchmarks.random_graphs.writer import FLOAT, Known, Writer

Near = Literal["number", "axis", "broadcast", "elsewhere"]
NEAR: Final[tuple[Near | None, ...]] = (None, None, None, None, "number", "axis", "broadcast", "elsewhere")
WIDTH: Final = 8
"""Of the inputs' last axis."""
HEADS: Final = 2


@final
class Plan:
    """Hands out the parts of a pattern, and spoils one of them."""

    def __init__(self, w: Writer, near: Near | None) -> None:
        self.w, self.near = w, near
        self._number = int(w.rng.integers(3))
        self._start = len(w.nodes)

    def number(self, value: float) -> Known:
        """A constant scalar, sometimes of rank 1; another one at one place of a near miss."""
        self._number -= 1
        if self.near == "number" and self._number < 0:
            value, self.near = float(self.w.choose((value * 1.25, value + 0.1, -value))), None
        return self.w.constant(np.full((1,) * int(self.w.rng.integers(2)), value))

    def axis(self, x: Known) -> int:
        """The last axis."""
        if self.near == "axis":
            return int(self.w.rng.integers(x.rank))
        return int(self.w.choose((-1, x.rank - 1)))

    def vector(self, size: int) -> Known:
        """A weight for the last axis."""
        if self.near == "broadcast":
            return self.w.weight(
                *self.w.choose(((1, size), (1, 1, size), (1,), (size, 1, size), (1, 1, 1, size)))
            )
        return self.w.weight(size)

    def either(self, op: str, a: Known, b: Known) -> Known:
        """An op that commutes, its operands in any order."""
        return self.w.on(op, a, b) if self.w.chance(0.5) else self.w.on(op, b, a)

    def end(self, result: Known) -> Known:
        """The result; where an inner value is to be used elsewhere, it gets another use."""
        w = self.w
        inner = [node for node in w.nodes[self._start :] if result.name not in node.output]
        if self.near == "elsewhere" and inner and not w.depth:
            name = w.choose(inner).output[0]
            as_float = Known(w.fresh("seen"), FLOAT, (), rough=True)
            w.add("Cast", [name], [as_float], to=FLOAT)
            total = Known(w.fresh("total"), FLOAT, (), rough=True)
            w.add("ReduceSum", [as_float], [total], keepdims=0)
            w.wanted.append(total)
        return result
