"""How clean-up passes change a graph so that outputs keep their names and types, and nothing dead is left.

editor = Editor(model)
if editor.can_replace(node.outputs[0], source) and context.permit(node):
    editor.replace(node.outputs[0], source)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, Names, bodies, is_op, nested, value_names
from burnish.passes.base import is_templated as is_templated
from burnish.passes.shapes import Call, Shapes

_FIRST_IR_WITH_PLAIN_INITIALIZERS: Final = 4  # before it, every initializer must be a graph input too


@final
class Editor:
    """Replaces values and nodes of one model.

    A replaced value hands its name to what comes in its place when it is a graph output. Nodes and
    Constants that end up without a use are removed; initializers stay, for `remove-unused`.
    """

    def __init__(self, model: ir.Model) -> None:
        self._main = model.graph
        self._initializers = (model.ir_version or 0) >= _FIRST_IR_WITH_PLAIN_INITIALIZERS
        functions = [function.graph for function in model.functions.values()]
        self._names = Names(name for root in (model.graph, *functions) for name in value_names(root))
        self._in_function = {id(graph) for root in functions for graph in nested(root)}

    def can_replace(self, old: ir.Value, new: ir.Value) -> bool:
        """True when `new` may take the place of `old`, whose name it takes if that is an output's."""
        if old is new or not old.is_graph_output():
            return old is not new
        maker, owner = new.producer(), old.producer()
        if maker is None or owner is None or maker.graph is not owner.graph:
            return False
        return not new.is_graph_output() and not new.is_graph_input()

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let `new` serve every use of `old`; then remove what nothing uses any more."""
        if old.is_graph_output():
            name, shape, type_ = old.name, old.shape, old.type
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            old.name, new.name = None, name
            new.shape, new.type = shape, type_
        else:
            old.replace_all_uses_with(new)
        self.sweep([old])

    def renew(
        self, node: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], **attributes: object
    ) -> ir.Node:
        """Put another operator in the place of a node with one output; it keeps name and metadata."""
        new = self.insert(node, op_type, inputs, attributes, name=None)
        old, result = node.outputs[0], new.outputs[0]
        result.shape, result.type = old.shape, old.type
        result.metadata_props.update(old.metadata_props)
        name = old.name
        old.replace_all_uses_with(result, replace_graph_outputs=True)
        old.name, result.name = None, name
        new.name = node.name
        self.sweep([old])
        return new

    def set_input(self, node: ir.Node, index: int, value: ir.Value) -> None:
        """Let a node read something else; then remove what nothing uses any more."""
        old = node.inputs[index]
        node.replace_input_with(index, value)
        self.sweep([old])

    def insert(
        self,
        before: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, object] | None = None,
        *,
        name: str | None,
    ) -> ir.Node:
        """A new standard node ahead of `before`, with its metadata; `name` is the wish for its output."""
        new = ir.node(op_type, inputs, attributes=dict(attributes or {}))  # type: ignore[arg-type]
        new.metadata_props.update(before.metadata_props)
        new.outputs[0].name = self.fresh(name or (before.outputs[0].name or op_type))
        new.name = f"node_{new.outputs[0].name}"
        if before.graph is not None:
            before.graph.insert_before(before, new)
        return new

    def constant(self, before: ir.Node, name: str, array: np.ndarray) -> ir.Value:
        """A new constant: an initializer of the main graph, or where that cannot be, a Constant node."""
        if not self.holds_initializers(before.graph):
            return self.constant_node(before, name, array)
        return self.initializer(self.fresh(name), ir.Tensor(array))

    def initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """A new initializer of the main graph, under a name that is free."""
        tensor.name = name
        value = ir.Value(name=name, const_value=tensor)
        value.shape = ir.Shape(tensor.shape.numpy())
        value.type = ir.TensorType(tensor.dtype)
        self._main.register_initializer(value)
        return value

    def become_constant(self, value: ir.Value, node: ir.Node, array: np.ndarray) -> None:
        """Replace an output of `node` by a constant of the same name."""
        if value.is_graph_output() or not self.holds_initializers(node.graph):
            self.replace(value, self.constant_node(node, value.name or node.op_type, array))
            return
        name, value.name = value.name, None
        constant = self.initializer(name or self.fresh(node.op_type), ir.Tensor(array))
        constant.metadata_props.update(value.metadata_props)
        self.replace(value, constant)

    def constant_node(self, before: ir.Node, name: str, array: np.ndarray) -> ir.Value:
        """A new Constant node ahead of `before`, whatever the graph may hold."""
        tensor = ir.Tensor(array)
        value = self.insert(before, "Constant", [], {"value": tensor}, name=name).outputs[0]
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(tensor.dtype)
        return value

    def holds_initializers(self, graph: object) -> bool:
        """True where constants can be initializers: not in functions, and not before IR version 4."""
        return self._initializers and id(graph) not in self._in_function

    def fresh(self, wish: str) -> str:
        """A value name close to `wish` that nothing in the model has."""
        return self._names.fresh(wish)

    def is_unique(self, name: str) -> bool:
        """True when only one value in all graphs has that name."""
        return self._names.is_unique(name)

    def sweep(self, values: Iterable[ir.Value | None]) -> None:
        """Remove the nodes that make `values` when nothing uses them, and then their inputs' likewise."""
        todo = [value for value in values if value is not None]
        while todo:
            node = todo.pop().producer()
            if node is None or node.graph is None or _is_used(node):
                continue
            todo.extend(value for value in captured(node) if value is not None)
            remove(node)


@final
class Round:
    """One round of a pass over a model. What costs a walk over the graph is made when it is first needed."""

    def __init__(self, model: ir.Model, context: Context) -> None:
        self.model, self.context = model, context

    @cached_property
    def editor(self) -> Editor:
        """Changes the model."""
        return Editor(self.model)

    @cached_property
    def shapes(self) -> Shapes:
        """What is known of every value."""
        return self.context.shapes(self.model)

    def call(self, node: ir.Node) -> Call:
        """A node with the facts of its inputs."""
        facts = [self.shapes[value] for value in node.inputs]
        return Call(node, facts, self.shapes.opset(node), self.shapes)

    def renew(
        self, node: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], **attributes: object
    ) -> ir.Node:
        """`Editor.renew`, for an operator that computes the same: what is known of the result stays so."""
        fact = self.shapes[node.outputs[0]]
        new = self.editor.renew(node, op_type, inputs, **attributes)
        self.shapes[new.outputs[0]] = fact
        return new

    def replace(self, old: ir.Value, new: ir.Value | None) -> bool:
        """Let `new` serve every use of `old`, if that is permitted.

        Where both keep their names, as an input and an output of a graph do, an Identity is left.
        """
        maker = old.producer()
        if new is None or new is old or maker is None:
            return False
        replaceable = self.editor.can_replace(old, new)
        if (not replaceable and is_op(maker, "Identity")) or not self.context.permit(maker):
            return False
        if replaceable:
            self.editor.replace(old, new)
        else:
            self.renew(maker, "Identity", [new])
        return True

    def numbers(self, before: ir.Node, name: str, numbers: Sequence[int]) -> ir.Value:
        """A new constant vector of int64."""
        return self.editor.constant(before, name, np.array(numbers, dtype=np.int64))


def until_stable(
    model: ir.Model, context: Context, begin: Callable[[Round], Callable[[ir.Node], object]]
) -> int:
    """Visit every node of every graph, and again while that changes something; return the rewrites made.

    `begin` is called for each round, and returns what visits a node. Nodes that a rewrite of the same round
    removed are not visited, nor those of functions whose attributes are known at the call only.
    """
    before = len(context.rewrites)
    start = -1
    while start < len(context.rewrites):
        start = len(context.rewrites)
        visit = begin(Round(model, context))
        for node in context.nodes(model):
            if not is_templated(node):
                visit(node)
    return len(context.rewrites) - before


def feeds_only(node: ir.Node, user: ir.Node) -> bool:
    """True when nothing but `user` reads the first output of a node."""
    value = node.outputs[0]
    return not value.is_graph_output() and all(each is user for each in value.consumers())


def remove(node: ir.Node) -> None:
    """Take a node whose outputs are unused out of its graph; the nodes in its bodies let go of values."""
    graph = node.graph
    for body in bodies(node):
        for inner in list(body.all_nodes()):
            for index in range(len(inner.inputs)):
                inner.replace_input_with(index, None)
    if graph is not None:
        graph.remove(node, safe=True)


def captured(node: ir.Node) -> list[ir.Value | None]:
    """The inputs of a node and of every node in its bodies."""
    inner = (value for body in bodies(node) for each in body.all_nodes() for value in each.inputs)
    return list(dict.fromkeys([*node.inputs, *inner]))


def _is_used(node: ir.Node) -> bool:
    return any(value.uses() or value.is_graph_output() for value in node.outputs)
