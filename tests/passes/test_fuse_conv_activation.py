import dataclasses

import numpy as np
import pytest

from burnish.model import to_bytes
from burnish.passes.base import Context
from burnish.passes.fusion.fuse_conv_activation import FuseConvActivation
from burnish.passes.shapes import Shapes
from burnish.runtime.session import executed_ops
from burnish.target import TARGETS, ConvRules
from burnish.testing import check_pass, parse

RNG = np.random.default_rng(0)
WEIGHTS = {
    "w": RNG.standard_normal((4, 3, 3, 3)).astype(np.float32), "b": np.linspace(-1, 1, 4, dtype=np.float32),
    "low": np.float32(-0.5), "high": np.float32(0.75),
}  # fmt: skip
CONV = "c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w, b)"
ACTIVATIONS = {
    "Relu (c)": ("Relu", None),
    "Sigmoid (c)": ("Sigmoid", None),
    "Tanh (c)": ("Tanh", None),
    "LeakyRelu <alpha = 0.3> (c)": ("LeakyRelu", [0.3]),
    "LeakyRelu (c)": ("LeakyRelu", [0.01]),
    "HardSigmoid <alpha = 0.1> (c)": ("HardSigmoid", [0.1, 0.5]),
    "Clip (c, low, high)": ("Clip", [-0.5, 0.75]),
    "Clip (c, low)": ("Clip", [-0.5, np.finfo(np.float32).max]),
    "Clip (c, , high)": ("Clip", [np.finfo(np.float32).min, 0.75]),
}


def graph(nodes: str, inputs: str = "float[N, 3, H, W] x", output: str = "float[N, 4, P, Q] y") -> str:
    return f"g ({inputs}) => ({output}) {{ {nodes} }}"


def used(nodes: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in WEIGHTS.items() if f", {name}" in nodes}


@pytest.mark.parametrize(("activation", "expected"), ACTIVATIONS.items(), ids=ACTIVATIONS)
def test_activations(activation: str, expected: tuple[str, list[float] | None]) -> None:
    nodes = f"{CONV}  y = {activation}"
    model = check_pass(FuseConvActivation(), graph(nodes), ["FusedConv"], count=1, weights=used(nodes))
    node = model.graph.node(0)
    name, parameters = expected
    assert node.attributes.get_string("activation") == name
    found = node.attributes.get_floats("activation_params", None) if parameters else None
    assert found == (None if parameters is None else pytest.approx(parameters))
    assert list(node.attributes.get_ints("strides", ())) == [2, 2]


def test_relu6_of_old_opsets() -> None:
    nodes = f"{CONV}  y = Clip <min = 0.0, max = 6.0> (c)"
    model = check_pass(
        FuseConvActivation(), graph(nodes), ["FusedConv"], count=1, opset=10, weights=used(nodes)
    )
    assert list(model.graph.node(0).attributes.get_floats("activation_params", ())) == [0.0, 6.0]


def test_its_shape_is_known_afterwards() -> None:
    nodes = f"{CONV}  y = Relu (c)"
    model = parse(graph(nodes), weights=used(nodes))
    before = Shapes(model)[model.graph.outputs[0]]
    FuseConvActivation().rewrite(model, Context())
    after = Shapes(model)[model.graph.outputs[0]]
    assert before.shape is not None
    assert after.shape is not None
    assert after.shape[:2] == before.shape[:2]
    assert (after.dtype, after.rank) == (before.dtype, 4)


def test_a_conv_without_bias() -> None:
    nodes = "c = Conv <pads = [1, 1, 1, 1]> (x, w)  y = Relu (c)"
    check_pass(FuseConvActivation(), graph(nodes), ["FusedConv"], count=1, weights=used(nodes))


HARD_SWISHES = {
    "HardSwish": "y = HardSwish (c)",
    "x times its gate": "h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (c)  y = Mul (c, h)",
    "a gate times x": "h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (c)  y = Mul (h, c)",
}


@pytest.mark.parametrize("nodes", HARD_SWISHES.values(), ids=HARD_SWISHES)
def test_hard_swish(nodes: str) -> None:
    nodes = f"{CONV}  {nodes}"
    model = check_pass(FuseConvActivation(), graph(nodes), ["FusedConv"], count=1, weights=used(nodes))
    node = model.graph.node(0)
    assert node.attributes.get_string("activation") == "HardSwish"
    assert "activation_params" not in node.attributes  # onnxruntime ignores them


def test_another_gate_is_not_hard_swish() -> None:
    nodes = f"{CONV}  h = HardSigmoid <alpha = 0.2, beta = 0.5> (c)  y = Mul (c, h)"
    check_pass(FuseConvActivation(), graph(nodes), count=0, weights=used(nodes))


POOL = "x = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (i)"
SAME = "c = Conv <pads = [1, 1, 1, 1]> (x, v, d)"
SAME2 = "c2 = Conv <pads = [1, 1, 1, 1]> (r, v)"
LAST = "c3 = Conv <pads = [1, 1, 1, 1]> (r2, v, d)  y = Add (c3, r2)"
SQUARE = {"v": RNG.standard_normal((4, 4, 3, 3)).astype(np.float32), "d": np.ones(4, np.float32)}
RESIDUALS = {
    "a sum": (f"{SAME}  y = Add (c, x)", ["FusedConv"], 1),
    "the other way round": (f"{SAME}  y = Add (x, c)", ["FusedConv"], 1),
    "and an activation": (f"{SAME}  s = Add (c, x)  y = Relu (s)", ["FusedConv"], 2),
    "and HardSwish": (f"{SAME}  s = Add (c, x)  y = HardSwish (s)", ["FusedConv"], 2),
    "without bias": ("c = Conv <pads = [1, 1, 1, 1]> (x, v)  y = Add (c, x)", ["FusedConv"], 1),
    "two convolutions": (
        f"{SAME}  e = Conv <pads = [1, 1, 1, 1]> (x, v)  s = Add (c, e)  y = Relu (s)",
        ["Conv", "FusedConv"],
        2,
    ),
    "three blocks": (
        f"{SAME}  s = Add (c, x)  r = Relu (s)  {SAME2}  s2 = Add (r, c2)  r2 = Relu (s2)  {LAST}",
        ["FusedConv", "FusedConv", "FusedConv"],
        5,
    ),
    "behind an activation": (f"{SAME}  r = Relu (c)  y = Add (r, x)", ["FusedConv", "Add"], 1),
}


@pytest.mark.parametrize(("nodes", "after", "count"), RESIDUALS.values(), ids=RESIDUALS)
def test_what_is_added_becomes_an_input(nodes: str, after: list[str], count: int) -> None:
    text = graph(f"{POOL}  {nodes}", "float[N, 4, 6, 5] i", "float[N, 4, 6, 5] y")
    weights = {name: array for name, array in SQUARE.items() if f", {name}" in nodes}
    check_pass(FuseConvActivation(), text, ["MaxPool", *after], count=count, weights=weights)


OUTSIDE = {
    "an input": "z = Identity (i)",
    "made by another operator": "z = Neg (x)",
    "a product that spreads": "g = GlobalAveragePool (x)  z = Mul (x, g)",
    "a sum with an input": "z = Add (x, i)",
}


@pytest.mark.parametrize("nodes", OUTSIDE.values(), ids=OUTSIDE)
def test_what_is_not_in_blocks_is_added_behind_the_conv(nodes: str) -> None:
    context = Context()
    text = graph(f"{POOL}  {nodes}  {SAME}  y = Add (c, z)", "float[N, 4, 6, 5] i", "float[N, 4, 6, 5] y")
    assert FuseConvActivation().rewrite(parse(text, weights=SQUARE), context) == 0
    assert "in blocks" in context.misses[0].why


STEPS = {
    "an activation": "q = Sigmoid (x)  z = Relu (q)",
    "a product": "q = Tanh (x)  z = Mul (x, q)",
    "parts of channels": "e = Conv (x, half)  z = Concat <axis = 1> (e, e)",
}


@pytest.mark.parametrize("nodes", STEPS.values(), ids=STEPS)
def test_what_is_made_of_blocks_is_in_blocks(nodes: str) -> None:
    weights = SQUARE | {"half": np.ones((2, 4, 1, 1), np.float32)} if "half" in nodes else SQUARE
    text = graph(f"{POOL}  {nodes}  {SAME}  y = Add (c, z)", "float[N, 4, 6, 5] i", "float[N, 4, 6, 5] y")
    model = check_pass(FuseConvActivation(), text, count=1, weights=weights)
    assert [node.op_type for node in model.graph][-1] == "FusedConv"


def test_a_sum_without_bias_runs_in_blocks() -> None:
    """DETR: onnxruntime keeps a sum without a bias out of blocks, and gets one of zeros."""
    wide = {"v": RNG.standard_normal((16, 16, 3, 3)).astype(np.float32), "d": np.ones(16, np.float32)}
    executed = []
    for bias, weights in ((", d", wide), ("", {"v": wide["v"]})):
        nodes = f"{POOL}  c = Conv <pads = [1, 1, 1, 1]> (x, v{bias})  s = Add (c, x)  y = Relu (s)"
        text = graph(nodes, "float[N, 16, 6, 5] i", "float[N, 16, 6, 5] y")
        model = check_pass(FuseConvActivation(), text, ["MaxPool", "FusedConv"], count=2, weights=weights)
        assert None not in model.graph[-1].inputs
        executed.append(executed_ops(to_bytes(model)))
    assert executed[0] == executed[1]


def test_a_sum_of_signals_becomes_an_input() -> None:
    """There are no blocks for one dim of space."""
    text = "g (float[N, 4, T] x) => (float[N, 4, T] y) { c = Conv (x, k)  y = Add (c, x) }"
    weights = {"k": np.ones((4, 4, 1), np.float32)}
    check_pass(FuseConvActivation(), text, ["FusedConv"], count=1, weights=weights)


SPREAD = {
    "one number for each channel": ("y = Add (c, z)", "float[4, 1, 1] z", "float[N, 4, 6, 5] y"),
    "another batch": ("y = Add (c, z)", "float[M, 4, 6, 5] z", "float[P, 4, 6, 5] y"),
    "more dims": ("y = Add (c, z)", "float[2, N, 4, 6, 5] z", "float[2, N, 4, 6, 5] y"),
}


@pytest.mark.parametrize(("nodes", "other", "output"), SPREAD.values(), ids=SPREAD)
def test_a_sum_that_spreads_stays(nodes: str, other: str, output: str) -> None:
    context = Context()
    model = parse(graph(f"{SAME}  {nodes}", f"float[N, 4, 6, 5] x, {other}", output), weights=SQUARE)
    assert FuseConvActivation().rewrite(model, context) == 0
    assert context.misses[0].why == "what is added is not proved to have the shape of the Conv's result"


def test_what_runs_on_integers_stays() -> None:
    conv = "d = DequantizeLinear (x, s, z)  c = Conv <pads = [1, 1, 1, 1]> (d, v)  "
    weights = {"s": np.float32(0.1), "z": np.uint8(99), "v": SQUARE["v"]}
    for behind in ("y = Relu (c)", "y = Add (c, d)"):
        context = Context()
        text = graph(conv + behind, "uint8[N, 4, 6, 5] x", "float[N, 4, 6, 5] y")
        check_pass(FuseConvActivation(), text, count=0, weights=weights, context=context)
        assert context.misses[0].why.startswith("its input is dequantised")


def test_a_sum_twice_of_one_convolution_stays() -> None:
    text = graph(f"{SAME}  y = Add (c, c)", "float[N, 4, 6, 5] x", "float[N, 4, 6, 5] y")
    check_pass(FuseConvActivation(), text, count=0, weights=SQUARE)


def test_a_target_that_knows_relu_only() -> None:
    target = dataclasses.replace(TARGETS["cpu"], name="other", fused_conv=ConvRules(frozenset({"Relu"})))
    for nodes, count in ((f"{CONV}  y = Relu (c)", 1), (f"{CONV}  y = Tanh (c)", 0)):
        context = Context(target=target)
        check_pass(FuseConvActivation(), graph(nodes), count=count, weights=used(nodes), context=context)
    assert context.misses[0].why == "the FusedConv of target other has no Tanh"
    text = graph(f"{SAME}  y = Add (c, x)", "float[N, 4, 6, 5] x", "float[N, 4, 6, 5] y")
    check_pass(FuseConvActivation(), text, count=0, weights=SQUARE, context=Context(target=target))
    context = Context(target=TARGETS["cuda"])
    nodes = f"{CONV}  y = Relu (c)"
    check_pass(FuseConvActivation(), graph(nodes), count=0, weights=used(nodes), context=context)
    assert context.misses[0].why == "target cuda has no com.microsoft::FusedConv"


REFUSED = {
    "bounds from outside": (
        f"{CONV}  y = Clip (c, m)", "float[N, 3, H, W] x, float m", "the bounds of the Clip are not constant",
    ),
    "used elsewhere": (
        f"{CONV}  y = Relu (c)  z = Neg (c)", "float[N, 3, H, W] x", "the Conv inside is used elsewhere too",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "inputs", "why"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_said(nodes: str, inputs: str, why: str) -> None:
    output = "float[N, 4, P, Q] y" + (", float[N, 4, P, Q] z" if "z =" in nodes else "")
    context = Context()
    text = graph(nodes, inputs, output)
    check_pass(FuseConvActivation(), text, count=0, weights=used(nodes), context=context)
    assert [miss.why for miss in context.misses[:1]] == [why]


def test_float64_stays() -> None:
    nodes, context = f"{CONV}  y = Relu (c)", Context()
    weights = {name: WEIGHTS[name].astype(np.float64) for name in ("w", "b")}
    text = graph(nodes, "double[N, 3, H, W] x", "double[N, 4, P, Q] y")
    assert FuseConvActivation().rewrite(parse(text, weights=weights), context) == 0
    assert context.misses[0].why == "FusedConv takes float32 only, or the type is not known"


def test_a_target_without_the_kernel_keeps_the_conv() -> None:
    nodes, context = f"{CONV}  y = Relu (c)", Context(target=TARGETS["openvino"])
    check_pass(FuseConvActivation(), graph(nodes), count=0, weights=used(nodes), context=context)
    assert context.misses[0].why == "target openvino has no com.microsoft::FusedConv"
