"""One node against what its operator demands: known op, attributes, number of inputs and outputs, bodies.

Operators of unknown domains are left alone: nothing says what they demand. Types are not inferred here.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, final

import onnx

from burnish.errors import ModelError, nearest, shown
from burnish.target import is_own

Functions = Mapping[tuple[str, str, str], onnx.FunctionProto]
"""Model-local functions by domain, name and overload."""

_DOMAINS: Final = frozenset({"", "ai.onnx.ml", "ai.onnx.preview.training"})
_SINGLE: Final = onnx.defs.OpSchema.FormalParameterOption.Single
_FIELDS: Final = {
    onnx.AttributeProto.TENSOR: "t",
    onnx.AttributeProto.GRAPH: "g",
    onnx.AttributeProto.TYPE_PROTO: "tp",
}
_GRAPH, _GRAPHS = onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS
_SPARSE: Final = (onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.SPARSE_TENSORS)


def node_name(node: onnx.NodeProto) -> str:
    """How messages call a node: its name, else its first output, with its op type."""
    name = node.name or next(filter(None, node.output), "")
    return f"{shown(node.op_type)} node '{shown(name)}'"


def bodies(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """The graphs in a node's attributes, with the attribute's name."""
    for attribute in node.attribute:
        if attribute.type == _GRAPH:
            yield attribute.name, attribute.g
        elif attribute.type == _GRAPHS:
            yield from ((attribute.name, graph) for graph in attribute.graphs)


def called(function: onnx.FunctionProto) -> Iterator[tuple[str, str, str]]:
    """The operators of every node in a function and in its subgraphs."""
    todo = [*function.node]
    while todo:
        node = todo.pop()
        yield node.domain, node.op_type, node.overload
        todo.extend(inner for _, graph in bodies(node) for inner in graph.node)


def check_node(
    node: onnx.NodeProto, opsets: Mapping[str, int], functions: Functions, *, in_function: bool
) -> None:
    """Check one node.

    Args:
        node: the node.
        opsets: version by domain, of the model or of the function that holds the node.
        functions: model-local functions, which come before operators of the same name.
        in_function: attributes may refer to the function's.

    Raises:
        ModelError: NODE_SCHEMA, OPSET_UNSUPPORTED (the default domain is not imported), or MODEL_UNSUPPORTED.
    """
    _check_attributes(node, in_function=in_function)
    function = functions.get((node.domain, node.op_type, node.overload))
    domain = "" if node.domain == "ai.onnx" else node.domain
    if function is not None:
        _check_count(node, "inputs", len(node.input), (0, len(function.input)))
        _check_count(node, "outputs", len(node.output), (0, len(function.output)))
    elif not domain and is_own(node.op_type, opsets.get("", 2**31)):
        return
    elif domain in _DOMAINS and domain in opsets:
        _check_schema(node, domain, opsets[domain])
    elif not domain:
        raise ModelError(
            f"{node_name(node)} is of the default domain, for which no opset is imported.",
            "Add an opset import for domain '' (ai.onnx), and say its version.",
            code="OPSET_UNSUPPORTED",
        )


def _check_attributes(node: onnx.NodeProto, *, in_function: bool) -> None:
    seen: set[str] = set()
    for attribute in node.attribute:
        name = shown(attribute.name)
        if attribute.name in seen:
            raise _schema(node, f"has attribute '{name}' twice")
        seen.add(attribute.name)
        if attribute.ref_attr_name and not in_function:
            raise _schema(node, f"takes attribute '{name}' from a function, but is in none")
        if not attribute.type:
            raise _schema(node, f"does not say the type of attribute '{name}'")
        field = _FIELDS.get(attribute.type)
        if field and not attribute.ref_attr_name and not attribute.HasField(field):
            raise _schema(node, f"has no value in attribute '{name}'")
        if attribute.type in _SPARSE:
            raise ModelError(
                f"{node_name(node)} has a sparse tensor in attribute '{name}', which is not supported.",
                "Make it dense.",
                code="MODEL_UNSUPPORTED",
            )


@final
class _Formal(NamedTuple):
    """The inputs or the outputs of an operator."""

    low: int
    high: int
    names: tuple[tuple[str, bool], ...]
    """Each with True where it cannot be left empty."""

    @classmethod
    def of(cls, low: int, high: int, formal: Iterable[onnx.defs.OpSchema.FormalParameter]) -> _Formal:
        """Take over what a schema says."""
        return cls(low, high, tuple([(each.name, each.option == _SINGLE) for each in formal]))


@final
class _Operator(NamedTuple):
    """What is asked of a schema, which makes new objects of all that it holds at every question."""

    types: Mapping[str, int]
    """The type of each attribute, as the protobuf has it."""
    required: tuple[str, ...]
    inputs: _Formal
    outputs: _Formal


@functools.lru_cache(maxsize=2048)
def _operator(op_type: str, version: int, domain: str) -> _Operator | None:
    """None for an operator that there is not, or not any more."""
    try:
        schema = onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return None
    if schema.deprecated:
        return None
    attributes = schema.attributes
    return _Operator(
        {name: _number(attribute) for name, attribute in attributes.items()},
        tuple([name for name, attribute in attributes.items() if attribute.required]),
        _Formal.of(schema.min_input, schema.max_input, schema.inputs),
        _Formal.of(schema.min_output, schema.max_output, schema.outputs),
    )


@functools.cache
def _op_types(domain: str) -> frozenset[str]:
    return frozenset(schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == domain)


def _check_schema(node: onnx.NodeProto, domain: str, version: int) -> None:
    operator = _operator(node.op_type, version, domain)
    if operator is None:
        raise _schema(
            node, f"is not an operator of {domain or 'ai.onnx'} opset {version}", _other(node.op_type, domain)
        )
    for attribute in node.attribute:
        expected = operator.types.get(attribute.name)
        if expected is None:
            raise _schema(node, f"has the unknown attribute '{shown(attribute.name)}'")
        if attribute.type != expected:
            types = onnx.AttributeProto.AttributeType
            raise _schema(
                node,
                f"has attribute '{attribute.name}' as {types.Name(attribute.type)} "
                f"instead of {types.Name(expected)}",
            )
    present = {attribute.name for attribute in node.attribute}
    for name in operator.required:
        if name not in present:
            raise _schema(node, f"misses its required attribute '{name}'")
    _check_parameters(node, "input", node.input, operator.inputs)
    _check_parameters(node, "output", node.output, operator.outputs)
    if version >= 9:  # before, Scan took one input more
        _check_bodies(node)


def _number(attribute: onnx.defs.OpSchema.Attribute) -> int:
    return int(onnx.AttributeProto.AttributeType.Value(str(attribute.type).rpartition(".")[2]))


def _check_parameters(node: onnx.NodeProto, kind: str, names: Sequence[str], formal: _Formal) -> None:
    _check_count(node, f"{kind}s", len(names), (formal.low, formal.high))
    for name, (parameter, is_needed) in zip(names, formal.names, strict=False):
        if not name and is_needed:
            raise _schema(node, f"leaves its required {kind} '{parameter}' empty")


def _check_count(node: onnx.NodeProto, kind: str, count: int, allowed: tuple[int, int]) -> None:
    low, high = allowed
    if not low <= count <= high:
        number = f"{low}" if low == high else f"at least {low}" if count < low else f"at most {high}"
        raise _schema(node, f"has {count} {kind} instead of {number}")


def _check_bodies(node: onnx.NodeProto) -> None:
    """If, Loop and Scan: the numbers of inputs and outputs of their bodies. Source: Operators.md."""
    given, made = len(node.input), len(node.output)
    counts = {"If": (0, made), "Loop": (max(2, given), made + 1), "Scan": (given, made)}
    takes, gives = counts.get(node.op_type, (None, None))
    for name, graph in bodies(node):
        for kind, expected, found in (("inputs", takes, graph.input), ("outputs", gives, graph.output)):
            if expected is not None and len(found) != expected:
                raise _schema(node, f"has {len(found)} {kind} in its '{shown(name)}' instead of {expected}")


def _other(op_type: str, domain: str) -> str:
    known = _op_types(domain)
    if op_type in known:
        return "Another opset has it: convert the model with onnx.version_converter."
    hint = nearest(op_type, known)
    return hint if hint.startswith("Did") else "Is it a custom op? Then it needs a domain of its own."


def _schema(node: onnx.NodeProto, why: str, hint: str = "") -> ModelError:
    hint = hint or f"See https://onnx.ai/onnx/operators/onnx__{shown(node.op_type)}.html; export it again."
    return ModelError(f"{node_name(node)} {why}.", hint, code="NODE_SCHEMA")
