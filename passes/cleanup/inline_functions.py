"""Put the bodies of a model's own functions in the place of their calls."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, final

import onnx_ir as ir
from onnx_ir.passes import PreconditionError, common

from burnish.passes.base import Context, Names, Numerics, Pass, all_graphs, bodies, nested, value_names

_OWN_OPS: Final = ("", "ai.onnx", "com.microsoft")
"""Domains in which onnxruntime runs an operator of its own although the model has a function of that name."""
_GRAPHS: Final = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)

Call = tuple[ir.Node, Mapping[str, int]]
"""A node that calls a function, and the opsets of the graph or function it is in."""


@final
@dataclasses.dataclass(frozen=True)
class InlineFunctions(Pass):
    """Inline the functions of a model, so that what is in them is seen together with what is around them.

    No pattern is seen through a call; onnxruntime inlines functions too, when it loads the model. One in the
    domain of ONNX or of onnxruntime stays: where the runtime has an operator of that name, it does not look
    at the function. So does one that can only be called: of another opset than its callers, or with graphs
    for parameters.

    A rewrite is one function with all its calls.
    """

    name: ClassVar[str] = "inline-functions"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many functions were inlined."""
        if not model.functions:
            return 0
        chosen: set[ir.OperatorIdentifier] = set()
        inliner = common.InlinePass(lambda function: function.identifier() in chosen)
        try:
            inliner.requires(model)
        except PreconditionError as error:
            context.miss(next(iter(model.graph)), f"functions that call each other are not inlined: {error}")
            return 0
        chosen |= _chosen(model, context)
        if chosen:
            known = {node for graph in all_graphs(model) for node in graph}
            inliner(model)
            _settle(model, known)
        return len(chosen)


def _chosen(model: ir.Model, context: Context) -> set[ir.OperatorIdentifier]:
    """The functions that are called, can be inlined, and may be."""
    calls, chosen = _calls(model), set()
    for identifier, function in model.functions.items():
        called = calls.get(identifier)
        if not called:
            continue  # `remove-unused` takes it
        why = _why_not(function, called)
        if why is not None:
            context.miss(called[0][0], why)
        elif context.permit(function.name):
            chosen.add(identifier)
    return chosen


def _calls(model: ir.Model) -> dict[ir.OperatorIdentifier, list[Call]]:
    found: dict[ir.OperatorIdentifier, list[Call]] = defaultdict(list)
    roots: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for root in roots:
        for node in root.all_nodes():
            if node.op_identifier() in model.functions:
                found[node.op_identifier()].append((node, root.opset_imports))
    return found


def _why_not(function: ir.Function, calls: Sequence[Call]) -> str | None:
    if function.domain in _OWN_OPS:
        return f"onnxruntime may have an operator {function.name!r} of its own, and prefers that"
    if any(output.producer() is None for output in function.outputs):
        return "the function returns one of its inputs as it is, which onnxruntime refuses"
    for call, opsets in calls:
        for domain, version in function.opset_imports.items():
            if opsets.get(domain, version) != version:
                return (
                    f"the function is of opset {version} (domain {domain!r}), its caller of {opsets[domain]}"
                )
        if len(call.inputs) > len(function.inputs) or len(call.outputs) != len(function.outputs):
            return f"the call {call.name!r} has another number of inputs or outputs than the function"
        if any(attribute.type in _GRAPHS for attribute in call.attributes.values()):
            return f"the call {call.name!r} gives the function a graph"
    return None


def _settle(model: ir.Model, known: set[ir.Node]) -> None:
    """Give what was put in names that nothing else has; take away types, which may be of one call only."""
    for function in model.functions.values():
        for domain in {node.domain for node in function.all_nodes()} - function.opset_imports.keys():
            function.opset_imports[domain] = model.opset_imports[domain]
    kept = set(model.graph.outputs)
    for root in (model.graph, *(function.graph for function in model.functions.values())):
        names = Names(list(value_names(root)))
        for node in (node for graph in nested(root) for node in graph if node not in known):
            for value in node.outputs:
                if not value.is_graph_output():
                    value.shape, value.type = None, None
            inner = (value for body in bodies(node) for value in (*body.inputs, *body.initializers.values()))
            for value in (*node.outputs, *inner):
                if value.name and value not in kept and not names.is_unique(value.name):
                    value.name = names.fresh(value.name)
