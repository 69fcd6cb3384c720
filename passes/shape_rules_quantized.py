"""Shapes of onnxruntime's own operators on quantised tensors, and of what control flow gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from burnish.passes.shape_layers import recurrent
from burnish.passes.shapes import UNKNOWN, Call, Fact

Rule = Callable[[Call], Sequence[Fact]]


def _binary(call: Call) -> Sequence[Fact]:
    """(A, its scale and zero point, B, ...)"""
    return [Fact(call.input(0).dtype, call.shapes.broadcast(call.input(0).shape, call.input(3).shape))]


def _unary(call: Call) -> Sequence[Fact]:
    return [Fact(call.input(0).dtype, call.input(0).shape)]


QUANTISED: Final[dict[str, Rule]] = {
    "DynamicQuantizeLSTM": recurrent,
    "QLinearAdd": _binary,
    "QLinearLeakyRelu": _unary,
    "QLinearMul": _binary,
    "QLinearSigmoid": _unary,
    "QLinearSoftmax": _unary,
}
"""Of com.microsoft."""


def branches(call: Call) -> Sequence[Fact]:
    """Of If: what is true of both branches."""
    graphs = [call.node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    then, other = ([call.shapes[value] for value in graph.outputs] for graph in graphs)
    return [_common(a, b, call) for a, b in zip(then, other, strict=False)]


def _common(a: Fact, b: Fact, call: Call) -> Fact:
    if a == b or a.dtype != b.dtype or a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return a if a == b else (Fact(a.dtype) if a.dtype == b.dtype else UNKNOWN)
    dims = (x if x == y else call.shapes.fresh() for x, y in zip(a.shape, b.shape, strict=True))
    return Fact(a.dtype, tuple(dims), a.content if a.content == b.content else None)


def stacked(call: Call) -> Sequence[Fact]:
    """Of Loop and Scan: a scan output has the static sizes of what the body gives, and one dim more.

    Other sizes of it may differ from turn to turn, and of what is carried over nothing is said. A Scan can
    stack along another axis, or have a batch (opset 8): of that only the types are known.
    """
    body = call.node.attributes["body"].as_graph()
    scan = call.node.op_type == "Scan"
    carried = len(call.node.inputs) - (call.node.attributes.get_int("num_scan_inputs", 0) or 0 if scan else 2)
    outputs = body.outputs if scan else list(body.outputs)[1:]
    plain = not scan or (
        call.opset > 8 and not any(call.node.attributes.get_ints("scan_output_axes", ()) or ())
    )
    facts = []
    for index, value in enumerate(outputs):
        fact = call.shapes[value]
        if index < carried or fact.shape is None or not plain:
            facts.append(Fact(fact.dtype))
            continue
        dims = (dim if dim.size is not None else call.shapes.fresh() for dim in fact.shape)
        facts.append(Fact(fact.dtype, (call.shapes.fresh(), *dims)))
    return facts
