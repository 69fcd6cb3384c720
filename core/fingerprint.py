"""Hashes of what a graph computes, whatever its values are called: equal where two nodes do the same.

A node's hash covers its operator, its attributes (bodies included) and the hashes of what it reads, back to
the inputs and weights of the model. Two models whose nodes have the same hashes, in any order, and whose
outputs do, compute the same if their weights are the same.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import final

import onnx_ir as ir

from burnish.disk import Chunk
from burnish.weights import Place, content


def tensor_digest(value: ir.Value) -> str:
    """The sha256 (hex) of an initializer's dtype, shape and bytes; large ones are read in pieces.

    Raises:
        ExternalDataError: its data file is gone or was changed.
    """
    tensor = value.const_value
    if tensor is None:
        return ""
    pieces = _strings(tensor) if tensor.dtype == ir.DataType.STRING else content([Place(0, value, tensor)])
    return _sha256(_chain(tensor, pieces))


@final
class Fingerprints:
    """The hashes of a model's nodes (main graph, bodies, functions) and of its outputs."""

    def __init__(self, model: ir.Model, weights: Mapping[str, str]) -> None:
        """`weights`: what the initializers of the main graph are called here, by their names."""
        self.nodes: dict[ir.Node, str] = {}
        self._values: dict[ir.Value, str] = {}
        for name, value in model.graph.initializers.items():
            self._values[value] = f"weight {weights[name]}"
        for value in model.graph.inputs:
            self._values.setdefault(value, f"input {value.name}")
        outputs = self._graph(model.graph)
        functions = sorted(
            f"{function.domain}::{function.name}:{self._function(function)}"
            for function in model.functions.values()
        )
        names = [value.name for value in model.graph.outputs]
        self.whole = _text([str(names), *outputs, *functions, *sorted(self.nodes.values())])
        """Of the model: equal where all nodes and outputs are."""

    def annotated(self) -> Counter[tuple[str, str, str]]:
        """What nodes say besides what they compute: hash, name and metadata of each."""
        return Counter(
            (digest, node.name or "", str(sorted(node.metadata_props.items())))
            for node, digest in self.nodes.items()
        )

    def _function(self, function: ir.Function) -> str:
        for number, value in enumerate(function.inputs):
            self._values[value] = f"parameter {number}"
        return _text(self._graph(function))

    def _graph(self, graph: ir.Graph | ir.Function) -> list[str]:
        for node in graph:
            digest = self.nodes[node] = self._node(node)
            for number, value in enumerate(node.outputs):
                self._values[value] = f"{digest} {number}"
        return [self._value(value) for value in graph.outputs]

    def _node(self, node: ir.Node) -> str:
        inputs = ["" if value is None else self._value(value) for value in node.inputs]
        attributes = [self._attribute(node.attributes[name]) for name in sorted(node.attributes)]
        return _text([node.domain, node.op_type, node.overload, str(len(node.outputs)), *inputs, *attributes])

    def _value(self, value: ir.Value) -> str:
        return self._values.get(value, f"value {value.name}")

    def _attribute(self, attribute: ir.Attr) -> str:
        if attribute.is_ref():
            said: Iterable[str] = [attribute.ref_attr_name or ""]
        elif attribute.type == ir.AttributeType.TENSOR:
            said = [_attribute_digest(attribute.as_tensor())]
        elif attribute.type == ir.AttributeType.TENSORS:
            said = map(_attribute_digest, attribute.as_tensors())
        elif attribute.type == ir.AttributeType.GRAPH:
            said = self._body(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            said = [line for body in attribute.as_graphs() for line in self._body(body)]
        else:
            said = [repr(attribute.value)]
        return _text([attribute.name, attribute.type.name, *said])

    def _body(self, graph: ir.Graph) -> list[str]:
        for value in graph.initializers.values():
            self._values[value] = f"weight {tensor_digest(value)}"
        for number, value in enumerate(graph.inputs):
            self._values.setdefault(value, f"parameter {number}")
        return [*self._graph(graph), *(self.nodes[node] for node in graph)]


def _attribute_digest(tensor: ir.TensorProtocol) -> str:
    pieces = _strings(tensor) if tensor.dtype == ir.DataType.STRING else iter([tensor.tobytes()])
    return _sha256(_chain(tensor, pieces))


def _kind(tensor: ir.TensorProtocol) -> str:
    return f"{tensor.dtype.name} {list(tensor.shape.numpy())} "


def _strings(tensor: ir.TensorProtocol) -> Iterator[Chunk]:
    for text in tensor.numpy().ravel().tolist():
        encoded = text if isinstance(text, bytes) else str(text).encode()
        yield len(encoded).to_bytes(8, "little") + encoded


def _chain(tensor: ir.TensorProtocol, pieces: Iterable[Chunk]) -> Iterator[Chunk]:
    yield _kind(tensor).encode()
    yield from pieces


def _sha256(pieces: Iterable[Chunk]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _text(parts: Iterable[str]) -> str:
    return _sha256(f"{len(part)}:{part}".encode() for part in parts)
