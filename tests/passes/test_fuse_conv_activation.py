import numpy as np
import pytest

from burnish.passes.base import Context
from burnish.passes.fusion.fuse_conv_activation import FuseConvActivation
from burnish.passes.shapes import Shapes
from burnish.target import TARGETS
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
