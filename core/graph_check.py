"""Whether the graphs of a model are sound: names, references, cycles, and each node against its schema.

This reads the proto, not onnx-ir's graph: on loading, onnx-ir drops duplicate initializers, functions and
sparse tensors, and invents values for undefined names, all without an error. What onnxruntime accepts is
accepted here (unsorted nodes, shadowing by inputs and initializers of a subgraph). No recursion.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, final

import onnx

from burnish.errors import ModelError, shown
from burnish.node_check import Functions, bodies, called, check_node, node_name

_DUPLICATE: Final = "Rename one of them; in ONNX a name is given once a graph."


@final
@dataclasses.dataclass
class _Body:
    """A graph or function body, with the bodies around it."""

    label: str
    nodes: Sequence[onnx.NodeProto]
    inputs: list[str]
    initializers: list[str]
    outputs: list[str]
    opsets: Mapping[str, int]
    around: tuple[tuple[_Body, int], ...] = ()
    """Each enclosing body with the index of its node that holds this one, outermost first."""
    in_function: bool = False
    defined: dict[str, int] = dataclasses.field(default_factory=dict)
    """Index of the node that produces a name; -1 for inputs and initializers."""
    needs: dict[int, set[int]] = dataclasses.field(default_factory=dict)
    """Nodes that a node depends on, itself or through its subgraphs."""


def validate(proto: onnx.ModelProto, name: str = "") -> bool:
    """Check every graph, subgraph and function of a model; return whether all nodes are in topological order.

    Args:
        proto: the model; weights are not looked at.
        name: what messages call it, such as its path.

    Raises:
        ModelError: GRAPH_DUP_NAME, GRAPH_UNNAMED, GRAPH_DANGLING, GRAPH_CYCLE, NODE_SCHEMA,
            OPSET_UNSUPPORTED, or MODEL_UNSUPPORTED (sparse tensors); the message names node and value.
    """
    functions = _functions(proto)
    everything: list[_Body] = []
    label = f"the graph of {name}" if name else "the graph"
    main = _graph(label, proto.graph, _opsets(proto.opset_import))
    todo = [main, *(_function(function) for function in functions.values())]
    while todo:
        body = todo.pop()
        everything.append(body)
        _define(body)
        for index, node in enumerate(body.nodes):
            _refer(body, index, node)
            check_node(node, body.opsets, functions, in_function=body.in_function)
            todo.extend(_inner(body, index, node))
        _check_outputs(body)
    for body in everything:
        _check_acyclic(body.label, body.needs, [node_name(node) for node in body.nodes])
    return all(max(needs, default=-1) < index for body in everything for index, needs in body.needs.items())


def _opsets(imports: Sequence[onnx.OperatorSetIdProto]) -> dict[str, int]:
    return {("" if opset.domain == "ai.onnx" else opset.domain): opset.version for opset in imports}


def _graph(label: str, graph: onnx.GraphProto, opsets: Mapping[str, int]) -> _Body:
    if graph.sparse_initializer:
        name = shown(graph.sparse_initializer[0].values.name)
        raise ModelError(
            f"Sparse initializer '{name}' of {label} is not supported.",
            "Make it dense: a Constant or an ordinary initializer.",
            code="MODEL_UNSUPPORTED",
        )
    return _Body(
        label, graph.node, [value.name for value in graph.input],
        [tensor.name for tensor in graph.initializer], [value.name for value in graph.output], opsets,
    )  # fmt: skip


def _function(function: onnx.FunctionProto) -> _Body:
    return _Body(
        f"function '{shown(function.name)}'", function.node, list(function.input), [], list(function.output),
        _opsets(function.opset_import), in_function=True,
    )  # fmt: skip


def _inner(body: _Body, index: int, node: onnx.NodeProto) -> Iterator[_Body]:
    for name, graph in bodies(node):
        label = f"graph '{shown(name)}' of {node_name(node)}"
        inner = _graph(label, graph, body.opsets)
        inner.around, inner.in_function = (*body.around, (body, index)), body.in_function
        yield inner


def _define(body: _Body) -> None:
    """Collect the names that a body defines."""
    for kind, names in (("input", body.inputs), ("initializer", body.initializers)):
        if "" in names:
            raise ModelError(
                f"An {kind} of {body.label} has no name.", "Name it; export it again.", code="GRAPH_UNNAMED"
            )
        if twice := _repeated(names):
            raise _duplicate(f"Two {kind}s of {body.label} are named '{shown(twice)}'.")
        body.defined.update(dict.fromkeys(names, -1))
    if twice := _repeated([node.name for node in body.nodes if node.name]):
        raise _duplicate(f"Two nodes of {body.label} are named '{shown(twice)}'.")
    for index, node in enumerate(body.nodes):
        for name in filter(None, node.output):
            if name in body.defined or any(_before(outer, at, name) for outer, at in body.around):
                raise _duplicate(
                    f"Value '{shown(name)}' of {body.label} is produced by {node_name(node)}, "
                    "but another value has that name."
                )
            body.defined[name] = index


def _before(outer: _Body, at: int, name: str) -> bool:
    return outer.defined.get(name, at) < at


def _repeated(names: list[str]) -> str | None:
    if len(set(names)) == len(names):
        return None
    return next(name for place, name in enumerate(names) if name in names[:place])


def _duplicate(what: str) -> ModelError:
    return ModelError(what, _DUPLICATE, code="GRAPH_DUP_NAME")


def _refer(body: _Body, index: int, node: onnx.NodeProto) -> None:
    """Resolve the inputs of a node, in its body or around it."""
    for name in filter(None, node.input):
        for scope, at in ((body, index), *reversed(body.around)):
            if name in scope.defined:
                if scope.defined[name] >= 0:
                    scope.needs.setdefault(at, set()).add(scope.defined[name])
                break
        else:
            raise ModelError(
                f"Input '{shown(name)}' of {node_name(node)} in {body.label} is not defined anywhere.",
                "It is no input, initializer or output of another node; export the model again.",
                code="GRAPH_DANGLING",
            )


def _check_outputs(body: _Body) -> None:
    for name in body.outputs:
        if name not in body.defined:
            raise ModelError(
                f"Output '{shown(name)}' of {body.label} is not produced by any of its nodes.",
                "Rename the output, or add the node that makes it.",
                code="GRAPH_DANGLING",
            )


def _functions(proto: onnx.ModelProto) -> Functions:
    functions: dict[tuple[str, str, str], onnx.FunctionProto] = {}
    for function in proto.functions:
        key = (function.domain, function.name, function.overload)
        if functions.setdefault(key, function) is not function:
            raise _duplicate(f"Two functions are named '{shown(function.domain)}::{shown(function.name)}'.")
        if function.attribute_proto and _repeated([a.name for a in function.attribute_proto]):
            raise _duplicate(f"Function '{shown(function.name)}' has two attributes of one name.")
    places = {key: place for place, key in enumerate(functions)}
    calls = {
        places[key]: {places[to] for to in called(function) if to in places}
        for key, function in functions.items()
    }
    _check_acyclic("the model", calls, [f"function '{shown(name)}'" for _, name, _ in functions])
    return functions


def _check_acyclic(label: str, needs: Mapping[int, set[int]], names: Sequence[str]) -> None:
    """Remove what depends on nothing that is left, until nothing is left; what stays holds a cycle."""
    left = {index: set(others) for index, others in needs.items() if others}
    users: dict[int, list[int]] = {}
    for index, others in left.items():
        for other in others:
            users.setdefault(other, []).append(index)
    free = [other for other in users if other not in left]
    while free:
        done = free.pop()
        for user in users.get(done, ()):
            left[user].discard(done)
            if not left[user]:
                del left[user]
                free.append(user)
    if left:
        around = " → ".join(names[index] for index in _cycle(left))
        raise ModelError(
            f"{label[:1].upper()}{label[1:]} has a cycle: {shown(around, 400)}.",
            "A model computes from inputs to outputs; use Loop or Scan for repetition.",
            code="GRAPH_CYCLE",
        )


def _cycle(needs: Mapping[int, set[int]]) -> list[int]:
    """A cycle in order of computation; every node of `needs` depends on another of them."""
    path = [min(needs)]
    while path[-1] not in path[:-1]:
        path.append(min(needs[path[-1]]))
    return path[path.index(path[-1]) :][::-1]
