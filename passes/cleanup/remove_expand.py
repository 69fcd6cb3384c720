"""Add(x, Expand(y))  ->  Add(x, y), where Add broadcasts y anyway"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Final, final

import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, is_op
from burnish.passes.editing import Round, until_stable
from burnish.passes.shapes import Fact, Shape, Shapes

_ELEMENTWISE: Final = frozenset(
    {
        "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Floor",
        "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "LeakyRelu",
        "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow",
        "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt",
        "Sub", "Sum", "Tanh", "Where", "Xor",
    }
)  # fmt: skip
_MAX_CHAIN: Final = 64


@final
@dataclasses.dataclass(frozen=True)
class RemoveExpand(Pass):
    """Remove an Expand where the operators that read it broadcast to the same shape without it.

    The operators in between then work on the smaller tensor: `Add(scores, Where(Expand(mask), 0, low))`
    becomes `Add(scores, Where(mask, 0, low))`. An Expand of an Expand expands once.

    Kept: an Expand that reaches an output or an operator that does not broadcast; one whose shapes are not
    known.
    """

    name: ClassVar[str] = "remove-expand"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    looks_for: ClassVar[frozenset[str]] = frozenset({"Expand"})

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many Expand nodes were removed or skipped over."""
        # until nothing changes: the last of two that make up one shape can go first
        return until_stable(model, context, lambda round_: _Remover(round_).visit)


@final
class _Remover:
    def __init__(self, round_: Round) -> None:
        self._round, self._context = round_, round_.context

    @property
    def _shapes(self) -> Shapes:
        return self._round.shapes

    def visit(self, node: ir.Node) -> None:
        """Skip over an Expand, or remove it."""
        if is_op(node, "Expand") and node.inputs[0] is not None:
            self._skip_inner(node)
            self._remove(node, node.inputs[0])

    def _skip_inner(self, node: ir.Node) -> None:
        inner = None if node.inputs[0] is None else node.inputs[0].producer()
        if inner is None or not is_op(inner, "Expand") or inner.inputs[0] is None:
            return
        source, target = self._shapes[inner.inputs[0]].shape, self._shapes[node.inputs[1]].content
        result = self._shapes[node.outputs[0]].shape
        same = result is not None and self._shapes.broadcast(source, target) == result
        if same and self._context.permit(node):
            self._round.editor.set_input(node, 0, inner.inputs[0])

    def _remove(self, node: ir.Node, source: ir.Value) -> None:
        smaller = self._smaller(node, source)
        if not smaller or not self._context.permit(node):
            return
        for value, shape in smaller.items():
            self._shapes[value] = Fact(self._shapes[value].dtype, shape)
            if value.shape is not None:
                value.shape = as_ir_shape(shape)
        self._round.editor.replace(node.outputs[0], source)

    def _smaller(self, node: ir.Node, source: ir.Value) -> dict[ir.Value, Shape] | None:
        """The shapes that change without the Expand; None when that would be seen."""
        shape = self._shapes[source].shape
        if shape is None or not node.outputs[0].uses():
            return None
        changed, todo = {node.outputs[0]: shape}, [node.outputs[0]]
        while todo:
            value = todo.pop()
            if value.is_graph_output() or len(changed) > _MAX_CHAIN:
                return None
            for user in value.consumers():
                if user.graph is not node.graph or user.domain or user.op_type not in _ELEMENTWISE:
                    return None
                result = user.outputs[0]
                before, after = self._shapes[result].shape, self._without(user, changed)
                if before is None or after is None:
                    return None
                if after != before and changed.get(result) != after:
                    changed[result] = after
                    todo.append(result)
        return changed

    def _without(self, user: ir.Node, changed: dict[ir.Value, Shape]) -> Shape | None:
        if user.op_type == "Clip":  # its bounds are scalars and do not broadcast
            first = user.inputs[0]
            return None if first is None else changed.get(first)
        known = [value for value in user.inputs if value is not None]
        return self._shapes.broadcast(*(changed.get(v, self._shapes[v].shape) for v in known))


def as_ir_shape(shape: Shape) -> ir.Shape:
    """The shape as onnx-ir writes it; a size that has no plain name is unknown."""
    names = ((dim.size, dim.name) for dim in shape)
    return ir.Shape([size if size is not None else _plain(name) for size, name in names])


def _plain(name: str | None) -> str | None:
    return None if name is None or name.startswith(("?", "min(")) else name
