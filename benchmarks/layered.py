"""Graphs of any size for measuring: encoder layers as exporters leave them, one behind the other."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

WIDTH, INNER, HEADS = 32, 64, 4
_FLOAT: Final = np.float32
_INT: Final = np.int64


class Layers:
    """Writes encoder layers as exporters leave them: sizes read at run time, norms and Gelu in steps."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append a node; return its output."""
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"node_{name}", **attributes))
        return name

    def constant(self, value: object, dtype: type[np.generic] = _FLOAT) -> str:
        """A Constant node."""
        return self.node("Constant", value=numpy_helper.from_array(np.asarray(value, dtype)))

    def linear(self, value: str, weight: str, bias: str) -> str:
        """MatMul and Add."""
        return self.node("Add", self.node("MatMul", value, weight), bias)

    def target(self, value: str, *inner: int) -> str:
        """The first two sizes of a value and `inner`, as Reshape wants them."""
        sizes = [self.size(value, axis) for axis in (0, 1)]
        return self.node("Concat", *sizes, *(self.constant([size], _INT) for size in inner), axis=0)

    def size(self, value: str, axis: int) -> str:
        """One size of a value, as a vector."""
        number = self.node("Gather", self.node("Shape", value), self.constant(axis, _INT))
        return self.node("Unsqueeze", number, self.constant([0], _INT))

    def norm(self, value: str) -> str:
        """LayerNormalization, written out."""
        axis = self.constant([-1], _INT)
        apart = self.node("Sub", value, self.node("ReduceMean", value, axis))
        variance = self.node("ReduceMean", self.node("Pow", apart, self.constant(2)), axis)
        deviation = self.node("Sqrt", self.node("Add", variance, self.constant(1e-5)))
        return self.node("Add", self.node("Mul", self.node("Div", apart, deviation), "gamma"), "beta")

    def gelu(self, value: str) -> str:
        """Gelu, written out."""
        error = self.node("Erf", self.node("Div", value, self.constant(np.sqrt(2))))
        product = self.node("Mul", value, self.node("Add", error, self.constant(1)))
        return self.node("Mul", product, self.constant(0.5))

    def heads(self, value: str, weight: str, perm: list[int]) -> str:
        """A projection, its heads apart."""
        split = self.target(value, HEADS, WIDTH // HEADS)
        return self.node("Transpose", self.node("Reshape", self.linear(value, weight, "b"), split), perm=perm)

    def attention(self, value: str) -> str:
        """Self-attention, written out."""
        query, key = self.heads(value, "wq", [0, 2, 1, 3]), self.heads(value, "wk", [0, 2, 3, 1])
        scores = self.node("Div", self.node("MatMul", query, key), self.constant(np.sqrt(WIDTH // HEADS)))
        probabilities = self.node("Softmax", scores, axis=-1)
        mixed = self.node("MatMul", probabilities, self.heads(value, "wv", [0, 2, 1, 3]))
        together = self.node("Transpose", mixed, perm=[0, 2, 1, 3])
        return self.linear(self.node("Reshape", together, self.target(value, WIDTH)), "wo", "b")

    def layer(self, value: str) -> str:
        """One encoder layer."""
        value = self.norm(self.node("Add", self.node("Identity", self.attention(value)), value))
        inner = self.linear(self.gelu(self.linear(value, "w1", "b1")), "w2", "b")
        return self.norm(self.node("Add", inner, value))


def make_model(nodes: int) -> onnx.ModelProto:
    """A model of at least that many nodes, `x` [batch, sequence, WIDTH] -> `y`; its layers share weights."""
    rng, writer, value = np.random.default_rng(0), Layers(), "x"
    while len(writer.nodes) < nodes:
        value = writer.layer(value)
    writer.nodes.append(helper.make_node("Identity", [value], ["y"], name="last"))
    shapes = {"wq": (WIDTH, WIDTH), "wk": (WIDTH, WIDTH), "wv": (WIDTH, WIDTH), "wo": (WIDTH, WIDTH),
              "w1": (WIDTH, INNER), "w2": (INNER, WIDTH), "b": (WIDTH,), "b1": (INNER,), "gamma": (WIDTH,),
              "beta": (WIDTH,)}  # fmt: skip
    arrays = {name: (rng.standard_normal(shape) / 6).astype(_FLOAT) for name, shape in shapes.items()}
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    x, y = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", "sequence", WIDTH])
        for name in ("x", "y")
    )
    graph = helper.make_graph(writer.nodes, "layers", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
