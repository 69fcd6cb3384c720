"""Reshape(Gemm(Reshape(x, [-1, k]), w, b), [batch, sequence, m])  ->  Add(MatMul(x, w), b)

A Conv1D of GPT-2 and the feed-forward layers of OPT flatten batch and sequence into rows and bring them back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, all_graphs, is_op, tensor_of
from burnish.passes.cleanup.reshape_target import RESHAPES
from burnish.passes.dims import Dim, DimOverflowError, product
from burnish.passes.editing import Round, is_templated
from burnish.passes.fusion.attention_operands import is_projection
from burnish.passes.matching import MADE_BY
from burnish.passes.shapes import Fact, Shape

_UNARY: Final = frozenset(
    {"Elu", "Erf", "Exp", "Gelu", "HardSwish", "LeakyRelu", "Neg", "Relu", "Sigmoid", "Softplus", "Tanh"}
)
_BINARY: Final = frozenset({"Add", "Div", "Mul", "Pow", "Sub"})
_NORMS: Final = frozenset({"LayerNormalization", "RMSNormalization", "Softmax"})
_MAX_COPY: Final = 1 << 16  # bytes of a weight that is written once more, transposed, because it is shared


@final
@dataclasses.dataclass(frozen=True)
class UnflattenLinear(Pass):
    """Let layers that treat every row alike work on [batch, sequence, features] as it is.

    A stretch of Gemm, MatMul, normalisation, activation and arithmetic between Reshapes that flatten the
    leading axes and Reshapes that bring them back loses those Reshapes; a Gemm in it becomes a MatMul and an
    Add, which the fusions behind take in. Everything that enters must provably be flattened from the same
    axes, and everything that leaves be brought back to them. Kept: a Gemm with other weights than constants,
    or with factors; a shared weight that would have to be written once more, transposed.
    """

    name: ClassVar[str] = "unflatten-linear"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING
    looks_for: ClassVar[frozenset[str]] = RESHAPES

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many stretches were brought back."""
        before, round_ = len(context.rewrites), Round(model, context)
        for graph in all_graphs(model):
            seen: set[ir.Node] = set()
            for node in list(graph):
                if node.graph is None or node in seen or not _reshapes(node) or is_templated(node):
                    continue
                stretch = _Stretch.behind(node, round_)
                if stretch is not None:
                    seen |= stretch.starts
                    stretch.bring_back()
        return len(context.rewrites) - before


@final
class _Stretch:
    """What lies between Reshapes to rows and Reshapes back."""

    def __init__(self, first: ir.Node, lead: Shape, rows: Dim, round_: Round) -> None:
        self._first, self._lead, self._rows, self._round = first, lead, rows, round_
        self.starts: set[ir.Node] = set()
        """Reshapes to rows."""
        self._nodes: dict[ir.Node, None] = {}
        self._ends: list[ir.Node] = []
        self._why: str | None = None

    @classmethod
    def behind(cls, node: ir.Node, round_: Round) -> _Stretch | None:
        """The stretch that starts at a Reshape to rows; None when it is not one."""
        lead = _flattened(node, round_)
        if lead is None:
            return None
        stretch = cls(node, lead, product(lead), round_)
        stretch._collect()
        return stretch

    def bring_back(self) -> None:
        """Take the Reshapes away, if that is right and permitted."""
        idle = self._why is None and not self._nodes
        if idle or not self._round.context.permit_unless(self._why, self._first):
            return
        leading = list(self._first.inputs[0].shape or [None] * len(self._lead))[: len(self._lead)]  # type: ignore[union-attr]
        for start in self.starts:
            self._round.editor.replace(start.outputs[0], _input(start))
        for node in self._nodes:
            self._widen(node, leading)
        for end in self._ends:
            self._round.editor.replace(end.outputs[0], _input(end))

    def _widen(self, node: ir.Node, leading: list[int | ir.SymbolicDim | None]) -> None:
        shapes, value = self._round.shapes, node.outputs[0]
        last = (shapes[value].shape or ())[-1]
        shapes[value] = Fact(shapes[value].dtype, (*self._lead, last))
        value.shape = ir.Shape([*leading, last.size])
        if "axis" in node.attributes:
            node.attributes["axis"] = ir.AttrInt64("axis", -1)
        if is_op(node, "Gemm"):
            self._split(node)

    def _split(self, gemm: ir.Node) -> None:
        x, weight, *bias = gemm.inputs
        if gemm.attributes.get_int("transB", 0) and weight is not None:
            weight = self._transposed(weight, gemm)
        if not bias or bias[0] is None:
            self._round.renew(gemm, "MatMul", [x, weight]).metadata_props[MADE_BY] = UnflattenLinear.name
            return
        result = gemm.outputs[0]
        matmul = self._round.editor.insert(gemm, "MatMul", [x, weight], name=f"{result.name}_product")
        matmul.outputs[0].shape, matmul.outputs[0].type = result.shape, result.type
        self._round.shapes[matmul.outputs[0]] = self._round.shapes[result]
        add = self._round.renew(gemm, "Add", [matmul.outputs[0], bias[0]])
        for node in (matmul, add):
            node.metadata_props[MADE_BY] = UnflattenLinear.name

    def _transposed(self, weight: ir.Value, before: ir.Node) -> ir.Value:
        """Read when it is needed, so that it takes no memory until then."""
        tensor, editor = tensor_of(weight), self._round.editor
        if tensor is None or not editor.holds_initializers(before.graph):
            return editor.insert(before, "Transpose", [weight], {"perm": [1, 0]}, name=weight.name).outputs[0]
        name, shape = editor.fresh(f"{weight.name}_transposed"), ir.Shape(tensor.shape.numpy()[::-1])
        lazy = ir.LazyTensor(lambda: ir.tensor(np.ascontiguousarray(tensor.numpy().T)), tensor.dtype, shape)
        return editor.initializer(name, lazy)

    def _collect(self) -> None:
        todo: list[ir.Node] = [self._first]
        while todo and self._why is None:
            node = todo.pop()
            if node in self.starts or node in self._nodes:
                continue
            if _flattened(node, self._round) == self._lead:
                self.starts.add(node)
            elif self._is_alike(node):
                self._nodes[node] = None
                todo.extend(self._makers(node))
            else:
                self._why = f"what is flattened is read by {node.op_type}, or meets what is not flattened"
            todo.extend(self._readers(node))

    def _makers(self, node: ir.Node) -> Iterator[ir.Node]:
        for value in node.inputs[:1] if _is_product(node) else node.inputs:
            if value is None or self._is_vector(value):
                continue
            maker = value.producer()
            if maker is None or maker.graph is not self._first.graph:
                self._why = "what is flattened meets an input of the graph"
            else:
                yield maker

    def _readers(self, node: ir.Node) -> Iterator[ir.Node]:
        value = node.outputs[0]
        if value.is_graph_output() or any(each.uses() for each in node.outputs[1:]):
            self._why = "what is flattened is a result of the graph"
        for reader in dict.fromkeys(value.consumers()):
            if self._is_end(reader):
                self._ends.append(reader)
            else:
                yield reader

    def _is_end(self, node: ir.Node) -> bool:
        shapes = self._round.shapes
        before, after = shapes[node.inputs[0]].shape, shapes[node.outputs[0]].shape
        back = _reshapes(node) and bool(before) and after == (*self._lead, (before or ())[-1])
        return back and node.graph is self._first.graph and self._may_go(node)

    def _may_go(self, end: ir.Node) -> bool:
        """A result of the graph can be made by one node of the stretch only."""
        value = _input(end)
        inside = value.producer() not in self.starts and len(value.uses()) == 1
        return inside or not end.outputs[0].is_graph_output()

    def _is_alike(self, node: ir.Node) -> bool:
        """True when it makes each row of one row (and of constants that are the same for all rows)."""
        shape = self._round.shapes[node.outputs[0]].shape
        if shape is None or len(shape) != 2 or shape[0] != self._rows or node.domain not in ("", "ai.onnx"):
            return False
        if node.graph is not self._first.graph or is_templated(node):
            return False
        if node.op_type in _NORMS:
            return node.attributes.get_int("axis", -1) in (-1, 1) and all(
                map(self._is_vector, node.inputs[1:])
            )
        return node.op_type in _UNARY | _BINARY or (_is_product(node) and self._is_linear(node))

    def _is_linear(self, node: ir.Node) -> bool:
        weight = node.inputs[1]
        if weight is None or node.inputs[0] is weight or not is_projection(node, self._round.shapes):
            return False
        turned = bool(node.attributes.get_int("transB", 0))
        tensor = tensor_of(weight)
        large = tensor is not None and tensor.nbytes > _MAX_COPY
        return not (turned and large and len(weight.uses()) > 1)

    def _is_vector(self, value: ir.Value | None) -> bool:
        """A constant that is the same for all rows."""
        rank = self._round.shapes[value].rank
        return value is None or (tensor_of(value) is not None and rank is not None and rank <= 1)


def _reshapes(node: ir.Node) -> bool:
    return node.op_type in RESHAPES and node.domain in ("", "ai.onnx")


def _is_product(node: ir.Node) -> bool:
    return is_op(node, "Gemm") or is_op(node, "MatMul")


def _flattened(node: ir.Node, round_: Round) -> Shape | None:
    """The axes that a Reshape makes one of, all but the last; None for another node.

    A Squeeze of [batch, 1, features] and a Flatten do the same.
    """
    if not _reshapes(node) or node.inputs[0] is None:
        return None
    before, after = round_.shapes[node.inputs[0]].shape, round_.shapes[node.outputs[0]].shape
    if before is None or after is None or len(before) < 3 or len(after) != 2 or before[-1] != after[-1]:
        return None
    try:
        return before[:-1] if product(before[:-1]) == after[0] else None
    except DimOverflowError:
        return None


def _input(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    if value is None:
        raise TypeError(f"{node.name!r} has no input.")
    return value
