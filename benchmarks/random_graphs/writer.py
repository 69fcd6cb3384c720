"""Writes a graph node by node and knows the type and the dims of every value."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Dims = tuple[int | str, ...]
"""Each a number, the name of a dynamic dim, or a text that stands for a calculated one."""

FLOAT, DOUBLE, HALF = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16
INT64, INT32, BOOL = TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL
FLOATS: Final = (FLOAT, DOUBLE)
INTS: Final = (INT64, INT32)

_ROUNDING: Final = frozenset(
    {
        "BatchNormalization", "Conv", "Cos", "Div", "Erf", "Exp", "Gemm", "LayerNormalization", "MatMul",
        "Pow", "Reciprocal", "ReduceMean", "ReduceSum", "Sigmoid", "Sin", "Softmax", "Softplus", "Sqrt",
        "Tanh",
    }
)  # fmt: skip
"""Ops whose result a pass may move in its last bits, by fusing or by another order."""

_ALLOW_ZERO: Final = 14
_SHAPE_OF_PART: Final = 15  # Shape has start and end from here on


class MisfitError(Exception):
    """Values were to be joined whose dims do not provably fit."""


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all bodies in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs_of(attribute.g)


@final
@dataclasses.dataclass(frozen=True)
class Known:
    """A value of the graph."""

    name: str
    dtype: int
    dims: Dims
    rough: bool = False
    """A pass may move its last bits: nothing that rounds or compares may be calculated from it."""

    @property
    def rank(self) -> int:
        """Number of dims."""
        return len(self.dims)


def broadcast(a: Dims, b: Dims) -> Dims | None:
    """The dims of an elementwise result; None where they do not provably fit."""
    wide, narrow = (a, b) if len(a) >= len(b) else (b, a)
    pairs = zip(wide, (1,) * (len(wide) - len(narrow)) + narrow, strict=True)
    joined = [x if y == 1 else y if x in (1, y) else None for x, y in pairs]
    return None if None in joined else tuple(dim for dim in joined if dim is not None)


@final
class Writer:
    """A graph, or the body of a node in one.

    Args:
        rng: decides everything.
        opset: of the default domain.
        outer: the graph whose node the body is for; its values may be used.
    """

    def __init__(self, rng: np.random.Generator, opset: int, outer: Writer | None = None) -> None:
        self.rng, self.opset, self.outer = rng, opset, outer
        self.nodes: list[onnx.NodeProto] = []
        self.values: list[Known] = list(outer.values) if outer else []
        self.wanted: list[Known] = []
        """What must become an output, besides what comes last."""
        self.tensors: list[onnx.TensorProto] = outer.tensors if outer else []
        self._pool: dict[tuple[str, tuple[int, ...], bytes], str] = outer._pool if outer else {}
        self._counter: list[int] = outer._counter if outer else [0]

    @property
    def depth(self) -> int:
        """How many nodes this graph is inside of."""
        return self.outer.depth + 1 if self.outer else 0

    def chance(self, probability: float) -> bool:
        """True that often."""
        return bool(self.rng.random() < probability)

    def choose(self, options: Sequence[Any]) -> Any:
        """One of them."""
        return options[int(self.rng.integers(len(options)))]

    def fresh(self, stem: str) -> str:
        """A new name."""
        self._counter[0] += 1
        return f"{stem.lower()}_{self._counter[0]}"

    def add(
        self, op: str, inputs: Iterable[Known | str], outputs: Sequence[Known], **attributes: Any
    ) -> None:
        """Append a node that makes those values."""
        names = [value if isinstance(value, str) else value.name for value in inputs]
        self.nodes.append(helper.make_node(op, names, [each.name for each in outputs], **attributes))

    def make(
        self, op: str, inputs: Sequence[Known], dims: Dims, dtype: int | None = None, **attributes: Any
    ) -> Known:
        """Append a node with one result, of the first input's type unless `dtype`."""
        rough = op in _ROUNDING or any(value.rough for value in inputs)
        kind = inputs[0].dtype if dtype is None else dtype
        result = Known(self.fresh(op), kind, dims, rough and kind in (*FLOATS, HALF))
        self.add(op, inputs, [result], **attributes)
        return result

    def constant(self, array: object, dtype: type = np.float32) -> Known:
        """A constant: mostly an initializer, shared with equal ones; sometimes a node."""
        tensor: np.ndarray = np.asarray(array, dtype)
        kind = helper.np_dtype_to_tensor_dtype(tensor.dtype)
        if self.chance(0.1):
            result = Known(self.fresh("constant"), kind, tensor.shape)
            self.add("Constant", [], [result], value=numpy_helper.from_array(tensor))
            return result
        key = (str(tensor.dtype), tensor.shape, tensor.tobytes())
        if key not in self._pool or self.chance(0.2):
            self._pool[key] = self.fresh("weight")
            self.tensors.append(numpy_helper.from_array(tensor, self._pool[key]))
        return Known(self._pool[key], kind, tensor.shape)

    def ints(self, *numbers: int) -> Known:
        """A constant vector of int64."""
        return self.constant(numbers, np.int64)

    def weight(self, *shape: int) -> Known:
        """A random float constant; there are few of each shape, so that some are shared."""
        rng = np.random.default_rng([*shape, int(self.rng.integers(3))])
        return self.constant(rng.standard_normal(shape) * 0.5)

    def unary(self, op: str, x: Known, **attributes: Any) -> Known:
        """A node that keeps dims and type."""
        return self.make(op, [x], x.dims, **attributes)

    def binary(self, op: str, a: Known, b: Known, dtype: int | None = None) -> Known | None:
        """An elementwise node; None where the dims do not fit."""
        dims = broadcast(a.dims, b.dims)
        return None if dims is None else self.make(op, [a, b], dims, dtype)

    def on(self, op: str, a: Known, b: Known) -> Known:
        """An elementwise node of what is known to fit.

        Raises:
            MisfitError: it does not.
        """
        made = self.binary(op, a, b)
        if made is None:
            raise MisfitError(f"{a} and {b} do not fit")
        return made

    def cast(self, x: Known, dtype: int) -> Known:
        """A Cast, also to the same type."""
        return self.make("Cast", [x], x.dims, dtype, to=dtype)

    def transpose(self, x: Known, perm: Sequence[int]) -> Known:
        """A Transpose."""
        return self.make("Transpose", [x], tuple(x.dims[axis] for axis in perm), perm=list(perm))

    def reduce(self, op: str, x: Known, axes: Sequence[int], *, keepdims: bool) -> Known:
        """A reduction over `axes`, given as attribute or input as the opset wants it."""
        at = {axis % x.rank for axis in axes}
        dims = tuple(1 if i in at else dim for i, dim in enumerate(x.dims) if keepdims or i not in at)
        if self.opset < 18 and op != "ReduceSum":
            return self.make(op, [x], dims, axes=list(axes), keepdims=int(keepdims))
        return self.make(op, [x, self.ints(*axes)], dims, keepdims=int(keepdims))

    def matmul(self, a: Known, b: Known) -> Known:
        """A MatMul of ranks 2 and more whose dims are known to fit.

        Raises:
            MisfitError: those before the last two do not.
        """
        batch = broadcast(a.dims[:-2], b.dims[:-2])
        if batch is None or a.dims[-1] != b.dims[-2]:
            raise MisfitError(f"{a} and {b} do not fit")
        return self.make("MatMul", [a, b], (*batch, a.dims[-2], b.dims[-1]))

    def size(self, x: Known, axis: int) -> Known:
        """A vector with one size, written in one of the ways that exporters have."""
        way = self.rng.integers(0 if self.opset >= _SHAPE_OF_PART else 1, 4)
        if way == 0:
            return self.make("Shape", [x], (1,), INT64, start=axis, end=axis + 1)
        shape = self.make("Shape", [x], (x.rank,), INT64)
        if way == 1:
            return self.make("Slice", [shape, self.ints(axis), self.ints(axis + 1)], (1,))
        scalar = self.make("Gather", [shape, self.constant(axis, np.int64)], (), axis=0)
        if way == 2:
            return self.make("Unsqueeze", [scalar, self.ints(0)], (1,))
        return self.make("Reshape", [scalar, self.ints(-1)], (1,))

    def sizes(self, x: Known) -> list[Known]:
        """The sizes of a value, numbers sometimes as constants."""
        return [
            self.ints(dim) if isinstance(dim, int) and self.chance(0.6) else self.size(x, axis)
            for axis, dim in enumerate(x.dims)
        ]

    def reshape(self, x: Known, parts: Sequence[Known], dims: Dims) -> Known:
        """A Reshape to sizes that are joined at run time; 0 is mostly a size, else that of the input."""
        count = sum(int(part.dims[0]) for part in parts)
        target = self.make("Concat", parts, (count,), axis=0) if parts else self.ints()
        zeros = {"allowzero": 1} if self.opset >= _ALLOW_ZERO and self.chance(0.7) else {}
        return self.make("Reshape", [x, target], dims, **zeros)

    def info(self, value: Known) -> onnx.ValueInfoProto:
        """Its type, with the dims that are numbers or plain names."""
        dims = [dim if isinstance(dim, int) or dim.isidentifier() else None for dim in value.dims]
        info: onnx.ValueInfoProto = helper.make_tensor_value_info(value.name, value.dtype, dims)
        return info
