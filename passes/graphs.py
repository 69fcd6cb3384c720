"""Walking a model: its graphs, its nodes, the names of its values."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple, final

import onnx_ir as ir

_GRAPHS: Final = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


@final
class Census(NamedTuple):
    """What is in a model: gathered in one walk."""

    graphs: Sequence[ir.Graph | ir.Function]
    """The main one, functions, and the bodies of If, Loop and Scan; a body after the graph that holds it."""
    nodes: Sequence[ir.Node]
    """Those of all graphs, graph by graph."""
    operators: frozenset[str]
    """Their op types, of whatever domain."""

    @classmethod
    def of(cls, model: ir.Model) -> Census:
        """Walk a model."""
        nodes: list[ir.Node] = []
        graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
        for graph in graphs:  # grows as bodies are met
            nodes.extend(graph)
            graphs.extend(body for node in graph if node.attributes.data for body in bodies(node))
        return cls(graphs, nodes, frozenset([node.op_type for node in nodes]))


def all_graphs(model: ir.Model) -> Iterator[ir.Graph | ir.Function]:
    """Every graph of the model: the main one, functions, and the bodies of If, Loop and Scan.

    A body comes after the graph that holds it. The list is taken before it is walked, so that a pass may
    rewrite while it iterates; bodies of nodes it removes are still visited, harmlessly.
    """
    todo: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    while todo:
        graph = todo.pop(0)
        yield graph
        for node in graph:
            for attribute in node.attributes.data.values():  # every pass walks: a call a node is too slow
                if attribute.type in _GRAPHS:
                    todo.extend(bodies(node))
                    break


def op_types(model: ir.Model) -> frozenset[str]:
    """The op types of all nodes, of whatever domain."""
    return frozenset([node.op_type for graph in all_graphs(model) for node in graph])


def nested(graph: ir.Graph) -> Iterator[ir.Graph]:
    """A graph, and every body in it at any depth."""
    todo = [graph]
    while todo:
        graph = todo.pop()
        yield graph
        todo.extend(body for node in graph for body in bodies(node))


def value_names(root: ir.Graph) -> Iterator[str]:
    """The names of all values of a graph and of the bodies in it: what a new name must differ from."""
    for graph in nested(root):
        values = [*graph.inputs, *graph.initializers.values()]
        values.extend(value for node in graph for value in node.outputs)
        yield from (value.name for value in values if value.name)


@final
class Names:
    """The names that the values of some graphs have, and new ones beside them.

    Args:
        used: the names; looked at on the first question.
    """

    def __init__(self, used: Iterable[str]) -> None:
        self._given = used
        self._tried: dict[str, int] = {}

    @functools.cached_property
    def _uses(self) -> Counter[str]:
        return Counter(self._given)

    def fresh(self, wish: str) -> str:
        """A name close to `wish` that nothing has; from now on it is taken."""
        number = self._tried.get(wish, 0)
        name = f"{wish}_{number}" if number else wish
        while name in self._uses:
            number += 1
            name = f"{wish}_{number}"
        self._tried[wish] = number
        self._uses[name] += 1
        return name

    def is_unique(self, name: str) -> bool:
        """True when only one value has that name."""
        return self._uses[name] == 1


def bodies(node: ir.Node) -> Sequence[ir.Graph]:
    """The graphs in a node's attributes: branches of If, bodies of Loop and Scan."""
    attributes = node.attributes.data  # asked of every node by every pass: the mapping around it is slow
    if not attributes:
        return ()
    found: list[ir.Graph] = []
    for attribute in attributes.values():
        if attribute.type in _GRAPHS and not attribute.is_ref():
            one = attribute.type == ir.AttributeType.GRAPH
            found.extend([attribute.as_graph()] if one else attribute.as_graphs())
    return found


def is_templated(node: ir.Node) -> bool:
    """True for a node of a function that takes an attribute from the call."""
    attributes = node.attributes.data
    return bool(attributes) and any(map(ir.Attr.is_ref, attributes.values()))
