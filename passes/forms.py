"""What the cost table calls a node: operator, what it is compared with, what is used of it, class of sizes.

Counts that only scale the work (rows, elements, batch times heads, pixels) are rounded to powers of four,
sizes that change how a kernel works (features, positions) to powers of two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import onnx_ir as ir

from burnish.costs import Costs, Form
from burnish.passes.dims import Dim
from burnish.passes.matching import CONTRIB
from burnish.passes.shapes import Fact, Shapes

Sizes = tuple[int, ...]
SizeOf = Callable[[ir.Value], Sizes | None]
"""A value's shape in numbers, at the typical sizes or as it was seen; None: not known."""

_NORMS: Final = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
_GELUS: Final = ("BiasGelu", "FastGelu", "Gelu")
_GELU_OPSET: Final = 20  # from where on the standard Gelu is there
# Optional inputs and outputs that change what a kernel does, by position.
_INPUTS: Final[Mapping[tuple[str, str], Mapping[int, str]]] = {
    (CONTRIB, "SkipLayerNormalization"): {3: "shift", 4: "bias"},
    (CONTRIB, "SkipSimplifiedLayerNormalization"): {3: "bias"},
    (CONTRIB, "FastGelu"): {1: "bias"},
    (CONTRIB, "MultiHeadAttention"): {3: "bias", 4: "mask", 5: "scores bias"},
    (CONTRIB, "Attention"): {2: "bias", 3: "mask", 5: "scores bias"},
    ("", "Attention"): {3: "mask"},
    ("", "Gemm"): {2: "bias"},
    (CONTRIB, "FusedConv"): {3: "sum"},
}
_OUTPUTS: Final = {"SkipLayerNormalization": {3: "sum"}, "SkipSimplifiedLayerNormalization": {3: "sum"}}
_FLAGS: Final = {
    "unidirectional": "causal", "is_causal": "causal", "transA": "transposed A", "transB": "transposed B",
}  # fmt: skip


def form_of(node: ir.Node, size_of: SizeOf, dtype: ir.DataType | None, opset: int) -> Form | None:
    """The form of a fused operator against the standard ones it stands for; None: a size is not known."""
    measure, shapes = _SIZES.get(node.op_type), [None if v is None else size_of(v) for v in node.inputs]
    if measure is None or dtype is None:
        return None
    try:
        sizes = measure(node, [shape if shape is not None else _UNKNOWN for shape in shapes])
    except (IndexError, ValueError, ZeroDivisionError):
        return None
    if any(size < 1 for size in sizes):
        return None
    return Form(_op(node), _instead(node, opset), _variant(node), dtype.numpy().name, sizes)


def attention_form(variant: str, sizes: Sizes) -> Form:
    """MultiHeadAttention against the standard Attention: (batch * heads, queries, keys, head size)."""
    return Form(f"{CONTRIB}::MultiHeadAttention", "Attention", variant, "float32", _attention_class(*sizes))


def conv_form(conv: ir.Node, activation: str, size_of: SizeOf) -> Form | None:
    """FusedConv against a Conv and its activation; None: a size is not known."""
    shapes = [None if value is None else size_of(value) for value in conv.inputs[:2]]
    try:
        sizes = _convolution(conv, [shape or _UNKNOWN for shape in shapes])
    except (IndexError, ValueError):
        return None
    grouped = ["grouped"] if conv.attributes.get_int("group", 1) != 1 else []
    variant = ", ".join([activation, *grouped])
    return Form(f"{CONTRIB}::FusedConv", f"Conv+{activation}", variant, "float32", sizes)


def evaluated(dim: Dim, sizes: Mapping[str, int]) -> int | None:
    """A size at given sizes of the named ones; None: it depends on others."""
    total = 0
    for names, coefficient in dim.terms:
        if any(name not in sizes for name in names):
            return None
        total += coefficient * math.prod(sizes[name] for name in names)
    return total


def typical_size_of(shapes: Shapes, costs: Costs) -> SizeOf:
    """Shapes at the typical sizes of the model's dynamic dims."""

    def size_of(value: ir.Value) -> Sizes | None:
        return typical(shapes[value], costs)

    return size_of


def typical(fact: Fact, costs: Costs) -> Sizes | None:
    """A shape at the typical sizes; None where it depends on others."""
    sizes = [evaluated(dim, costs.sizes) for dim in fact.shape or ()]
    return None if fact.shape is None or None in sizes else tuple(s for s in sizes if s is not None)


_UNKNOWN: Final[Sizes] = ()  # indexing it says that a size is not known


def _op(node: ir.Node) -> str:
    if node.op_type == "SimplifiedLayerNormalization":
        return "RMSNormalization"
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def _variant(node: ir.Node) -> str:
    inputs = _INPUTS.get((node.domain, node.op_type), {})
    words = [word for at, word in inputs.items() if at < len(node.inputs) and node.inputs[at] is not None]
    outputs = _OUTPUTS.get(node.op_type, {})
    words += [word for at, word in outputs.items() if at < len(node.outputs) and _is_used(node.outputs[at])]
    words += [word for name, word in _FLAGS.items() if node.attributes.get_int(name, 0)]
    if node.op_type == "FusedConv":
        words.insert(0, node.attributes.get_string("activation", "") or "")
        words += ["grouped"] if node.attributes.get_int("group", 1) != 1 else []
    return ", ".join(words)


def _is_used(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _instead(node: ir.Node, opset: int) -> str:
    """The operators that the fused one is written with, as `passes/fusion/unfuse*.py` write it."""
    match node.op_type:
        case "SkipLayerNormalization":
            return "Sum+LayerNormalization"
        case "SkipSimplifiedLayerNormalization":
            return "Sum+RMSNormalization"  # one kernel, whatever it is called below opset 23
        case "BiasGelu" | "FastGelu" | "Gelu" if node.domain:
            add = "Add+" if len(node.inputs) > 1 else ""
            steps = "Tanh steps" if node.op_type == "FastGelu" else "Erf steps"
            return add + ("Gelu" if opset >= _GELU_OPSET else steps)
        case "QuickGelu":
            scaled = node.attributes.get_float("alpha", 1.702) != 1.0
            return ("Mul+" if scaled else "") + "Sigmoid+Mul"
        case "Gemm":
            return "MatMul+Add" if len(node.inputs) > 2 else "MatMul"
        case "FusedConv":
            return f"Conv+{node.attributes.get_string('activation', '')}"
        case "FusedMatMul":
            return "MatMul in steps"
        case "RMSNormalization" | "SimplifiedLayerNormalization":
            return "ReduceMean steps"
    return "MatMul+Softmax+MatMul"


def _few(size: int, base: int = 2) -> int:
    """The power of 2 or 4 that is nearest to a size (by its logarithm); a size of 0 has none.

    Raises:
        ValueError: the size is 0.
    """
    return int(base ** math.floor(math.log(size, base) + 0.5 + 1e-9))


def _rows(_: ir.Node, shapes: list[Sizes]) -> Sizes:
    x = shapes[0]
    return _few(math.prod(x[:-1]), 4), _few(x[-1])


def _elements(_: ir.Node, shapes: list[Sizes]) -> Sizes:
    x = shapes[0]
    return (_few(math.prod([*x[:-1], x[-1]]), 4),)


def _heads(node: ir.Node, query: Sizes) -> int:
    given = node.attributes.get_int("num_heads", 0) or node.attributes.get_int("q_num_heads", 0)
    return given or query[-3]


def _attention(node: ir.Node, shapes: list[Sizes]) -> Sizes:
    query, key = shapes[0], shapes[1]
    heads = _heads(node, query)
    size = query[-1] if len(query) == 4 else query[-1] // heads
    return _attention_class(query[0] * heads, query[-2], key[-2], size)


def _packed(node: ir.Node, shapes: list[Sizes]) -> Sizes:
    """The attention's class, and the features that its projections read."""
    x, weight = shapes[0], shapes[1]
    heads = _heads(node, x)
    given = node.attributes.get_ints("qkv_hidden_sizes", None)
    hidden = given[0] if given else weight[-1] // 3
    return *_attention_class(x[0] * heads, x[1], x[1], hidden // heads), _few(x[-1])


def _attention_class(streams: int, queries: int, keys: int, size: int) -> Sizes:
    return _few(streams, 4), _few(queries), _few(keys), _few(size)


def _product(node: ir.Node, shapes: list[Sizes]) -> Sizes:
    """(rows, depth, columns) of the matrices, all batches' rows together."""
    a, b = shapes[0], shapes[1]
    rows, depth = (a[-1], a[-2]) if node.attributes.get_int("transA", 0) else (a[-2], a[-1])
    columns = b[-2] if node.attributes.get_int("transB", 0) else b[-1]
    return _few(math.prod(a[:-2]) * rows, 4), _few(depth), _few(columns)


def _convolution(_: ir.Node, shapes: list[Sizes]) -> Sizes:
    """(pixels that are read, channels of a group, channels made, elements of a kernel)"""
    x, weight = shapes[0], shapes[1]
    pixels = math.prod([x[0], *x[2:]])
    return _few(pixels, 4), _few(weight[1]), _few(weight[0]), _few(math.prod(weight[2:]))


_SIZES: Final[Mapping[str, Callable[[ir.Node, list[Sizes]], Sizes]]] = {
    **dict.fromkeys((*_NORMS, "RMSNormalization", "SimplifiedLayerNormalization"), _rows),
    **dict.fromkeys((*_GELUS, "QuickGelu"), _elements),
    "MultiHeadAttention": _attention,
    "Attention": lambda node, shapes: (_packed if node.domain else _attention)(node, shapes),
    "Gemm": _product,
    "FusedMatMul": _product,
    "FusedConv": _convolution,
}
