"""What `burnish calibrate-costs` measures: fused operators, each alone in a model, over a grid of sizes."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, final

import numpy as np
import onnx_ir as ir

_CONTRIB: Final = "com.microsoft"
_IR_VERSION: Final = 10
_LARGEST: Final = 1 << 22  # elements of a tensor
_MOST_WORK: Final = 1 << 29  # multiplications: about 0.05 s on one core
Sizes = tuple[int, ...]
Shapes = Sequence[Sizes]


@final
@dataclasses.dataclass(frozen=True)
class Family:
    """A fused operator with the optional inputs and outputs that are used, and the sizes to measure it at."""

    op_type: str
    shapes: Callable[[Sizes], Shapes]
    """Of all its inputs, at a size of the grid."""
    grid: tuple[Sizes, ...]
    inputs: tuple[int, ...]
    """The inputs that are there."""
    constants: frozenset[int] = frozenset()
    """Those of them that are weights."""
    attributes: Callable[[Sizes], Mapping[str, object]] = lambda _: {}
    outputs: tuple[int, ...] = (0,)
    domain: str = _CONTRIB
    opset: int = 20
    mask: int = -1
    """The input that is an int32 mask."""

    def model(self, size: Sizes) -> ir.Model:
        """The operator alone."""
        shapes, values = self.shapes(size), dict[int, ir.Value]()
        for at in self.inputs:
            dtype = ir.DataType.INT32 if at == self.mask else ir.DataType.FLOAT
            tensor = ir.tensor(_random(shapes[at], at), name=f"w{at}") if at in self.constants else None
            shape, type_ = ir.Shape(shapes[at]), ir.TensorType(dtype)
            values[at] = ir.Value(
                name=f"w{at}" if tensor else f"x{at}", shape=shape, type=type_, const_value=tensor
            )
        inputs = [values.get(at) for at in range(max(self.inputs) + 1)]
        node = ir.node(
            self.op_type, inputs, dict(self.attributes(size)), domain=self.domain,  # type: ignore[arg-type]
            num_outputs=max(self.outputs) + 1,
        )  # fmt: skip
        for at, output in enumerate(node.outputs):
            output.name = f"y{at}" if at in self.outputs else ""
            output.type = ir.TensorType(ir.DataType.FLOAT)
        graph = ir.Graph(
            [value for at, value in values.items() if at not in self.constants],
            [node.outputs[at] for at in self.outputs],
            nodes=[node],
            initializers=[values[at] for at in self.constants & values.keys()],
            opset_imports={"": self.opset, _CONTRIB: 1},
            name=self.op_type,
        )
        return ir.Model(graph, ir_version=_IR_VERSION)

    def feeds(self, size: Sizes) -> dict[str, np.ndarray]:
        """Random inputs; of a mask, a quarter is hidden."""
        shapes = self.shapes(size)
        moving = [at for at in self.inputs if at not in self.constants]
        return {f"x{at}": _mask(shapes[at]) if at == self.mask else _random(shapes[at], at) for at in moving}


def _random(shape: Sizes, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _mask(shape: Sizes) -> np.ndarray:
    mask = np.ones(shape, np.int32)
    mask[..., shape[-1] - shape[-1] // 4 :] = 0
    return mask


def _grid(*axes: Iterable[int], most: int = _LARGEST) -> tuple[Sizes, ...]:
    """All combinations whose product is at most that."""
    return tuple(size for size in itertools.product(*axes) if math.prod(size) <= most)


def _norm(size: Sizes) -> Shapes:
    rows, width = size
    return [(1, rows, width), (1, rows, width), (width,), (width,), (width,)]


def _skip_rms(size: Sizes) -> Shapes:
    rows, width = size
    return [(1, rows, width), (1, rows, width), (width,), (width,)]


def _rms(size: Sizes) -> Shapes:
    rows, width = size
    return [(1, rows, width), (width,)]


def _activation(size: Sizes) -> Shapes:
    width = min(size[0], 1024)
    return [(size[0] // width, width), (width,)]


def _attention(size: Sizes) -> Shapes:
    heads, queries, keys, features = size
    hidden = heads * features
    key = (1, keys, hidden)
    return [(1, queries, hidden), key, key, (3 * hidden,), (1, keys), (1, 1, queries, keys)]


def _packed(size: Sizes) -> Shapes:
    heads, queries, keys, features = size[:4]
    hidden = heads * features
    return [(1, queries, size[4]), (size[4], 3 * hidden), (3 * hidden,), (1, keys)]


def _gemm(size: Sizes) -> Shapes:
    rows, depth, columns = size
    return [(rows, depth), (columns, depth), (columns,)]


def _conv(size: Sizes) -> Shapes:
    pixels, channels, made, elements = size
    side, kernel = math.isqrt(pixels), _KERNELS[elements]
    return [(1, channels, side, side), (made, channels, kernel, kernel), (made,)]


def _depthwise(size: Sizes) -> Shapes:
    pixels, _, made, elements = size
    side, kernel = math.isqrt(pixels), _KERNELS[elements]
    return [(1, made, side, side), (made, 1, kernel, kernel), (made,)]


def _conv_attributes(activation: str, *, grouped: bool = False) -> Callable[[Sizes], Mapping[str, object]]:
    bounds: dict[str, object] = {"activation_params": [0.0, 6.0]} if activation == "Clip" else {}

    def attributes(size: Sizes) -> Mapping[str, object]:
        pad = _KERNELS[size[3]] // 2
        return {"activation": activation, "pads": [pad] * 4, "group": size[2] if grouped else 1} | bounds

    return attributes


def _heads(size: Sizes) -> Mapping[str, object]:
    return {"num_heads": size[0]}


_KERNELS: Final = {1: 1, 8: 3, 32: 5}  # sides, by the class of their elements
_ROWS: Final = _grid((4**n for n in range(8)), (2**n for n in range(5, 13)))
_ELEMENTS: Final = tuple((4**n,) for n in range(12))
_LENGTHS: Final = (
    *((2**n, 2**n) for n in range(4, 10)), *((1, 4**n) for n in range(2, 6)),
    *((4**n, 64) for n in (4, 5, 6)),
)  # fmt: skip
"""Queries and keys: all of a sequence, one step of a decoder, and keys of a smaller image."""
_STREAMS: Final = (1, 4, 16, 64, 256)
_ATTENTION: Final = tuple(
    (heads, queries, keys, features)
    for heads, (queries, keys), features in itertools.product(_STREAMS, _LENGTHS, (32, 64))
    if heads * queries * keys * features * 2 <= _MOST_WORK
)
_WIDTHS: Final = (128, 256, 512, 1024)
_PACKED: Final = tuple(
    (*size, size[0] * size[3]) for size in _ATTENTION if size[1] == size[2] and size[0] * size[3] in _WIDTHS
)
_PRODUCTS: Final = _grid((1, 16, 64, 256), (256, 512, 1024), (256, 512, 1024, 2048), most=_MOST_WORK)
_CONVS: Final = _grid((64, 256, 1024, 4096, 16384), (16, 64, 256), (16, 64, 256), (1, 8), most=1 << 28)
_DEPTHWISE: Final = _grid((64, 256, 1024, 4096, 16384), (1,), (16, 64, 256), (8, 32))


def _fixed(**attributes: object) -> Callable[[Sizes], Mapping[str, object]]:
    return lambda _: attributes


def _norms() -> list[Family]:
    epsilon, weights = _fixed(epsilon=1e-5), frozenset({2, 3, 4})
    with_shift = [
        Family("SkipLayerNormalization", _norm, _ROWS, inputs, weights, epsilon, outputs)
        for inputs, outputs in itertools.product(((0, 1, 2, 3), (0, 1, 2, 3, 4)), ((0,), (0, 3)))
    ]
    without = [
        Family("SkipSimplifiedLayerNormalization", _skip_rms, _ROWS, (0, 1, 2), weights, epsilon, outputs)
        for outputs in ((0,), (0, 3))
    ]
    rms = Family("RMSNormalization", _rms, _ROWS, (0, 1), frozenset({1}), epsilon, domain="", opset=23)
    return [*with_shift, *without, rms]


def _gelus() -> list[Family]:
    gelus = [
        Family(op, _activation, _ELEMENTS, inputs, frozenset({1}), opset=opset)
        for op, inputs, opset in (
            ("BiasGelu", (0, 1), 20), ("BiasGelu", (0, 1), 17), ("Gelu", (0,), 17), ("FastGelu", (0,), 17),
            ("FastGelu", (0, 1), 17),
        )
    ]  # fmt: skip
    quick = [
        Family("QuickGelu", _activation, _ELEMENTS, (0,), attributes=_fixed(alpha=alpha))
        for alpha in (1.0, 1.702)
    ]
    return [*gelus, *quick]


def _attentions() -> list[Family]:
    apart = [
        Family("MultiHeadAttention", _attention, _ATTENTION, inputs, frozenset({3}), _heads, opset=23, mask=4)
        for inputs in ((0, 1, 2), (0, 1, 2, 3), (0, 1, 2, 4), (0, 1, 2, 3, 4), (0, 1, 2, 5))
    ]
    packed = [
        Family("Attention", _packed, _PACKED, inputs, frozenset({1, 2}), _heads, mask=3)
        for inputs in ((0, 1, 2), (0, 1, 2, 3))
    ]
    return [*apart, *packed]


def _products() -> list[Family]:
    turned = _fixed(transB=1)
    return [
        Family("Gemm", _gemm, _PRODUCTS, (0, 1, 2), frozenset({1, 2}), turned, domain=""),
        Family("FusedMatMul", _gemm, _PRODUCTS, (0, 1), frozenset({1}), turned),
    ]


def _convs() -> list[Family]:
    full = [
        Family("FusedConv", _conv, _CONVS, (0, 1, 2), frozenset({1, 2}), _conv_attributes(activation))
        for activation in ("Relu", "Clip", "Sigmoid")
    ]
    grouped = _conv_attributes("Relu", grouped=True), _conv_attributes("Clip", grouped=True)
    return [
        *full,
        *(Family("FusedConv", _depthwise, _DEPTHWISE, (0, 1, 2), frozenset({1, 2}), a) for a in grouped),
    ]


FAMILIES: Final = (*_norms(), *_gelus(), *_attentions(), *_products(), *_convs())
