import numpy as np
import pytest

from burnish.passes.base import Context
from burnish.passes.fusion.fold_into_conv import FoldIntoConv
from burnish.testing import check_pass, parse


def arrays(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def image(nodes: str, channels: int = 4) -> str:
    return f"g (float[N, {channels}, 8, 8] x) => (float[N, C, H2, W2] y) {{ {nodes} }}"


def rows(nodes: str) -> str:
    return f"g (float[N, 3] x) => (float[N, M] y) {{ {nodes} }}"


STEPS = ["Add (c, k)", "Add (k, c)", "Sub (c, k)", "Sub (k, c)", "Mul (c, k)", "Mul (k, c)", "Div (c, k)"]


@pytest.mark.parametrize("bias", ["", ", b"])
@pytest.mark.parametrize("step", STEPS)
def test_behind_a_conv(step: str, bias: str) -> None:
    weights = arrays(w=(6, 2, 3, 3), k=(6, 1, 1), **({"b": (6,)} if bias else {}))
    text = image(f"c = Conv <group = 2> (x, w{bias})  y = {step}")
    check_pass(FoldIntoConv(), text, ["Conv"], count=1, weights=weights)


@pytest.mark.parametrize("shape", [(1, 6, 1, 1), (6, 1, 1), (1, 1, 1), (1,), ()], ids=str)
@pytest.mark.parametrize("step", ["Add", "Mul"])
def test_shapes_of_a_constant_for_each_channel(step: str, shape: tuple[int, ...]) -> None:
    weights = arrays(w=(4, 3, 2, 2), b=(6,), k=shape)
    text = image(f"c = ConvTranspose <group = 2, strides = [2, 2]> (x, w, b)  y = {step} (c, k)")
    check_pass(FoldIntoConv(), text, ["ConvTranspose"], count=1, weights=weights)


def test_weights_that_only_get_a_bias_are_not_written_again() -> None:
    weights = arrays(w=(6, 4, 3, 3), k=(6, 1, 1))
    model = check_pass(
        FoldIntoConv(), image("c = Conv (x, w)  y = Add (c, k)"), ["Conv"], count=1, weights=weights
    )
    assert sorted(model.graph.initializers) == ["w", "w_folded_bias"]


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("step", STEPS)
def test_behind_a_gemm(step: str, transposed: int) -> None:
    weights = arrays(w=(5, 3) if transposed else (3, 5), b=(5,), k=(1, 5))
    text = rows(f"c = Gemm <transB = {transposed}, alpha = 2.0, beta = 0.5> (x, w, b)  y = {step}")
    check_pass(FoldIntoConv(), text, ["Gemm"], count=1, weights=weights)


@pytest.mark.parametrize(("step", "count"), [("Mul (c, k)", 1), ("Div (c, k)", 1), ("Add (c, k)", 0)])
def test_behind_a_matmul(step: str, count: int) -> None:
    text = f"g (float[N, 2, 3] x) => (float[N, 2, 5] y) {{ c = MatMul (x, w)  y = {step} }}"
    after = ["MatMul"] if count else ["MatMul", "Add"]
    check_pass(FoldIntoConv(), text, after, count=count, weights=arrays(w=(3, 5), k=(5,)))


def test_several_steps_in_a_row() -> None:
    text = image("c = Conv (x, w)  d = Mul (c, k)  e = Add (d, l)  y = Div (e, s)")
    weights = arrays(w=(6, 4, 3, 3), k=(6, 1, 1), l=(6, 1, 1), s=())
    check_pass(FoldIntoConv(), text, ["Conv"], count=3, weights=weights)


def test_one_channel_is_not_made_many() -> None:
    weights = arrays(w=(1, 4, 3, 3), k=(5, 1, 1))
    stays(
        image("c = Conv (x, w)  y = Add (c, k)"), weights, "its constant is not one number for each channel"
    )


def stays(text: str, weights: dict[str, np.ndarray], why: str | None, opset: int = 20) -> None:
    model, context = parse(text, weights=weights, opset=opset), Context()
    assert FoldIntoConv().rewrite(model, context) == 0
    assert [miss.why for miss in context.misses] == ([why] if why else [])


@pytest.mark.parametrize("shape", [(6,), (8, 8), (6, 8, 1), (2, 6, 1, 1), (1, 1, 6, 1, 1)], ids=str)
def test_constants_that_differ_by_position_stay(shape: tuple[int, ...]) -> None:
    text = image("c = Conv <pads = [1, 1, 1, 1]> (x, w)  y = Add (c, k)").replace("8, 8", "6, 6")
    why = "its constant is not one number for each channel"
    stays(
        text.replace("N, C, H2, W2", ""),
        arrays(w=(6, 4, 3, 3), k=tuple(6 if n == 8 else n for n in shape)),
        why,
    )


def test_results_that_are_needed_stay() -> None:
    weights = arrays(w=(6, 4, 3, 3), k=(6, 1, 1))
    text = image("c = Conv (x, w)  a = Add (c, k)  r = Relu (c)  y = Add (a, r)")
    stays(text, weights, "the Conv inside is used elsewhere too")


def test_weights_that_are_inputs_or_quantised_stay() -> None:
    text = image("c = Conv (x, w)  y = Add (c, k)").replace(") =>", ", float[6, 4, 3, 3] w) =>")
    stays(text, arrays(k=(6, 1, 1)), "the weights of the Conv are not constant")
    text = image("w = DequantizeLinear (q, s)  c = Conv (x, w)  y = Mul (c, k)")
    weights = arrays(k=(6, 1, 1), s=()) | {"q": np.ones((6, 4, 3, 3), np.int8)}
    stays(text, weights, "the weights of the Conv are not constant")


def test_half_precision_stays() -> None:
    text = image("c = Conv (x, w)  y = Mul (c, k)").replace("float", "float16")
    weights = {name: array.astype(np.float16) for name, array in arrays(w=(6, 4, 3, 3), k=(6, 1, 1)).items()}
    stays(text, weights, "its weights are not float32, and folding would round them once more")


def test_a_large_weight_is_not_there_twice() -> None:
    text = rows("c = MatMul (x, w)  a = Mul (c, k)  d = MatMul (x, w)  y = Add (a, d)")
    weights = arrays(w=(3, 10000), k=())
    stays(text, weights, "its weight is used elsewhere too, and would be there twice")


def test_what_overflows_stays() -> None:
    weights = arrays(w=(6, 4, 3, 3)) | {"k": np.full((), 1e-39, np.float32)}
    stays(image("c = Conv (x, w)  y = Div (c, k)"), weights, "the constants do not fit each other")


PADS = {"p": np.array([0, 0, 1, 2, 0, 0, 0, 1]), "zero": np.zeros((), np.float32), "ax": np.array([-1, 2]),
        "q": np.array([1, 0, 2, 1]), "low": np.array(-np.inf, np.float32), "one": np.ones((), np.float32),
        "channels": np.array([0, 1, 1, 1, 0, 0, 1, 1]),
        "cut": np.array([0, 0, -1, 0, 0, 0, 0, 0])}  # fmt: skip


def padded(text: str) -> dict[str, np.ndarray]:
    words = text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    return {k: v for k, v in PADS.items() if k in words} | (
        {"w": arrays(w=(6, 4, 3, 3))["w"]} if "w" in words else {}
    )


@pytest.mark.parametrize(
    "nodes",
    [
        "p1 = Pad (x, p)  y = Conv (p1, w)",
        "p1 = Pad (x, p, zero)  y = Conv <pads = [1, 0, 1, 3], strides = [2, 1]> (p1, w)",
        "p1 = Pad (x, q, , ax)  y = Conv <auto_pad = \"VALID\", dilations = [2, 1]> (p1, w)",
        "p1 = Pad (x, p)  y = AveragePool <kernel_shape = [3, 3]> (p1)",
        "p1 = Pad (x, p)  y = AveragePool <kernel_shape=[3, 4], pads=[1, 1, 1, 1], count_include_pad=1> (p1)",
        "r = Relu (x)  p1 = Pad (r, p)  y = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (p1)",
        "p1 = Pad (x, p, low)  y = MaxPool <kernel_shape = [3, 3]> (p1)",
    ],
)  # fmt: skip
def test_padding(nodes: str) -> None:
    model = check_pass(FoldIntoConv(), image(nodes), count=1, weights=padded(nodes))
    assert "Pad" not in {node.op_type for node in model.graph}


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ("p1 = Pad (x, p, one)  y = Conv (p1, w)", "it does not pad with 0"),
        ("p1 = Pad <mode = \"reflect\"> (x, p)  y = Conv (p1, w)", "it does not pad with a constant"),
        ("p1 = Pad (x, channels)  y = Conv (p1, w)",
         "it pads other axes than those of the image, or by a computed amount"),
        ("p1 = Pad (x, cut)  y = Conv (p1, w)",
         "it pads other axes than those of the image, or by a computed amount"),
        ("p1 = Pad (x, p)  y = Conv <auto_pad = \"SAME_UPPER\"> (p1, w)",
         "the Conv behind it does not say by how much it pads"),
        ("p1 = Pad (x, p)  y = AveragePool <kernel_shape = [2, 2]> (p1)",
         "a pool cannot pad by as much as its window"),
        ("p1 = Pad (x, p)  y = AveragePool <kernel_shape = [4, 4], pads = [1, 1, 1, 1]> (p1)",
         "the pool pads too, and does not count that"),
        ("p1 = Pad (x, p)  y = AveragePool <kernel_shape = [3, 3], ceil_mode = 1> (p1)",
         "windows that go over the edge count their elements otherwise"),
        ("p1 = Pad (x, p)  y = MaxPool <kernel_shape = [3, 3]> (p1)",
         "a maximum with the padding is not one without, unless nothing is less than 0"),
        ("p1 = Pad (x, p, low) m, i = MaxPool <kernel_shape=[3, 3]> (p1) j = Cast <to=1> (i)  y = Add (m, j)",
         "the places of the maxima are used"),
        ("p1 = Pad (x, p)  c = Conv (p1, w)  r = ReduceMax (p1)  y = Add (c, r)",
         "the Pad inside is used elsewhere too"),
    ],
)  # fmt: skip
def test_padding_that_stays(nodes: str, why: str) -> None:
    channels = 3 if "channels" in nodes else 4
    weights = padded(nodes) | ({"w": arrays(w=(6, 5, 3, 3))["w"]} if channels == 3 else {})
    stays(image(nodes, channels), weights, why)


SCALED = {
    "a row": "m = MatMul (x, w)  a = Add (m, b)  y = Mul (a, c)",
    "a row first": "m = MatMul (x, w)  a = Add (b, m)  y = Mul (c, a)",
    "a number": "m = MatMul (x, w)  a = Add (m, b)  y = Div (a, s)",
    "of a bias that is a number": "m = MatMul (x, w)  a = Add (m, s)  y = Mul (a, c)",
}
LAYER = {
    "w": np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6), "b": np.linspace(1, 2, 6, dtype=np.float32),
    "c": np.linspace(-0.5, 0.5, 6, dtype=np.float32), "s": np.float32(0.7),
    "c3": np.ones((1, 1, 6), np.float32), "z": np.zeros(6, np.float32),
}  # fmt: skip


def _of(nodes: str) -> dict[str, np.ndarray]:
    words = nodes.replace(",", " ").replace("(", " ").replace(")", " ").split()
    return {name: array for name, array in LAYER.items() if name in words}


@pytest.mark.parametrize("nodes", SCALED.values(), ids=SCALED)
def test_a_layers_scale_goes_into_weight_and_bias(nodes: str) -> None:
    text = f"g (float[N, M, 4] x) => (float[N, M, 6] y) {{ {nodes} }}"
    check_pass(FoldIntoConv(), text, ["MatMul", "Add"], count=1, weights=_of(nodes))


@pytest.mark.parametrize(
    "nodes",
    [
        "m = MatMul (x, w)  a = Add (m, b)  y = Mul (a, c3)",
        "m = MatMul (x, w)  a = Add (m, b)  y = Div (a, z)",
        "m = MatMul (x, w)  a = Add (m, b)  y = Div (c, a)",
        "m = MatMul (x, w)  a = Add (m, c3)  y = Mul (a, c)",
        "m = MatMul (x, w)  a = Add (m, b)  r = Relu (a)  y = Mul (r, a)",
    ],
)
def test_a_scale_that_does_not_fit_stays(nodes: str) -> None:
    text = f"g (float[N, M, 4] x) => (float[N, M, 6] y) {{ {nodes} }}"
    check_pass(FoldIntoConv(), text, count=0, weights=_of(nodes))


def test_a_scale_of_what_is_used_elsewhere_stays() -> None:
    nodes = "m = MatMul (x, w)  a = Add (m, b)  y = Mul (a, c)  z2 = Neg (a)"
    text = f"g (float[N, M, 4] x) => (float[N, M, 6] y, float[N, M, 6] z2) {{ {nodes} }}"
    check_pass(FoldIntoConv(), text, count=0, weights=_of(nodes))
