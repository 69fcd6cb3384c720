"""Identity(x)  ->  x"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, final

import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, all_graphs, is_op


@final
@dataclasses.dataclass(frozen=True)
class RemoveIdentity(Pass):
    """Remove Identity nodes.

    Kept: an Identity that joins two names that both must stay (an input or initializer, and an output),
    or whose source lives in an outer graph while its result is an output of the inner one.
    """

    name: ClassVar[str] = "remove-identity"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many Identity nodes were removed."""
        nodes = [node for graph in all_graphs(model) for node in graph if is_op(node, "Identity")]
        return sum(_remove(node, context) for node in nodes)


def _remove(node: ir.Node, context: Context) -> bool:
    source, result = node.inputs[0], node.outputs[0]
    if source is None or node.graph is None:
        return False
    if result.is_graph_output() and not _can_take_name(source, node):
        return False
    if not context.permit(node):
        return False
    if result.is_graph_output():
        name = result.name
        result.replace_all_uses_with(source, replace_graph_outputs=True)
        result.name, source.name = None, name
    else:
        result.replace_all_uses_with(source)
    if source.shape is None:
        source.shape = result.shape
    node.graph.remove(node, safe=True)
    return True


def _can_take_name(source: ir.Value, node: ir.Node) -> bool:
    """An output keeps its name, so the source must be free to be renamed to it."""
    producer = source.producer()
    return producer is not None and producer.graph is node.graph and not source.is_graph_output()
