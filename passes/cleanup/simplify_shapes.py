"""Shape -> Gather -> Concat -> Reshape  ->  Reshape to constants, where the sizes can be proved"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, bodies, is_op, tensor_of
from burnish.passes.cleanup.reshape_target import constant_target
from burnish.passes.cleanup.sizes import Sizes
from burnish.passes.dims import Dim
from burnish.passes.editing import Editor
from burnish.passes.shape_rules import shape_bounds
from burnish.passes.shapes import Fact, Shape

_Key = tuple[ir.DataType | None, int | None, Shape]


@final
@dataclasses.dataclass(frozen=True)
class SimplifyShapes(Pass):
    """Replace arithmetic on sizes by constants, or by one Shape of an input.

    - a size, or a vector of sizes, that is known becomes a constant;
    - one that an earlier value holds is taken from there; one that stands in the shape of an input is read
      from it (`Shape(x, start, end)`, opset 15);
    - a Reshape to sizes becomes a Reshape to constants, with 0 for dims that it copies and at most one -1;
    - an Expand names only the dims that it changes.

    Sizes are compared as polynomials in the names of the inputs' dims. Nothing is assumed to be larger than
    0: a -1 is not introduced beside a dim that might be 0, where it is not defined.
    """

    name: ClassVar[str] = "simplify-shapes"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many values were replaced and targets simplified."""
        before = len(context.rewrites)
        simplifier = _Simplifier(model, context)
        while simplifier.run():  # what one round makes may hold what the next one finds
            simplifier = _Simplifier(model, context)
        simplifier.report()
        return len(context.rewrites) - before


@final
class _Simplifier:
    def __init__(self, model: ir.Model, context: Context) -> None:
        self._model, self._context, self._editor = model, context, Editor(model)
        self._shapes = context.shapes(model)
        self._sizes = Sizes(model, self._shapes, self._editor)
        self._misses: list[ir.Node] = []

    def run(self) -> bool:
        """Visit every graph; True when something changed."""
        before = len(self._context.rewrites)
        functions = [function.graph for function in self._model.functions.values()]
        for root in (self._model.graph, *functions):
            self._visit(root, {})
        return len(self._context.rewrites) > before

    def report(self) -> None:
        """Tell the context which targets are still computed."""
        for node in self._misses:
            self._context.miss(node, "its target has more than one size that is neither known nor copied")

    def _visit(self, graph: ir.Graph, around: dict[_Key, ir.Value]) -> None:
        """`around` holds the sizes that the graphs around it have computed."""
        seen = dict(around)
        for node in list(graph):
            if node.graph is None:
                continue
            for body in bodies(node):
                self._visit(body, seen)
            if is_op(node, "Reshape"):
                self._simplify_reshape(node)
            elif is_op(node, "Expand"):
                self._simplify_expand(node)
            if len(node.outputs) == 1 and tensor_of(node.outputs[0]) is None:
                self._simplify_size(node, seen)

    def _simplify_size(self, node: ir.Node, seen: dict[_Key, ir.Value]) -> None:
        value, fact = node.outputs[0], self._shapes[node.outputs[0]]
        if fact.content is None or not (value.uses() or value.is_graph_output()):
            return
        if fact.ints is not None:
            self._make_constant(node, fact)
            return
        key = fact.dtype, fact.rank, fact.content
        if not _is_there(seen.get(key)):
            seen[key] = value
        first = seen[key]
        if first is not value:
            if self._editor.can_replace(value, first) and self._context.permit(node):
                self._editor.replace(value, first)
        elif fact.rank == 1 and fact.dtype == ir.DataType.INT64:
            seen[key] = self._read_from_input(node, fact.content)

    def _make_constant(self, node: ir.Node, fact: Fact) -> None:
        if fact.dtype is None or not self._context.permit(node):
            return
        value = node.outputs[0]
        array = np.array(fact.ints, dtype=fact.dtype.numpy()).reshape(fact.static or ())
        self._editor.become_constant(value, node, array)

    def _read_from_input(self, node: ir.Node, content: Shape) -> ir.Value:
        place = self._sizes.find(content, node)
        if place is None or self._reads(node, *place) or not self._context.permit(node):
            return node.outputs[0]
        source, start, end = place
        shape = self._editor.renew(node, "Shape", [source], start=start, end=end)
        self._shapes.add(shape)
        return shape.outputs[0]

    def _reads(self, node: ir.Node, source: ir.Value, start: int, end: int) -> bool:
        if not is_op(node, "Shape") or node.inputs[0] is not source:
            return False
        return shape_bounds(node, len(self._shapes[source].shape or ())) == (start, end)

    def _simplify_reshape(self, node: ir.Node) -> None:
        data, target = node.inputs[0], node.inputs[1]
        result = self._shapes[node.outputs[0]].shape
        if target is None or result is None or tensor_of(target) is not None:
            return
        asked = self._shapes[target].content
        if asked is None:
            return
        free = next((axis for axis, dim in enumerate(asked) if dim.size == -1), None)
        numbers = constant_target(self._shapes[data].shape, result, free)
        if numbers is None:
            self._misses.append(node)
        elif self._context.permit(node):
            self._set_target(node, numbers)
            node.attributes.pop("allowzero", None)

    def _simplify_expand(self, node: ir.Node) -> None:
        data, target = node.inputs[0], node.inputs[1]
        asked, shape = self._shapes[target].content, self._shapes[data].shape
        if target is None or asked is None or shape is None or tensor_of(target) is not None:
            return
        offset = len(asked) - len(shape)
        least = tuple(
            Dim.of(1) if axis >= offset and shape[axis - offset] == dim else dim
            for axis, dim in enumerate(asked)
        )
        unknown = [sum(dim.size is None for dim in dims) for dims in (least, asked)]
        if unknown[0] < unknown[1] and self._sizes.can_make(least, node) and self._context.permit(node):
            vector = self._sizes.vector(least, node, target.name or "shape")
            self._editor.set_input(node, 1, vector)

    def _set_target(self, node: ir.Node, numbers: tuple[int, ...]) -> None:
        name = f"{node.outputs[0].name}_shape"
        array = np.array(numbers, dtype=np.int64)
        self._editor.set_input(node, 1, self._editor.constant(node, name, array))


def _is_there(value: ir.Value | None) -> bool:
    """False for the result of a node that was removed when its last use went."""
    maker = None if value is None else value.producer()
    return maker is not None and maker.graph is not None
