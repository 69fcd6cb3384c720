import numpy as np
import pytest

from burnish.passes.base import Context
from burnish.passes.fusion.fold_before_conv import FoldBeforeConv
from burnish.testing import check_pass, parse

RNG = np.random.default_rng(0)


def random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


WEIGHTS = {
    "w": random(6, 4, 3, 3), "b": random(6), "group": random(6, 2, 3, 3), "deep": random(4, 1, 3, 3),
    "point": random(6, 4, 1, 1), "line": random(6, 4, 3), "up": random(4, 3, 2, 2),
    "c": random(4, 1, 1), "c4": random(1, 4, 1, 1), "s": np.float32(0.3), "s1": random(1),
    "flat": random(4, 1), "g": random(4, 6), "gt": random(6, 4), "row": random(4), "row2": random(1, 4),
    "z": np.zeros((4, 1, 1), np.float32), "hw": random(5, 5), "full": random(1, 4, 5, 5),
}  # fmt: skip
CONV, PAD = "y = Conv (t, w, b)", "y = Conv <pads = [1, 1, 1, 1]> (t, w, b)"
SCALES = {
    "a scalar": f"t = Mul (x, s)  {CONV}",
    "of rank one": f"t = Mul (x, s1)  {CONV}",
    "a padded one": f"t = Mul (x, c)  {PAD}",
    "constant first": f"t = Mul (c4, x)  {PAD}",
    "a quotient": f"t = Div (x, c)  {PAD}",
    "groups": "t = Mul (x, c)  y = Conv <group = 2> (t, group, b)",
    "each channel": "t = Mul (x, c)  y = Conv <group = 4, pads = [1, 1, 1, 1]> (t, deep)",
    "transposed": "t = Mul (x, c)  y = ConvTranspose <strides = [2, 2]> (t, up)",
    "zeros": f"t = Mul (x, z)  {CONV}",
}
SHIFTS = {
    "a scalar": f"t = Add (x, s)  {CONV}",
    "each channel": f"t = Add (c, x)  {CONV}",
    "a difference": f"t = Sub (x, c)  {CONV}",
    "from a constant": f"t = Sub (c, x)  {CONV}",
    "without bias": 't = Add (x, c)  y = Conv <auto_pad = "VALID"> (t, w)',
    "groups": "t = Add (x, c)  y = Conv <group = 2, strides = [2, 1]> (t, group, b)",
    "points": "t = Add (x, c)  y = Conv (t, point, b)",
}


def graph(nodes: str, inputs: str = "float[N, 4, 5, 5] x", output: str = "float[N, O, P, Q] y") -> str:
    return f"g ({inputs}) => ({output}) {{ {nodes} }}"


def used(nodes: str, weights: dict[str, np.ndarray] = WEIGHTS) -> dict[str, np.ndarray]:
    words = nodes.replace(",", " ").replace("(", " ").replace(")", " ").split()
    return {name: array for name, array in weights.items() if name in words}


@pytest.mark.parametrize(
    "nodes", [*SCALES.values(), *SHIFTS.values()], ids=[*SCALES, *(f"+ {k}" for k in SHIFTS)]
)
def test_a_constant_before_a_convolution(nodes: str) -> None:
    last = "ConvTranspose" if "ConvTranspose" in nodes else "Conv"
    check_pass(FoldBeforeConv(), graph(nodes), [last], count=1, weights=used(nodes))


def test_both_without_padding() -> None:
    nodes = f"m = Mul (x, c)  t = Add (m, s)  {CONV}"
    check_pass(FoldBeforeConv(), graph(nodes), ["Conv"], count=2, weights=used(nodes))


@pytest.mark.parametrize("constants", ["c, s", "s, c", "s, s1", "c, c4"])
def test_with_padding_the_scale_goes(constants: str) -> None:
    scale, shift = constants.split(", ")
    nodes = f"m = Mul (x, {scale})  t = Add (m, {shift})  {PAD}"
    check_pass(FoldBeforeConv(), graph(nodes), ["Add", "Conv"], count=1, weights=used(nodes))


MATRICES = {
    "MatMul": ("t = Mul (x, row)  y = MatMul (t, g)", "float[N, M, 4] x", "float[N, M, 6] y"),
    "MatMul by a scalar": ("t = Div (x, s)  y = MatMul (t, g)", "float[N, M, 4] x", "float[N, M, 6] y"),
    "Gemm": ("t = Mul (x, row)  y = Gemm (t, g, b)", "float[N, 4] x", "float[N, 6] y"),
    "Gemm, shifted": ("t = Add (x, row)  y = Gemm (t, g)", "float[N, 4] x", "float[N, 6] y"),
    "Gemm with factors": (
        "t = Sub (row2, x)  y = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (t, gt, b)",
        "float[N, 4] x",
        "float[N, 6] y",
    ),
}


@pytest.mark.parametrize(("nodes", "inputs", "output"), MATRICES.values(), ids=MATRICES)
def test_a_constant_before_a_product(nodes: str, inputs: str, output: str) -> None:
    op = "MatMul" if "MatMul" in nodes else "Gemm"
    check_pass(FoldBeforeConv(), graph(nodes, inputs, output), [op], count=1, weights=used(nodes))


KEPT = {
    "a shift before padding": (f"t = Add (x, c)  {PAD}", "float[N, 4, 5, 5] x"),
    "a shift before SAME": (
        't = Add (x, c)  y = Conv <auto_pad = "SAME_UPPER"> (t, w)',
        "float[N, 4, 5, 5] x",
    ),
    "a shift before ConvTranspose": ("t = Add (x, s)  y = ConvTranspose (t, up)", "float[N, 4, 5, 5] x"),
    "by position": (f"t = Mul (x, hw)  {CONV}", "float[N, 4, 5, 5] x"),
    "by position and channel": (f"t = Mul (x, full)  {CONV}", "float[N, 4, 5, 5] x"),
    "by row": (f"t = Mul (x, flat)  {CONV}", "float[N, 4, 4, 5] x"),
    "spread over channels": (f"t = Mul (x, c)  {CONV}", "float[N, 1, 5, 5] x"),
    "divided by": (f"t = Div (c, x)  {CONV}", "float[N, 4, 5, 5] x"),
    "negated before padding": (f"m = Mul (x, c)  t = Sub (s, m)  {PAD}", "float[N, 4, 5, 5] x"),
    "nothing to divide by": (f"m = Mul (x, z)  t = Add (m, s)  {PAD}", "float[N, 4, 5, 5] x"),
    "weights from outside": ("t = Mul (x, c)  y = Conv (t, v)", "float[N, 4, 5, 5] x, float[6, 4, 3, 3] v"),
    "used elsewhere": (f"t = Mul (x, c)  {CONV}  u = Neg (t)", "float[N, 4, 5, 5] x"),
}


@pytest.mark.parametrize(("nodes", "inputs"), KEPT.values(), ids=KEPT)
def test_what_does_not_fit_stays(nodes: str, inputs: str) -> None:
    output = "float[N, O, P, Q] y" + (", float[N, 4, 5, 5] u" if "u =" in nodes else "")
    check_pass(FoldBeforeConv(), graph(nodes, inputs, output), count=0, weights=used(nodes))


def test_channels_that_are_not_known_may_be_spread() -> None:
    nodes = f"t = Mul (x, c)  {CONV}"
    model = parse(graph(nodes, "float[N, C, 5, 5] x"), weights=used(nodes))
    assert FoldBeforeConv().rewrite(model, Context()) == 0


def test_a_bias_before_a_plain_product_stays() -> None:
    nodes = "t = Add (x, row)  y = MatMul (t, g)"
    text = graph(nodes, "float[N, M, 4] x", "float[N, M, 6] y")
    check_pass(FoldBeforeConv(), text, count=0, weights=used(nodes))


def test_a_constant_that_raises_the_rank_stays() -> None:
    nodes = "t = Mul (x, row2)  y = MatMul (t, g)"
    text = graph(nodes, "float[4] x", "float[1, 6] y")
    check_pass(FoldBeforeConv(), text, count=0, weights=used(nodes))


def test_a_transposed_operand_stays() -> None:
    nodes = "t = Mul (x, row)  y = Gemm <transA = 1> (t, g)"
    text = graph(nodes, "float[4, 4] x", "float[4, 6] y")
    check_pass(FoldBeforeConv(), text, count=0, weights=used(nodes))


def test_half_precision_stays() -> None:
    nodes, context = SCALES["a padded one"], Context()
    half = {name: array.astype(np.float16) for name, array in used(nodes).items()}
    text = graph(nodes, "float16[N, 4, 5, 5] x", "float16[N, O, P, Q] y")
    assert FoldBeforeConv().rewrite(parse(text, weights=half), context) == 0
    assert context.misses[0].why == "its weights are not float32, and folding would round them once more"


def test_what_overflows_stays() -> None:
    nodes, context = SCALES["a padded one"], Context()
    weights = used(nodes) | {"c": np.full((4, 1, 1), 3e38, np.float32), "w": WEIGHTS["w"] * 10}
    check_pass(FoldBeforeConv(), graph(nodes), count=0, weights=weights, context=context)
    assert context.misses[0].why == "the constants do not fit each other"
