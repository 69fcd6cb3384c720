"""A trace that follows the example: what it decides by values or sizes is taken as decided, and then checked.

The last resort, for models of transformers, whose code no user can change. `if mask.any():` goes where it
went when the module ran on the example, and conditions on sizes become assumptions, no errors. The graph is
compared with the module at many sizes, and beyond those wherever an assumption is found not to hold.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, final

from burnish.exporter.blame import place_on_stack
from burnish.exporter.dims import Axis
from burnish.exporter.library_fixes import fixes, trace, translate
from burnish.exporter.needs import torch
from burnish.exporter.values import copies
from burnish.feeds import Assignment, is_batch
from burnish.manifest import DimRange

FOLLOWED: Final = frozenset({"EXPORT_DATA_DEPENDENT", "EXPORT_FAILED", "EXPORT_SPECIALISED"})
"""Failures after which such a trace is worth a try."""

_LARGEST: Final = 2047  # of the example's sizes: the module runs there
_UNBOUNDED: Final = 2**31
_STEPS: Final = 12  # sizes above the largest compared at which assumptions are tried


@final
@dataclasses.dataclass(frozen=True)
class Taken:
    """What a trace took for granted."""

    conditions: tuple[Any, ...]
    """Of sizes: sympy's, over torch's symbols."""
    ranges: Mapping[str, DimRange]
    """Of torch's symbols."""
    decisions: tuple[str, ...]
    """Of values, in words."""

    def doubtful(
        self,
        symbols: Mapping[str, str],
        dims: Mapping[str, DimRange],
        compared: Sequence[Assignment],
        example: Assignment,
    ) -> list[Assignment]:
        """Sizes beyond those compared at which something taken for granted is not so: to be compared too.

        Args:
            symbols: the dim that each symbol is.
            dims: their ranges.
            compared: sizes at which graph and module are compared anyway.
            example: the sizes that were traced.
        """
        found: list[Assignment] = []
        known: set[str] = set()
        for name in example:
            largest = max((each[name] for each in compared if name in each), default=example[name])
            for size in _beyond(largest, dims.get(name, DimRange())):
                sizes = {**example, name: size}
                broken = self._broken({symbol: sizes[dim] for symbol, dim in symbols.items() if dim in sizes})
                if not broken <= known:
                    known |= broken
                    found.append(sizes)
        return found

    def _broken(self, sizes: Mapping[str, int]) -> set[str]:
        """What does not hold, of that which can be told from the sizes."""
        found = {
            f"{symbol} in {allowed}"
            for symbol, size in sizes.items()
            if (allowed := self.ranges.get(symbol)) is not None
            and (size < allowed.min or (allowed.max is not None and size > allowed.max))
        }
        for condition in self.conditions:
            known = {each: sizes[str(each)] for each in condition.free_symbols if str(each) in sizes}
            if _fails(condition, known):
                found.add(str(condition))
        return found


def _fails(condition: Any, sizes: Mapping[Any, int]) -> bool:
    """True where a condition on sizes is not so, or says nothing (a remainder of negative numbers)."""
    try:
        return bool(condition.subs(sizes) == False)  # noqa: E712 - sympy's false; a condition may stay open
    except (AssertionError, ZeroDivisionError):
        return True


def roomy(axes: Sequence[Axis], shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """The shapes of the example with odd, large sizes, at which a module does what it does for most."""
    found = {name: list(shape) for name, shape in shapes.items()}
    for axis in axes:
        size, top = shapes[axis.input][axis.axis], axis.allowed.max
        if not (axis.parts or is_batch(axis.name) or axis.allowed.min == 0):
            large = min(top, _LARGEST) if top is not None else 2 * size + 5
            found[axis.input][axis.axis] = max(size, large - (large + 1) % 2)
    return {name: tuple(shape) for name, shape in found.items()}


def decisions(module: Any, named: Mapping[str, Any]) -> dict[str, bool]:
    """Run the module, and hear at which of its lines it takes a truth value from a tensor, and which.

    Lines at which it takes both are left out.
    """
    with _Recorder() as recorder:
        module(**copies(named))
    return {line: values.pop() for line, values in recorder.found.items() if len(values) == 1}


def follow(
    module: Any, named: Mapping[str, Any], shapes: Mapping[str, Any], opset: int, decided: Mapping[str, bool]
) -> tuple[Any, Taken]:
    """Trace and translate, with transformers' mends; to be called inside `traceable`.

    Args:
        module: in eval mode.
        named: example inputs by parameter name.
        shapes: what torch.export takes as `dynamic_shapes`; it finds out itself what each dim is.
        opset: of the graph.
        decided: what `decisions` heard.
    """
    with fixes(module):
        with _replayed(decided) as used:
            traced = trace(module, named, shapes)
        taken = Taken(tuple(_conditions(traced)), _ranges(traced), tuple(used))
        return translate(traced, opset), taken


def _conditions(traced: Any) -> Iterator[Any]:
    for node in traced.graph.find_nodes(op="call_function", target=torch.ops.aten._assert_scalar.default):
        value = node.args[0].meta.get("val") if isinstance(node.args[0], torch.fx.Node) else None
        if isinstance(value, torch.SymBool):
            yield value.node.expr


def _ranges(traced: Any) -> dict[str, DimRange]:
    return {
        str(symbol): DimRange(int(bounds.lower), int(bounds.upper) if bounds.upper < _UNBOUNDED else None)
        for symbol, bounds in traced.range_constraints.items()
    }


def _beyond(largest: int, allowed: DimRange) -> list[int]:
    """Sizes above the largest up to the end of the range, ever further apart, round ones among them."""
    top = allowed.max if allowed.max is not None else 64 * largest
    steps = {largest + 1, top - 1, top}
    steps |= {round(largest * (top / largest) ** (step / _STEPS)) for step in range(1, _STEPS)}
    steps |= {2**power + more for power in range(top.bit_length()) for more in (0, 1)}
    return sorted(size for size in steps if largest < size <= top)


def _truth(function: Any, args: Sequence[Any]) -> bool:
    """Is a truth value taken from a tensor?"""
    if function is torch.Tensor.__bool__:
        return True
    return function is torch.Tensor.item and args[0].dtype == torch.bool


@final
class _Recorder(torch.overrides.TorchFunctionMode):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, set[bool]] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = function(*args, **(kwargs or {}))
        if _truth(function, args):
            self.found.setdefault(place_on_stack(sys._getframe()), set()).add(value)
        return value


@final
class _Replayer(torch.overrides.TorchFunctionMode):  # type: ignore[misc]
    def __init__(self, decided: Mapping[str, bool]) -> None:
        super().__init__()
        self.decided = decided
        self.used: dict[str, None] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _truth(function, args) and (line := place_on_stack(sys._getframe())) in self.decided:
            self.used[f"{line} is {self.decided[line]}"] = None
            return self.decided[line]
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def _replayed(decided: Mapping[str, bool]) -> Iterator[Mapping[str, None]]:
    """Inside, truth values are those that were heard; what is given are those that were used."""
    with _Replayer(decided) as replayer:
        yield replayer.used
