"""onnxruntime's CPU provider really runs int8: read from the graph that it executes."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from burnish.model import copy_model, to_bytes
from burnish.passes.base import Context, Pass, Range
from burnish.passes.quantize.quantize_dynamic import QuantizeDynamic
from burnish.passes.quantize.quantize_static import QuantizeStatic
from burnish.runtime.reference import Reference
from burnish.testing import parse

RNG = np.random.default_rng(0)
FLOAT_KERNELS = {"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Conv", "FusedConv"}


def normal(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.3).astype(np.float32)


def executed(model: ir.Model, path: Path) -> Counter[str]:
    """The ops that onnxruntime runs, as it writes them after its own optimiser."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path / "executed.onnx")
    ort.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(path / "executed.onnx").graph.node)


def calibrated(bound: float = 6.0) -> Context:
    return Context(calibrate=lambda model, names: {name: Range(-bound, bound) for name in names})


def relu_calibrated(names: tuple[str, ...]) -> Context:
    """As after calibration: what comes out of a Relu has no negative values."""

    def calibrate(model: ir.Model, wanted: list[str]) -> dict[str, Range]:
        return {name: Range(0.0 if name in names else -6.0, 6.0) for name in wanted}

    return Context(calibrate=calibrate)


LINEARS = {
    "rank 2 with bias": ("float[N, 64] x", "float[N, 48] y", "m = MatMul (x, w)  y = Add (m, b)"),
    "rank 3 with bias": ("float[N, S, 64] x", "float[N, S, 48] y", "m = MatMul (x, w)  y = Add (m, b)"),
    "fixed shape": ("float[1, 32, 64] x", "float[1, 32, 48] y", "m = MatMul (x, w)  y = Add (m, b)"),
    "no bias": ("float[N, S, 64] x", "float[N, S, 48] y", "y = MatMul (x, w)"),
    "bias, Gelu": ("float[N, S, 64] x", "float[N, S, 48] y", "m = MatMul (x, w) a = Add (m, b) y = Gelu (a)"),
    "Gemm": ("float[N, 64] x", "float[N, 48] y", "y = Gemm (x, w, b)"),
    "Gemm transposed": ("float[N, 64] x", "float[N, 48] y", "y = Gemm <transB = 1> (x, wt, b)"),
    "Gemm with factors": ("float[N, 64] x", "float[N, 48] y", "y = Gemm <alpha = 0.5, beta = 3.0> (x, w, b)"),
    "Gemm without bias": ("float[N, 64] x", "float[N, 48] y", "y = Gemm (x, w)"),
    "bias row": ("float[N, 64] x", "float[N, 48] y", "m = MatMul (x, w)  y = Add (m, row)"),
}  # fmt: skip


def linear(form: str) -> ir.Model:
    inputs, outputs, body = LINEARS[form]
    arrays = {"w": normal(64, 48), "b": normal(48), "wt": normal(48, 64), "row": normal(1, 48)}
    used = {name: array for name, array in arrays.items() if f", {name}" in body}
    return parse(f"g ({inputs}) => ({outputs}) {{ {body} }}", weights=used)


@pytest.mark.parametrize("form", LINEARS)
@pytest.mark.parametrize("weights", ["channel", "tensor"])
def test_static_linear(form: str, weights: str, tmp_path: Path) -> None:
    model = linear(form)
    assert QuantizeStatic(weights=weights).rewrite(model, calibrated()) == 1
    ops = executed(model, tmp_path)
    assert ops["MatMulIntegerToFloat"] + ops["QGemm"] == 1, ops
    assert not FLOAT_KERNELS & ops.keys(), ops


@pytest.mark.parametrize("form", LINEARS)
@pytest.mark.parametrize("portable", [False, True])
def test_dynamic_linear(form: str, portable: bool, tmp_path: Path) -> None:
    model = linear(form)
    assert QuantizeDynamic(portable=portable).rewrite(model, Context()) == 1
    ops = executed(model, tmp_path)
    assert ops["DynamicQuantizeMatMul"] == 1, ops
    assert not FLOAT_KERNELS & ops.keys(), ops


def test_readers_of_one_value_round_it_once(tmp_path: Path) -> None:
    model = parse(
        """
        g (float[N, S, 64] x) => (float[N, S, 48] q, float[N, S, 48] k, float[N, S, 64] r) {
            h = Tanh (x)
            m = MatMul (h, w1)
            q = Add (m, b)
            k = MatMul (h, w2)
            r = Neg (h)
        }
        """,
        weights={"w1": normal(64, 48), "w2": normal(64, 48), "b": normal(48)},
    )
    QuantizeStatic().rewrite(model, calibrated())
    ops = executed(model, tmp_path)
    assert (ops["QuantizeLinear"], ops["MatMulIntegerToFloat"]) == (1, 2), ops


def test_products_of_attention(tmp_path: Path) -> None:
    model = parse(
        """
        g (float[N, 4, S, 16] q, float[N, 4, 16, S] k, float[N, 4, S, 16] v) => (float[N, 4, S, 16] y) {
            s = MatMul (q, k)
            p = Softmax (s)
            y = MatMul (p, v)
        }
        """
    )
    assert QuantizeStatic(attention=True).rewrite(model, calibrated()) == 2
    ops = executed(model, tmp_path)
    assert ops["MatMulIntegerToFloat"] == 2, ops


RESNET = """
    g (float[N, 3, 16, 16] x) => (float[N, 10] y) <int64[1] one = {1}> {
        a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
        r0 = Relu (a)
        p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r0)
        c = Conv <pads = [1, 1, 1, 1]> (p, w1, b1)
        r1 = Relu (c)
        d = Conv <pads = [1, 1, 1, 1], group = 16> (r1, w2)
        s = Add (d, p)
        r2 = Relu (s)
        e = Conv (r2, w3, b3)
        z = Clip (e, zero, six)
        g1 = GlobalAveragePool (z)
        f = Flatten (g1)
        y = Gemm <transB = 1> (f, w4, b4)
    }
"""


def resnet() -> ir.Model:
    weights = {
        "w0": normal(16, 3, 3, 3), "b0": normal(16), "w1": normal(16, 16, 3, 3), "b1": normal(16),
        "w2": normal(16, 1, 3, 3), "w3": normal(32, 16, 1, 1), "b3": normal(32), "w4": normal(10, 32),
        "b4": normal(10), "zero": np.float32(0), "six": np.float32(6),
    }  # fmt: skip
    return parse(RESNET, weights=weights)


def test_whole_residual_net(tmp_path: Path) -> None:
    model = resnet()
    QuantizeStatic().rewrite(model, relu_calibrated(("r0", "r1", "r2", "z", "g1", "f")))
    ops = executed(model, tmp_path)
    assert (ops["QLinearConv"], ops["QGemm"], ops["QLinearAdd"]) == (4, 1, 1), ops
    assert ops["QuantizeLinear"] == 1, ops
    assert ops["QLinearGlobalAveragePool"] == 1, ops
    assert not {"Conv", "FusedConv", "Gemm", "Add", "Relu", "Clip"} & ops.keys(), ops


@pytest.mark.parametrize("activation", ["Sigmoid", "LeakyRelu"])
def test_activations_between_convs(activation: str, tmp_path: Path) -> None:
    model = parse(
        f"""
        g (float[N, 16, 8, 8] x) => (float[N, 16, 6, 6] y) {{
            a = Conv (x, w1)
            s = {activation} (a)
            m = Mul (a, s)
            k = Concat <axis = 1> (m, s)
            y = Conv (k, w2)
        }}
        """,
        weights={"w1": normal(16, 16, 3, 3), "w2": normal(16, 32, 1, 1)},
    )
    QuantizeStatic().rewrite(model, calibrated())
    ops = executed(model, tmp_path)
    wanted = {"QLinearConv", f"QLinear{activation}", "QLinearMul", "QLinearConcat"}
    assert wanted <= ops.keys(), ops
    assert not {"Conv", activation, "Mul", "Concat"} & ops.keys(), ops


def test_int8_table_is_not_dequantised_as_a_whole(tmp_path: Path) -> None:
    model = parse(
        "g (int64[N, S] ids) => (float[N, S, 64] y) { y = Gather (t, ids) }",
        weights={"t": normal(2048, 64)},
    )
    QuantizeStatic().rewrite(model, calibrated())
    path = tmp_path / "executed.onnx"
    assert executed(model, tmp_path) == Counter(Gather=1, DequantizeLinear=1)
    assert path.stat().st_size < 2048 * 64 * 1.1


@pytest.mark.parametrize(
    ("pass_", "decibels"), [(QuantizeStatic(), 20.0), (QuantizeDynamic(), 30.0)], ids=lambda p: str(p)
)
def test_optimised_and_plain_runs_agree(pass_: Pass, decibels: float) -> None:
    model = linear("rank 3 with bias")
    exact = Reference(to_bytes(model))
    rounded = copy_model(model)
    pass_.rewrite(rounded, calibrated())
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 32, 64)).astype(np.float32)}
    plain = Reference(to_bytes(rounded))(feeds)["y"]
    fused = Reference(to_bytes(rounded), optimize=True)(feeds)["y"]
    np.testing.assert_allclose(fused, plain, atol=1e-3)
    wanted = exact(feeds)["y"]
    assert 10 * np.log10(np.sum(wanted**2) / np.sum((fused - wanted) ** 2)) > decibels
