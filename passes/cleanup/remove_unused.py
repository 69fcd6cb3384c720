"""What no output needs  ->  (nothing)"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import ClassVar, Final, final

import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, all_graphs, bodies, nested
from burnish.passes.editing import remove

_STANDARD: Final = ("", "ai.onnx")


@final
@dataclasses.dataclass(frozen=True)
class RemoveUnused(Pass):
    """Remove nodes, initializers, functions and opset imports that nothing uses.

    Kept: inputs and outputs, and initializers that are one; the import of the standard operators; a node
    without outputs, which can only be there for what it does.
    """

    name: ClassVar[str] = "remove-unused"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many nodes, initializers, functions and imports were removed."""
        before = len(context.rewrites)
        _remove_functions(model, context)
        for root in (model.graph, *(function.graph for function in model.functions.values())):
            _remove_nodes(root, context)
        for graph in all_graphs(model):
            _remove_initializers(graph, context)
        if _remove_functions(model, context):  # called by nodes that are gone now
            return len(context.rewrites) - before + self.rewrite(model, context)
        _remove_imports(model, context)
        return len(context.rewrites) - before


def _remove_nodes(graph: ir.Graph, context: Context) -> None:
    for node in reversed(list(graph)):
        used = any(value.uses() or value.is_graph_output() for value in node.outputs)
        if used or not node.outputs:
            for body in bodies(node):
                _remove_nodes(body, context)
        elif context.permit(node):
            remove(node)


def _remove_initializers(graph: ir.Graph | ir.Function, context: Context) -> None:
    if isinstance(graph, ir.Function):
        return
    for name, value in list(graph.initializers.items()):
        kept = value.uses() or value.is_graph_output() or value.is_graph_input()
        if not kept and context.permit(value):
            del graph.initializers[name]


def _remove_functions(model: ir.Model, context: Context) -> int:
    reached: set[ir.OperatorIdentifier] = set()
    if not model.functions:
        return 0
    todo = list(_called(_all_nodes(model.graph)))
    while todo:
        identifier = todo.pop()
        if identifier in model.functions and identifier not in reached:
            reached.add(identifier)
            todo.extend(_called(_all_nodes(model.functions[identifier].graph)))
    unused = [identifier for identifier in model.functions if identifier not in reached]
    removed = [identifier for identifier in unused if context.permit("::".join(identifier[:2]))]
    for identifier in removed:
        del model.functions[identifier]
    return len(removed)


def _all_nodes(root: ir.Graph) -> Iterator[ir.Node]:
    return (node for graph in nested(root) for node in graph)


def _called(nodes: Iterable[ir.Node]) -> Iterator[ir.OperatorIdentifier]:
    return (node.op_identifier() for node in nodes)


def _remove_imports(model: ir.Model, context: Context) -> None:
    inside = [(function, _domains(_all_nodes(function.graph))) for function in model.functions.values()]
    used = _domains(_all_nodes(model.graph)).union(*(domains for _, domains in inside))
    used |= {identifier[0] for identifier in model.functions}
    owners = [(model.graph.opset_imports, used)]
    owners.extend((function.opset_imports, domains) for function, domains in inside)
    for imports, domains in owners:
        for domain in [domain for domain in imports if domain not in domains]:
            if context.permit(f"opset import {domain!r}"):
                del imports[domain]


def _domains(nodes: Iterable[ir.Node]) -> set[str]:
    return {*_STANDARD, *(node.domain for node in nodes)}
