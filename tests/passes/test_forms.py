"""Which class of sizes a node is in, and what it is called in the cost table."""

import onnx_ir as ir
import pytest

from burnish.costs import Costs, Form
from burnish.passes.dims import Dim
from burnish.passes.forms import conv_form, evaluated, form_of, typical_size_of
from burnish.passes.shapes import Shapes
from burnish.testing import parse


def form(nodes: str, inputs: str, *, opset: int = 20, **sizes: int) -> Form | None:
    model = parse(f"g ({inputs}) => (float[X] y) {{ {nodes} }}", opset=opset)
    size_of = typical_size_of(Shapes(model), Costs({}, sizes))
    return form_of(model.graph.node(-1), size_of, ir.DataType.FLOAT, opset)


@pytest.mark.parametrize(
    ("nodes", "inputs", "expected"),
    [
        ("y = com.microsoft.SkipLayerNormalization (x, x, k)", "float[B, S, 384] x, float[384] k",
         ("com.microsoft::SkipLayerNormalization", "Sum+LayerNormalization", "", (256, 512))),
        ("y = com.microsoft.SkipLayerNormalization (x, x, k, k, k)", "float[B, S, 768] x, float[768] k",
         ("com.microsoft::SkipLayerNormalization", "Sum+LayerNormalization", "shift, bias", (256, 1024))),
        ("y = com.microsoft.BiasGelu (x, k)", "float[B, 6] x, float[6] k",
         ("com.microsoft::BiasGelu", "Add+Gelu", "", (4,))),
        ("y = com.microsoft.QuickGelu <alpha = 1.0> (x)", "float[S, 32, 32] x",
         ("com.microsoft::QuickGelu", "Sigmoid+Mul", "", (262144,))),
        ("y = com.microsoft.MultiHeadAttention <num_heads = 12> (x, x, x, , m)",
         "float[B, S, 768] x, int32[B, S] m",
         ("com.microsoft::MultiHeadAttention", "MatMul+Softmax+MatMul", "mask", (16, 128, 128, 64))),
        ("y = Attention <q_num_heads = 2, kv_num_heads = 2, is_causal = 1> (x, x, x)", "float[B, S, 64] x",
         ("Attention", "MatMul+Softmax+MatMul", "causal", (4, 128, 128, 32))),
        ("y = com.microsoft.Attention <num_heads = 4> (x, w, k)",
         "float[B, S, 100] x, float[100, 384] w, float[384] k",
         ("com.microsoft::Attention", "MatMul+Softmax+MatMul", "bias", (4, 128, 128, 32, 128))),
        ("y = Gemm <transB = 1> (x, w, k)", "float[S, 100] x, float[30, 100] w, float[30] k",
         ("Gemm", "MatMul+Add", "bias, transposed B", (256, 128, 32))),
        ("y = com.microsoft.FusedMatMul <transA = 1> (w, x)", "float[30, 100] w, float[30, 7] x",
         ("com.microsoft::FusedMatMul", "MatMul in steps", "transposed A", (64, 32, 8))),
        ('y = com.microsoft.FusedConv <activation = "Relu", group = 8> (x, w)',
         "float[B, 8, 28, 28] x, float[8, 1, 3, 3] w",
         ("com.microsoft::FusedConv", "Conv+Relu", "Relu, grouped", (1024, 1, 8, 8))),
        ("y = SimplifiedLayerNormalization (x, k)", "float[B, 100] x, float[100] k",
         ("RMSNormalization", "ReduceMean steps", "", (1, 128))),
    ],
)  # fmt: skip
def test_forms(nodes: str, inputs: str, expected: tuple[str, str, str, tuple[int, ...]]) -> None:
    op, instead, variant, size = expected
    assert form(nodes, inputs, B=1, S=128) == Form(op, instead, variant, "float32", size)


@pytest.mark.parametrize("sizes", [{"B": 1}, {"S": 128}, {"B": 0, "S": 128}])
def test_a_size_that_is_not_known_or_zero_has_no_form(sizes: dict[str, int]) -> None:
    assert form("y = com.microsoft.QuickGelu (x)", "float[B, S, 384] x", **sizes) is None


def test_a_rank_that_is_not_known_has_no_form() -> None:
    assert form("a = Reshape (x, s) y = com.microsoft.QuickGelu (a)", "float[8] x, int64[R] s") is None


def test_below_opset_20_gelu_is_written_in_steps() -> None:
    found = form("y = com.microsoft.BiasGelu (x, k)", "float[4, 4] x, float[4] k", opset=17)
    assert found is not None
    assert found.instead == "Add+Erf steps"


def test_a_conv_that_would_be_fused_is_called_what_the_fused_one_is() -> None:
    inputs = "float[1, 8, 28, 28] x, float[8, 1, 3, 3] w"
    fused = form('y = com.microsoft.FusedConv <activation = "Relu", group = 8> (x, w)', inputs)
    model = parse(f"g ({inputs}) => (float[X] y) {{ y = Conv <group = 8> (x, w) }}")
    size_of = typical_size_of(Shapes(model), Costs())
    assert conv_form(model.graph.node(0), "Relu", size_of) == fused
    assert conv_form(model.graph.node(0), "Relu", lambda _: None) is None
    assert conv_form(model.graph.node(0), "Relu", lambda _: (0, 0, 0, 0)) is None


def test_sizes_are_evaluated() -> None:
    size = Dim.named("b") * Dim.named("s") * Dim.of(3) + Dim.of(1)
    assert evaluated(size, {"b": 2, "s": 5}) == 31
    assert evaluated(size, {"b": 2}) is None
    assert evaluated(Dim(), {}) == 0
