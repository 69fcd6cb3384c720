import numpy as np
import pytest

from burnish.passes.base import Context
from burnish.passes.fusion.fuse_hard_swish import FuseHardSwish
from burnish.target import TARGETS
from burnish.testing import check_pass, parse

NUMBERS = {"three": np.float32(3), "zero": np.float32(0), "one": np.float32(1), "six": np.float32(6),
           "sixth": np.float32(1 / 6), "half": np.float32(0.5), "four": np.float32(4)}  # fmt: skip
SIGMOID, SWISH = ["HardSigmoid"], ["HardSigmoid", "Mul"]
SHIFTED = "a = Add (x, three)  c = Clip (a, zero, six)  "
FORMS = {
    "product, then six": (SHIFTED + "m = Mul (x, c)  y = Div (m, six)", SWISH),
    "six, then product": (SHIFTED + "m = Div (c, six)  y = Mul (m, x)", SWISH),
    "a sixth": (SHIFTED + "m = Mul (c, sixth)  y = Mul (x, m)", SWISH),
    "scaled before": (
        "s = Mul (x, sixth)  a = Add (half, s)  c = Clip (a, zero, one)  y = Mul (x, c)",
        SWISH,
    ),
    "a gate alone": (SHIFTED + "y = Div (c, six)", SIGMOID),
    "a clip to one alone": ("s = Mul (x, four)  a = Add (half, s)  y = Clip (a, zero, one)", SIGMOID),
    "another slope": (
        "s = Mul (x, half)  a = Add (half, s)  c = Clip (a, zero, one)  y = Mul (x, c)",
        SWISH,
    ),
}


def graph(nodes: str, dtype: str = "float") -> str:
    return f"g ({dtype}[N, 3, H] x) => ({dtype}[N, 3, H] y) {{ {nodes} }}"


def used(nodes: str) -> dict[str, np.ndarray]:
    words = nodes.replace(",", " ").replace("(", " ").replace(")", " ").split()
    return {name: array for name, array in NUMBERS.items() if name in words}


@pytest.mark.parametrize(("nodes", "after"), FORMS.values(), ids=FORMS)
def test_every_way_to_write_it(nodes: str, after: list[str]) -> None:
    check_pass(FuseHardSwish(), graph(nodes), after, count=1, weights=used(nodes))


def test_relu6_of_old_opsets() -> None:
    nodes = "a = Add (x, three)  c = Clip <min = 0.0, max = 6.0> (a)  m = Mul (x, c)  y = Div (m, six)"
    check_pass(FuseHardSwish(), graph(nodes), SWISH, count=1, opset=10, weights=used(nodes))


def test_one_node_where_the_target_has_a_kernel() -> None:
    nodes = FORMS["product, then six"][0]
    context = Context(target=TARGETS["openvino"])
    check_pass(FuseHardSwish(), graph(nodes), ["HardSwish"], count=1, weights=used(nodes), context=context)
    written = "a = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x)  y = Mul (x, a)"
    context = Context(target=TARGETS["openvino"])
    check_pass(FuseHardSwish(), graph(written), ["HardSwish"], count=1, context=context)
    check_pass(FuseHardSwish(), graph(written), SWISH, count=0)


KEPT = {
    "another factor": SHIFTED + "m = Mul (x, c)  y = Div (m, four)",
    "from another number": "a = Add (x, three)  c = Clip (a, one, six)  m = Mul (x, c)  y = Div (m, six)",
    "no upper bound": "a = Add (x, three)  c = Clip (a, zero)  m = Mul (x, c)  y = Div (m, six)",
    "times itself": SHIFTED + "m = Mul (c, c)  y = Div (m, six)",
    "a plain clip": "c = Clip (x, zero, six)  m = Mul (x, c)  y = Div (m, six)",
}


@pytest.mark.parametrize("nodes", KEPT.values(), ids=KEPT)
def test_what_is_something_else_stays(nodes: str) -> None:
    check_pass(FuseHardSwish(), graph(nodes), count=0, weights=used(nodes))


def test_a_gate_that_something_else_reads_stays() -> None:
    nodes = SHIFTED + "m = Mul (x, c)  y = Div (m, six)  z = Neg (c)"
    text = f"g (float[N, 3, H] x) => (float[N, 3, H] y, float[N, 3, H] z) {{ {nodes} }}"
    context = Context()
    check_pass(FuseHardSwish(), text, count=0, weights=used(nodes), context=context)
    assert context.misses[0].why == "the Clip inside is used elsewhere too"


def test_half_precision_stays() -> None:
    nodes, context = FORMS["product, then six"][0], Context()
    weights = {name: array.astype(np.float16) for name, array in used(nodes).items()}
    model = parse(graph(nodes, "float16"), weights=weights)
    assert FuseHardSwish().rewrite(model, context) == 0
    assert context.misses[0].why == "HardSigmoid is for float32, or the type is not known"
