"""If(constant)  ->  the nodes of the branch that is taken"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, constant_of
from burnish.passes.editing import Editor


def inline_branch(node: ir.Node, editor: Editor, context: Context) -> Sequence[ir.Node]:
    """Move the branch that an If with a constant condition takes ahead of it, and remove the If.

    Returns the nodes that moved; none when the condition is not constant.
    """
    condition = constant_of(node.inputs[0], max_bytes=16)
    if condition is None or condition.size != 1 or node.graph is None or not context.permit(node):
        return ()
    taken = bool(np.reshape(condition, ())[()])
    branch = node.attributes["then_branch" if taken else "else_branch"].as_graph()
    results = list(branch.outputs)
    branch.outputs.clear()
    renamed = _move_initializers(branch, node, editor)
    moved = _move_nodes(branch, node, editor)
    for old, result in zip(node.outputs, results, strict=True):
        new = renamed.get(result, result)
        if not editor.can_replace(old, new):
            copy = editor.insert(node, "Identity", [new], name=new.name)
            copy.outputs[0].shape, copy.outputs[0].type = new.shape, new.type
            new = copy.outputs[0]
        editor.replace(old, new)
    editor.sweep(node.outputs)
    return moved


def _move_nodes(branch: ir.Graph, node: ir.Node, editor: Editor) -> list[ir.Node]:
    nodes = list(branch)
    branch.remove(nodes)
    for inner in nodes:
        for value in inner.outputs:
            if value.name and not editor.is_unique(value.name):
                value.name = editor.fresh(value.name)
    if node.graph is not None:
        node.graph.insert_before(node, nodes)
    return nodes


def _move_initializers(branch: ir.Graph, node: ir.Node, editor: Editor) -> dict[ir.Value, ir.Value]:
    """Make the branch's initializers those of the main graph, or Constant nodes; old value -> new value."""
    moved = {}
    for name, value in list(branch.initializers.items()):
        tensor = value.const_value
        if tensor is None:
            continue
        del branch.initializers[name]
        if editor.holds_initializers(node.graph):
            moved[value] = editor.initializer(name if editor.is_unique(name) else editor.fresh(name), tensor)
        else:
            moved[value] = editor.constant_node(node, name, tensor.numpy())
        value.replace_all_uses_with(moved[value])
    return moved
