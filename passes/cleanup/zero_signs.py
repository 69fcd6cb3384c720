"""Where it can be seen whether a zero is 0.0 or -0.0: below a fraction bar, and nowhere else that counts."""

from __future__ import annotations

from typing import Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import all_graphs, bodies, constant_of

_KNOWN: Final = ("", "ai.onnx", "com.microsoft")
_BLIND: Final = frozenset(
    {
        "ArgMax", "ArgMin", "Cos", "Cosh", "Equal", "Exp", "Greater", "GreaterOrEqual", "IsInf", "IsNaN",
        "Less", "LessOrEqual", "LogSoftmax", "NonZero", "Shape", "Sigmoid", "Size", "Softmax", "Softplus",
    }
)  # fmt: skip
"""Their result is the same for both zeros."""


@final
class ZeroSigns:
    """The values of a model whose zeros' signs some operator can see, found by walking back from those.

    1 / 0.0 is not 1 / -0.0. Everything else in ONNX takes one for the other, up to the sign of a zero in its
    own result. Outputs of the model are compared as numbers, which do not tell them apart.
    """

    def __init__(self, model: ir.Model) -> None:
        self._seen: set[ir.Value] = set()
        todo = [v for graph in all_graphs(model) for node in graph for v in _looked_at(node)]
        todo.extend(value for function in model.functions.values() for value in function.outputs)
        while todo:
            value = todo.pop()
            if value in self._seen:
                continue
            self._seen.add(value)
            node = value.producer()
            if node is not None and node.op_type == "If" and node.domain in _KNOWN:
                todo.extend(body.outputs[value.index() or 0] for body in bodies(node))
            elif node is not None and not _is_blind(node):
                todo.extend(source for source in node.inputs if source is not None)

    def show(self, value: ir.Value) -> bool:
        """True when it can make a difference whether a zero in the value is negative."""
        return value in self._seen


def _looked_at(node: ir.Node) -> list[ir.Value]:
    """The inputs whose zeros' signs the operator sees."""
    inputs = [value for value in node.inputs if value is not None]
    if node.op_type == "If" and node.domain in _KNOWN:
        return []  # what its branches give is seen where its own results are
    inner = [result for body in bodies(node) for result in body.outputs]
    if node.domain not in _KNOWN or inner or node.op_type in ("BitCast", "Reciprocal"):
        return [*inputs, *inner]
    if node.op_type in ("Div", "QuantizeLinear"):
        return inputs[1:]
    if node.op_type == "Pow":
        exponent = constant_of(node.inputs[1], max_bytes=1024)
        return [] if exponent is not None and np.all(exponent > 0) else inputs[:1]
    text = node.op_type == "Cast" and node.attributes.get_int("to") == int(ir.DataType.STRING)
    return inputs if text else []


def _is_blind(node: ir.Node) -> bool:
    """True when no sign of a zero gets through: by the operator, or because a constant is added."""
    if node.domain in _KNOWN and node.op_type in _BLIND:
        return True
    if node.domain not in _KNOWN or node.op_type not in ("Add", "Max", "Sub"):
        return False
    constants = [constant_of(value, max_bytes=1 << 16) for value in node.inputs]
    floats = [array for array in constants if array is not None and array.dtype.kind == "f"]
    return any(bool(np.all(array > 0 if node.op_type == "Max" else array != 0)) for array in floats)
