"""Our own rules for layers, against onnx's inference of the same nodes and against the shapes of results."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from burnish.benchmarks.node_suite.cases import Variant, cases, runnable
from burnish.model import to_bytes
from burnish.passes.dims import Dim
from burnish.passes.shape_fallback import ask_onnx
from burnish.passes.shape_layers import LAYERS
from burnish.passes.shape_products import PRODUCTS
from burnish.passes.shape_windows import WINDOWS
from burnish.passes.shapes import Call, Fact, Shape, Shapes
from burnish.runtime.reference import Reference
from burnish.testing import parse

RULES = {**LAYERS, **PRODUCTS, **WINDOWS}


def shape_of(expression: str, inputs: str, **weights: np.ndarray) -> str:
    shapes = Shapes(model := parse(f"g ({inputs}) => (z) {{ z = {expression} }}", weights=weights))
    shape = shapes[model.graph.outputs[0]].shape
    return "?" if shape is None else ",".join("?" if "?" in str(dim) else str(dim) for dim in shape)


def sizes(shape: Shape | None) -> list[int | None]:
    return [] if shape is None else [dim.size for dim in shape]


def is_no_less(ours: Fact, theirs: Fact) -> bool:
    """True when we know all that onnx knows, and nothing else of that."""
    if theirs.shape is None:
        return True
    known = zip(sizes(ours.shape), sizes(theirs.shape), strict=True)
    return ours.dtype == theirs.dtype and all(size is None or size == own for own, size in known)


@pytest.mark.parametrize("variant", ["as is", "rest frozen", "named"])
def test_they_know_what_onnx_knows(variant: Variant) -> None:
    seen, wrong = Counter[str](), {}
    for case in cases():
        nodes = case.model.graph.node
        if len(nodes) != 1 or nodes[0].op_type not in RULES or nodes[0].domain:
            continue
        model = ir.from_proto(runnable(case, variant)[0])
        node, shapes = model.graph[0], Shapes(model)
        call = Call(node, [shapes[value] for value in node.inputs], shapes.opset(node), shapes)
        found, theirs = [shapes[value] for value in node.outputs], ask_onnx(call)
        if node.attributes.get_string("coordinate_transformation_mode") != "tf_crop_and_resize":
            wrong |= {case.name: (found, theirs)} if not all(map(is_no_less, found, theirs)) else {}
        seen[node.op_type] += any(fact.shape is not None for fact in found)
    assert wrong == {}
    assert sum(seen.values()) > 150
    assert len([op for op, count in seen.items() if count]) >= 24, seen


X = "float[batch, 3, 9, width] x"


@pytest.mark.parametrize(
    ("expression", "shape"),
    [
        ("Conv (x, w)", "batch,5,7,?"),
        ("Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w)", "batch,5,5,?"),
        ("Conv <dilations = [4, 1]> (x, w)", "batch,5,1,?"),
        ("Conv <dilations = [5, 1]> (x, w)", "batch,5,?,?"),  # does not fit: the operator fails
        ('Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w)', "batch,5,5,?"),
        ('Conv <auto_pad = "VALID"> (x, w)', "batch,5,7,?"),
        ("Conv <pads = [1, 1]> (x, w)", "?"),  # refused by the operator
        ("ConvTranspose <strides = [2, 2], output_padding = [1, 0], group = 1> (x, t)", "batch,4,20,?"),
        ("com.microsoft.FusedConv <activation = \"Relu\"> (x, w)", "batch,5,7,?"),
        ("MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)", "batch,3,4,?"),
        ("MaxPool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (x)", "batch,3,5,?"),
        ("GlobalAveragePool (x)", "batch,3,1,1"),
        ("Pad (x, pads)", "batch,3,12,width"),
        ("Pad (x, two, , axes)", "batch,3,12,width"),
        ("Pad (x, two)", "?,?,?,?"),  # refused by the operator
        ("Resize (x, , scales)", "batch,3,18,?"),
        ("Resize (x, , , sizes)", "1,3,20,30"),
        ('Resize <coordinate_transformation_mode = "tf_crop_and_resize"> (x, roi, scales)', "?,?,?,?"),
        ("ArgMax <axis = 1, keepdims = 0> (x)", "batch,9,width"),
    ],
)  # fmt: skip
def test_shapes(expression: str, shape: str) -> None:
    weights = {
        "w": np.zeros((5, 3, 3, 3), np.float32), "t": np.zeros((3, 4, 3, 3), np.float32),
        "pads": np.array([0, 0, 1, 0, 0, 0, 2, 0]), "two": np.array([1, 2]), "axes": np.array([2]),
        "scales": np.array([1, 1, 2, 2], np.float32), "sizes": np.array([1, 3, 20, 30]),
        "roi": np.array([0, 0, 0, 0, 1, 1, 0.5, 0.5], np.float32),
    }  # fmt: skip
    assert shape_of(expression, X, **weights) == shape


@pytest.mark.parametrize("scale", [0.1, 0.3, 0.6, 0.7, 1 / 3, 1.4, 1.7, 2.3, 3.9])
def test_resized_sizes_are_those_of_onnxruntime(scale: float) -> None:
    """The product is rounded to float32 before it is rounded down: 10 * 0.7 is 7, not 6."""
    scales = np.array([1, 1, 1, scale], np.float32)
    for n in range(10, 60, 7):
        text = f"g (float[1, 1, 1, {n}] x) => (float[A, B, C, D] y) {{ y = Resize (x, , s) }}"
        model = parse(text, weights={"s": scales})
        made = Reference(to_bytes(model))({"x": np.zeros((1, 1, 1, n), np.float32)})["y"].shape
        assert Shapes(model)[model.graph.outputs[0]].shape == tuple(map(Dim.of, made)), n
