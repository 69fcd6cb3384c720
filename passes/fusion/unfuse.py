"""The inverse of fusions: what an op of com.microsoft stands for, written in standard ops.

Each inverse is two functions: `refuse` says why a node cannot be written so (None: it can), and
`build` adds the nodes to a `Draft` and returns the value that takes the place of each used output.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.fusion.fuse_rms_norm import norm_op
from burnish.passes.matching import CONTRIB, Scope

Results = Mapping[int, ir.Value]
"""The new value for each output of the fused node that is used, by its position."""
_ROOT_HALF: Final = math.sqrt(0.5)


@final
class Draft:
    """Nodes that will stand for `node` in `scope`, operands before users."""

    def __init__(self, node: ir.Node, scope: Scope) -> None:
        self.node, self.scope = node, scope
        self.nodes: list[ir.Node] = []
        self.dtype = type_of(node) or ir.DataType.FLOAT

    def input(self, position: int) -> ir.Value | None:
        """An input of the fused node; None where it is left out."""
        return input_of(self.node, position)

    def op(
        self, op_type: str, *inputs: ir.Value | None, like: ir.Value | None = None, **attributes: object
    ) -> ir.Value:
        """Add a node with one output, which has the shape of `like` (None: unknown)."""
        return self.ops(op_type, 1, *inputs, like=like, **attributes)[0]

    def ops(
        self,
        op_type: str,
        count: int,
        *inputs: ir.Value | None,
        like: ir.Value | None = None,
        **attributes: object,
    ) -> tuple[ir.Value, ...]:
        """Add a node with `count` outputs of the draft's type."""
        given = list(inputs)
        while given and given[-1] is None:
            given.pop()
        node = ir.node(op_type, given, attributes, num_outputs=count)  # type: ignore[arg-type]
        for output in node.outputs:
            output.name = self.scope.fresh(f"{self.node.outputs[0].name}_{op_type.lower()}")
            output.dtype = self.dtype
            output.shape = None if like is None else like.shape
        self.nodes.append(node)
        return tuple(node.outputs)

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """A constant, named after the fused node's output."""
        return self.scope.constant(self.node, f"{self.node.outputs[0].name}_{name}", array)

    def number(self, name: str, value: float) -> ir.Value:
        """A scalar of the draft's type."""
        return self.constant(name, np.array(value, self.dtype.numpy()))

    def biased(self, x: ir.Value | None, bias: ir.Value | None) -> ir.Value | None:
        """x + bias, or x where there is no bias."""
        return x if bias is None else self.op("Add", x, bias, like=x)


@final
@dataclasses.dataclass(frozen=True)
class Inverse:
    """How one fused op is written in standard ops."""

    refuse: Callable[[ir.Node, int], str | None]
    """(node, opset) -> why not, or None."""
    build: Callable[[Draft], Results]
    timed: bool = True
    """It is worth timing in a model where the cost table does not know."""


def input_of(node: ir.Node, position: int) -> ir.Value | None:
    """An input of a node; None where it is left out."""
    return node.inputs[position] if position < len(node.inputs) else None


def type_of(node: ir.Node) -> ir.DataType | None:
    """The floating type that a fused node calculates in, where it is known."""
    values = [*node.inputs[:3], *node.outputs[:1]]
    known = (value.dtype for value in values if value is not None)
    return next((dtype for dtype in known if dtype is not None), None)


def is_used(value: ir.Value) -> bool:
    """True when something needs the value."""
    return bool(value.uses()) or value.is_graph_output()


def _refuse_untyped(node: ir.Node, _: int) -> str | None:
    return "its type is unknown" if type_of(node) is None else None


def _refuse_skip_norm(node: ir.Node, _: int) -> str | None:
    if any(is_used(output) for output in node.outputs[1:3]):
        return "its mean or deviation is used"
    return None


def _skip_norm(draft: Draft) -> Results:
    """input + skip + bias, then the norm; outputs 0 (normalised) and 3 (the sum).

    Written as Sum: onnxruntime's optimiser turns Add and LayerNormalization back into the very
    SkipLayerNormalization that was measured slower (1.31: 5 times, on CPU), and leaves Sum alone.
    """
    with_shift = draft.node.op_type == "SkipLayerNormalization"
    op_type = "LayerNormalization" if with_shift else norm_op(draft.scope.opset)
    bias = draft.input(4 if with_shift else 3)
    parts = [draft.input(0), draft.input(1), *([bias] if bias is not None else [])]
    total = draft.op("Sum", *parts, like=draft.input(0))
    epsilon = draft.node.attributes.get_float("epsilon", 1e-12)
    shift = draft.input(3) if with_shift else None
    y = draft.op(op_type, total, draft.input(2), shift, axis=-1, epsilon=epsilon)
    return {0: y, 3: total}


def _bias_gelu(draft: Draft) -> Results:
    return {0: _gelu_of(draft, draft.biased(draft.input(0), draft.input(1)))}


def _gelu_of(draft: Draft, x: ir.Value | None) -> ir.Value:
    if draft.scope.opset >= 20:
        return draft.op("Gelu", x, like=x, approximate="none")
    scaled = draft.op("Mul", x, draft.number("factor", _ROOT_HALF), like=x)
    erf = draft.op("Erf", scaled, like=x)
    return _half_product(draft, x, erf)


def _fast_gelu(draft: Draft) -> Results:
    x = draft.biased(draft.input(0), draft.input(1))
    if draft.scope.opset >= 20:
        return {0: draft.op("Gelu", x, like=x, approximate="tanh")}
    square = draft.op("Mul", x, x, like=x)
    cubic = draft.op("Mul", square, draft.number("cubic", 0.044715), like=x)
    factor = draft.op("Add", cubic, draft.number("one", 1.0), like=x)
    linear = draft.op("Mul", x, draft.number("factor", math.sqrt(2.0 / math.pi)), like=x)
    tanh = draft.op("Tanh", draft.op("Mul", linear, factor, like=x), like=x)
    return {0: _half_product(draft, x, tanh)}


def _half_product(draft: Draft, x: ir.Value | None, t: ir.Value) -> ir.Value:
    """x * (1 + t) / 2"""
    total = draft.op("Add", t, draft.number("one", 1.0), like=x)
    product = draft.op("Mul", x, total, like=x)
    return draft.op("Mul", product, draft.number("half", 0.5), like=x)


def _quick_gelu(draft: Draft) -> Results:
    x, alpha = draft.input(0), draft.node.attributes.get_float("alpha", 1.702)
    scaled = x if alpha == 1.0 else draft.op("Mul", x, draft.number("alpha", alpha), like=x)
    return {0: draft.op("Mul", x, draft.op("Sigmoid", scaled, like=x), like=x)}


SIMPLE: Final[Mapping[tuple[str, str], Inverse]] = {
    (CONTRIB, "SkipLayerNormalization"): Inverse(_refuse_skip_norm, _skip_norm),
    (CONTRIB, "SkipSimplifiedLayerNormalization"): Inverse(_refuse_skip_norm, _skip_norm),
    (CONTRIB, "BiasGelu"): Inverse(_refuse_untyped, _bias_gelu),
    (CONTRIB, "Gelu"): Inverse(_refuse_untyped, _bias_gelu),
    (CONTRIB, "FastGelu"): Inverse(_refuse_untyped, _fast_gelu),
    (CONTRIB, "QuickGelu"): Inverse(_refuse_untyped, _quick_gelu),
}
