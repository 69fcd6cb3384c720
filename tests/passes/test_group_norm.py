import numpy as np
import pytest

from burnish.model import to_bytes
from burnish.passes.base import Context
from burnish.passes.fusion.fuse_group_norm import FuseGroupNorm
from burnish.passes.fusion.lower_group_norm import LowerGroupNorm
from burnish.runtime.reference import Reference
from burnish.target import TARGETS
from burnish.testing import check_pass, parse

RNG = np.random.default_rng(0)
WEIGHTS = {
    "s": RNG.standard_normal(6).astype(np.float32), "b": RNG.standard_normal(6).astype(np.float32),
    "sg": np.array([0.5, 2, -1], np.float32), "bg": np.array([1, 0, 0.25], np.float32),
    "one": np.ones(3, np.float32), "nil": np.zeros(3, np.float32), "k": np.float32(2),
    "c": RNG.standard_normal((6, 1, 1)).astype(np.float32),
    "d": RNG.standard_normal((1, 6, 1, 1)).astype(np.float32),
    "flat": RNG.standard_normal((6, 1)).astype(np.float32),
    "groups": np.array([0, 3, -1]), "back": np.array([0, 6, 4, 5]), "other": np.array([0, 3, 8, 5]),
    "wide": np.array([-1, 3, 2]),
}  # fmt: skip
X = "float[N, 6, 4, 5] x"
NORM = "y = GroupNormalization <num_groups = 3, epsilon = 0.01> (x, s, b)"
LOWERED = ["Reshape", "InstanceNormalization", "Reshape", "Mul", "Add"]


def graph(nodes: str, x: str = X, y: str = "float[N, 6, H, W] y") -> str:
    return f"g ({x}) => ({y}) {{ {nodes} }}"


def used(nodes: str) -> dict[str, np.ndarray]:
    words = nodes.replace(",", " ").replace("(", " ").replace(")", " ").split()
    return {name: array for name, array in WEIGHTS.items() if name in words}


@pytest.mark.parametrize("x", [X, "float[N, 6, H, 5] x", "float[2, 6, 4, W] x"])
def test_a_norm_is_written_out(x: str) -> None:
    check_pass(LowerGroupNorm(), graph(NORM, x), LOWERED, count=1, opset=21, weights=used(NORM))


def test_sizes_that_are_not_known_are_read() -> None:
    after = ["Reshape", "InstanceNormalization", "Shape", "Reshape", "Mul", "Add"]
    text = graph(NORM, "float[N, 6, H, W] x")
    check_pass(LowerGroupNorm(), text, after, count=1, opset=21, weights=used(NORM))


def test_scales_of_groups_stay_inside_before_opset_21() -> None:
    nodes = "y = GroupNormalization <num_groups = 3, epsilon = 0.01> (x, sg, bg)"
    model = parse(graph(nodes), opset=18, weights=used(nodes))  # which onnx's checker has given up
    assert LowerGroupNorm().rewrite(model, Context()) == 1
    assert [node.op_type for node in model.graph] == LOWERED[:3]
    x = RNG.standard_normal((2, 6, 4, 5)).astype(np.float32)
    rows = x.reshape(2, 3, -1)
    norm = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + 0.01)
    expected = norm * WEIGHTS["sg"][:, None] + WEIGHTS["bg"][:, None]
    np.testing.assert_allclose(
        Reference(to_bytes(model))({"x": x})["y"], expected.reshape(x.shape), atol=1e-5
    )


def test_a_target_with_a_kernel_keeps_it() -> None:
    context = Context(target=TARGETS["openvino"])
    check_pass(LowerGroupNorm(), graph(NORM), count=0, opset=21, weights=used(NORM), context=context)


def test_half_precision_and_weights_from_outside_stay() -> None:
    half = {name: array.astype(np.float16) for name, array in used(NORM).items()}
    text = graph(NORM, "float16[N, 6, 4, 5] x", "float16[N, 6, 4, 5] y")
    given = "float[N, 6, 4, 5] x, float[6] s"
    for model, why in (
        (
            parse(text, opset=21, weights=half),
            "InstanceNormalization is for float32, or the type is not known",
        ),
        (
            parse(graph(NORM, given), opset=21, weights={"b": WEIGHTS["b"]}),
            "its scale and bias are not constant",
        ),
    ):
        context = Context()
        assert LowerGroupNorm().rewrite(model, context) == 0
        assert context.misses[0].why == why


INSTANCE = "a = Reshape (x, groups)  i = InstanceNormalization <epsilon = 0.01> (a, one, nil)  "
FORMS = {
    "torch's": INSTANCE + "r = Reshape (i, back)  m = Mul (r, c)  y = Add (m, d)",
    "operands the other way": INSTANCE + "r = Reshape (i, back)  m = Mul (d, r)  y = Add (c, m)",
    "a scale alone": INSTANCE + "r = Reshape (i, back)  y = Mul (r, c)",
    "a bias alone": INSTANCE + "r = Reshape (i, back)  y = Add (r, c)",
    "a number": INSTANCE + "r = Reshape (i, back)  y = Mul (r, k)",
    "neither": INSTANCE + "y = Reshape (i, back)",
    "weights of groups": INSTANCE.replace("one, nil", "sg, bg")
    + "r = Reshape (i, back)  m = Mul (r, c)  y = Add (m, d)",
}  # fmt: skip


@pytest.mark.parametrize("nodes", FORMS.values(), ids=FORMS)
def test_every_way_to_write_it(nodes: str) -> None:
    context = Context(target=TARGETS["openvino"])
    text, weights = graph(nodes), used(nodes)
    check_pass(
        FuseGroupNorm(), text, ["GroupNormalization"], count=1, opset=21, weights=weights, context=context
    )


def test_what_is_fused_and_lowered_is_what_it_was() -> None:
    nodes = FORMS["torch's"]
    model = parse(graph(nodes), opset=21, weights=used(nodes))
    assert FuseGroupNorm().rewrite(model, Context(target=TARGETS["openvino"])) == 1
    check_pass(LowerGroupNorm(), model, LOWERED, count=1)


KEPT = {
    "another shape behind": (INSTANCE + "y = Reshape (i, other)", X, "float[N, 3, 8, 5] y"),
    "another batch": (INSTANCE.replace("groups", "wide") + "y = Reshape (i, back)", "float[N, 6, 4, 5] x",
                      "float[M, 6, 4, 5] y"),
    "channels not known": (INSTANCE + "y = Reshape (i, back)", "float[N, C, 4, 5] x", "float[N, 6, 4, 5] y"),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "x", "y"), KEPT.values(), ids=KEPT)
def test_what_is_no_group_norm_stays(nodes: str, x: str, y: str) -> None:
    context = Context(target=TARGETS["openvino"])
    model = parse(graph(nodes, x, y), opset=21, weights=used(nodes))
    assert FuseGroupNorm().rewrite(model, context) == 0


def test_what_is_not_by_channel_stays_outside() -> None:
    nodes = INSTANCE + "r = Reshape (i, back)  y = Mul (r, flat)"
    context = Context(target=TARGETS["openvino"])
    model = parse(
        graph(nodes, "float[N, 6, 6, 5] x"), opset=21, weights=used(nodes) | {"back": np.array([0, 6, 6, 5])}
    )
    check_pass(FuseGroupNorm(), model, ["GroupNormalization", "Mul"], count=1, context=context)


def test_older_opsets_and_targets_without_a_kernel_keep_it() -> None:
    nodes, context = FORMS["torch's"], Context(target=TARGETS["openvino"])
    check_pass(FuseGroupNorm(), graph(nodes), count=0, opset=20, weights=used(nodes), context=context)
    assert context.misses[0].why == "opset 20 has no GroupNormalization with a scale for each channel"
    check_pass(FuseGroupNorm(), graph(nodes), count=0, opset=21, weights=used(nodes))


def test_a_norm_whose_inner_value_is_used_elsewhere_stays() -> None:
    nodes, context = FORMS["torch's"] + "  z = Neg (i)", Context(target=TARGETS["openvino"])
    text = graph(nodes, y="float[N, 6, 4, 5] y, float[N, 3, M] z")
    check_pass(FuseGroupNorm(), text, count=0, opset=21, weights=used(nodes), context=context)
