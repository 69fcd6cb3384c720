"""x * Clip(x + 3, 0, 6) / 6  ->  x * HardSigmoid(x), or HardSwish(x);   Clip(x / 6 + 0.5, 0, 1) likewise

Source: Howard et al., "Searching for MobileNetV3" (2019).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import ClassVar, Final, final

import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, is_op
from burnish.passes.fusion.polynomial import operands_of, read_polynomial, what_follows
from burnish.passes.matching import Scope, candidates, obstacle, scalar

_OPSET: Final = 14  # HardSwish is an op from here on
_LARGEST: Final = 3.4028234663852886e38  # of float32
_GATE: Final = (1 / 6, 0.5)


@final
@dataclasses.dataclass(frozen=True)
class FuseHardSwish(Pass):
    """Fuse the arithmetic of HardSigmoid and HardSwish, however it is written.

    HardSwish becomes one node from opset 14 on where the target has a kernel for it, and else
    x * HardSigmoid(x), which `fuse-conv-activation` knows. Kept: types other than float32, for which few
    runtimes have these kernels; a Clip from another number than 0.
    """

    name: ClassVar[str] = "fuse-hard-swish"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING
    looks_for: ClassVar[frozenset[str]] = frozenset({"Clip", "HardSigmoid"})

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many activations were fused."""
        return sum(_fuse(node, scope, context) for node, scope in candidates(model, "Clip", "HardSigmoid"))


@final
@dataclasses.dataclass(frozen=True)
class _Gate:
    """min(max(slope x + offset, 0), 1), times a factor."""

    x: ir.Value
    slope: float
    offset: float
    factor: float
    nodes: tuple[ir.Node, ...]

    @property
    def is_of_swish(self) -> bool:
        return _is_gate(self.slope, self.offset)


def clip_bounds(clip: ir.Node) -> tuple[float, float] | None:
    """Both bounds of a float32 Clip; one that is left out is the last number of the type. None: not known."""
    low, high = _bound(clip, "min", 1, -_LARGEST), _bound(clip, "max", 2, _LARGEST)
    return None if low is None or high is None else (low, high)


def gates_swish(sigmoid: ir.Node) -> bool:
    """True for the HardSigmoid that HardSwish multiplies with."""
    attributes = sigmoid.attributes
    return _is_gate(attributes.get_float("alpha", 0.2), attributes.get_float("beta", 0.5))


def _is_gate(slope: float, offset: float) -> bool:
    return all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip((slope, offset), _GATE, strict=True))


def _bound(node: ir.Node, name: str, position: int, default: float) -> float | None:
    value = node.inputs[position] if len(node.inputs) > position else None
    return node.attributes.get_float(name, default) if value is None else scalar(value)


@final
@dataclasses.dataclass(frozen=True)
class _Match:
    gate: _Gate
    nodes: list[ir.Node]
    """All of the pattern; the last one makes the result."""
    swish: bool
    """The gate is multiplied with x."""


def _fuse(node: ir.Node, scope: Scope, context: Context) -> bool:
    single = scope.opset >= _OPSET and context.target.has_kernel("", "HardSwish")
    matches = [found for gate in _gates(node) if (found := _match(gate)) is not None]
    matches.sort(key=lambda found: not found.swish)
    if not matches or (is_op(node, "HardSigmoid") and not (matches[0].swish and single)):
        return False
    free = [found for found in matches if obstacle(found.nodes, found.nodes[-1].outputs) is None]
    found = (free or matches)[0]
    last = found.nodes[-1]
    why = _refusal(found.gate.x, context) or obstacle(found.nodes, last.outputs)
    if not context.permit_unless(why, last):
        return False
    new = [ir.node("HardSwish", [found.gate.x])] if found.swish and single else _written_out(found, scope)
    scope.replace(found.nodes, new, {last.outputs[0]: new[-1].outputs[0]}, FuseHardSwish.name)
    return True


def _match(gate: _Gate) -> _Match | None:
    t, factor = gate.nodes[-1].outputs[0], 1 / gate.factor
    product = what_follows(gate.x, t, {(1, 1): factor}) if gate.is_of_swish else None
    after = product or what_follows(gate.x, t, {(0, 1): factor})
    if after is None and gate.factor != 1:
        return None
    return _Match(gate, [*gate.nodes, *(() if after is None else after.nodes)], product is not None)


def _gates(node: ir.Node) -> Iterator[_Gate]:
    """What a node may be the gate of: the value that the most arithmetic is done with comes first."""
    if is_op(node, "HardSigmoid"):
        alpha, beta = (node.attributes.get_float(*each) for each in (("alpha", 0.2), ("beta", 0.5)))
        if node.inputs[0] is not None:
            yield _Gate(node.inputs[0], alpha, beta, 1.0, (node,))
        return
    bounds, argument = clip_bounds(node), node.inputs[0]
    if bounds is None or argument is None or bounds[0] != 0 or not 0 < bounds[1] < _LARGEST:
        return
    for x in reversed(list(operands_of(argument))):
        inner = None if x is argument else read_polynomial(argument, [x])
        if inner is not None and inner.terms.keys() == {(0,), (1,)}:
            slope, offset = inner.terms[(1,)] / bounds[1], inner.terms[(0,)] / bounds[1]
            yield _Gate(x, slope, offset, bounds[1], (*inner.nodes, node))


def _refusal(x: ir.Value, context: Context) -> str | None:
    if not context.target.has_kernel("", "HardSigmoid"):
        return f"target {context.target.name} has no HardSigmoid"
    return None if x.dtype == ir.DataType.FLOAT else "HardSigmoid is for float32, or the type is not known"


def _written_out(found: _Match, scope: Scope) -> list[ir.Node]:
    gate = found.gate
    slope, offset = _GATE if gate.is_of_swish else (gate.slope, gate.offset)
    sigmoid = ir.node("HardSigmoid", [gate.x], {"alpha": slope, "beta": offset})
    if not found.swish:
        return [sigmoid]
    value = sigmoid.outputs[0]
    value.name, value.type, value.shape = scope.fresh(f"{gate.x.name}_gate"), gate.x.type, gate.x.shape
    return [sigmoid, ir.node("Mul", [gate.x, value])]
