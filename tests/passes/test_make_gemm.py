import numpy as np
import pytest

from burnish.passes.base import Context
from burnish.passes.fusion.make_gemm import MakeGemm
from burnish.testing import check_pass, parse


def arrays(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def rows(nodes: str, x: str = "float[N, 3] x", y: str = "float[N, 5] y") -> str:
    return f"g ({x}) => ({y}) {{ {nodes} }}"


@pytest.mark.parametrize("bias", [(5,), (1, 5), (1,), ()], ids=str)
@pytest.mark.parametrize("order", ["a, b", "b, a"])
def test_a_product_and_a_bias(order: str, bias: tuple[int, ...]) -> None:
    text = rows(f"a = MatMul (x, w)  y = Add ({order})")
    check_pass(MakeGemm(), text, "y = Gemm (x, w, b)", count=1, weights=arrays(w=(3, 5), b=bias))


def test_what_is_added_may_be_computed() -> None:
    text = rows("a = MatMul (x, w)  c = MatMul (x, v)  d = Relu (c)  y = Add (d, a)")
    check_pass(MakeGemm(), text, ["MatMul", "Relu", "Gemm"], count=1, weights=arrays(w=(3, 5), v=(3, 5)))


def test_two_products() -> None:
    text = rows("a = MatMul (x, w)  b = MatMul (x, v)  y = Add (a, b)")
    check_pass(MakeGemm(), text, ["MatMul", "Gemm"], count=1, weights=arrays(w=(3, 5), v=(3, 5)))


def test_transposes_go_into_it() -> None:
    text = rows("t = Transpose (x)  u = Transpose <perm = [1, 0]> (z)  y = MatMul (t, u)",
                x="float[3, N] x, float[M, 3] z", y="float[N, M] y")  # fmt: skip
    check_pass(MakeGemm(), text, "y = Gemm <transA: int = 1, transB: int = 1> (x, z)", count=1)


def test_a_transpose_and_a_bias() -> None:
    text = rows("t = Transpose (x)  a = MatMul (t, w)  y = Add (a, b)", x="float[3, N] x")
    check_pass(
        MakeGemm(), text, "y = Gemm <transA: int = 1> (x, w, b)", count=2, weights=arrays(w=(3, 5), b=(5,))
    )


STAYS = [
    ("a = MatMul (x, w)  y = Add (a, b)", "float[N, 2, 3] x", {"w": (3, 5), "b": (5,)}, None),
    ("a = MatMul (x, w)  y = Add (a, b)", "float[N, 3] x", {"w": (3, 1), "b": (5,)},
     "what is added is not proved to have the shape of the product, or one that spreads to it"),
    ("a = MatMul (x, w)  y = Add (a, b)", "float[N, 3] x", {"w": (3, 5), "b": (2, 1, 5)},
     "what is added is not proved to have the shape of the product, or one that spreads to it"),
    ("a = MatMul (x, w)  y = Add (a, b)", "float[N, 3] x, float[M, 5] b", {"w": (3, 5)},
     "what is added is not proved to have the shape of the product, or one that spreads to it"),
    ("a = MatMul (x, w)  c = Add (a, b)  y = Mul (a, c)", "float[N, 3] x", {"w": (3, 5), "b": (5,)},
     "the product is used elsewhere too"),
    ("a = MatMul (x, w)  y = Add (a, a)", "float[N, 3] x", {"w": (3, 5)},
     "the product is used elsewhere too"),
    ("t = Transpose (x)  a = MatMul (x, t)  b = MatMul (t, x)  y = MatMul (a, b)", "float[3, 3] x", {}, None),
    ("t = Transpose <perm = [0, 1]> (x)  y = MatMul (t, w)", "float[N, 3] x", {"w": (3, 5)}, None),
    ("t = Transpose (x)  y = MatMul (t, t)", "float[3, 3] x", {}, None),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "x", "weights", "why"), STAYS)
def test_stays(nodes: str, x: str, weights: dict[str, tuple[int, ...]], why: str | None) -> None:
    context = Context()
    model = parse(rows(nodes, x, "y"), weights=arrays(**weights))
    assert MakeGemm().rewrite(model, context) == 0
    assert [miss.why for miss in context.misses] == ([why] if why else [])


@pytest.mark.parametrize("dtype", ["int32", "float16", "double"])
def test_dtypes(dtype: str) -> None:
    text = rows("a = MatMul (x, w)  y = Add (a, b)").replace("float", dtype)
    numpy = np.dtype({"double": "float64"}.get(dtype, dtype))
    weights = {name: array.astype(numpy) for name, array in arrays(w=(3, 5), b=(5,)).items()}
    made = MakeGemm().rewrite(parse(text, weights=weights), Context())
    assert made == (1 if dtype == "double" else 0)


def test_old_opsets_need_a_third_input() -> None:
    weights = arrays(w=(3, 5), b=(5,))
    text = rows("a = MatMul (x, w)  y = Add (a, b)")
    check_pass(MakeGemm(), text, ["MatMul", "Add"], count=0, weights=weights, opset=10)


def test_the_beta_of_a_gemm_that_adds_nothing_does_not_scale_the_bias() -> None:
    text = rows("a = Gemm <alpha = 2.0, beta = 0.5> (x, w)  y = Add (a, b)")
    after = "y = Gemm <alpha: float = 2> (x, w, b)"
    check_pass(MakeGemm(), text, after, count=1, weights=arrays(w=(3, 5), b=(5,)))
