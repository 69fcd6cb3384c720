import numpy as np
import onnx_ir as ir
import pytest

from burnish.model import copy_model, to_bytes
from burnish.passes.base import Context, constant_of
from burnish.passes.cleanup.fold_constants import FoldConstants
from burnish.testing import check_pass, parse, text_of

W = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_a_chain_of_constants_becomes_one_initializer() -> None:
    model = check_pass(
        FoldConstants(),
        before="""
            g (float[N, 2] x) => (float[N, 2] y) {
                t = Transpose <perm = [1, 0]> (w)
                two = Constant <value_float = 2.0> ()
                half = Sqrt (two)
                s = Mul (t, half)
                m = MatMul (x, w)
                y = MatMul (m, s)
            }
        """,
        weights={"w": W},
        after="m = MatMul (x, w)\ny = MatMul (m, s)",
        count=4,
    )
    np.testing.assert_array_equal(constant_of(model.graph.initializers["s"]), W.T * np.sqrt(np.float32(2)))


def test_what_depends_on_an_input_stays() -> None:
    check_pass(
        FoldConstants(),
        before="g (float[N, 2] x, float[2, 3] d) => (float[N, 3] y) { t = Neg (d)  y = MatMul (x, t) }",
        weights={"d": W},  # an input with a default: a caller may give another
        count=0,
    )


def test_growth_is_bounded() -> None:
    text = """
        g (float[N, 200] x) => (float[N, 200] y) {
            big = Expand (one, shape)
            y = Add (x, big)
        }
    """
    weights = {"one": np.ones((1, 1), np.float32), "shape": np.array([1, 200])}
    check_pass(FoldConstants(max_bytes=100), text, weights=weights, count=0)
    check_pass(FoldConstants(max_bytes=1000), text, weights=weights, after="y = Add (x, big)", count=1)


def test_a_bomb_is_neither_folded_nor_computed() -> None:
    model = parse(
        """
        g (float[N] x) => (float[A] y) {
            b = Expand (one, shape)  s = ReduceSum <keepdims = 0> (b)  y = Add (x, s)
        }
        """,
        weights={"one": np.ones((1, 1), np.float32), "shape": np.array([2**32, 2**20])},
    )
    context = Context()
    assert FoldConstants().rewrite(model, context) == 0
    assert "max_bytes" in context.misses[0].why


def test_what_a_fold_frees_counts() -> None:
    text = (
        "g (float[N, 300] x) => (float[N, 300] y) { t = Transpose (w)  a = MatMul (x, t)  y = MatMul (a, u) }"
    )
    square = np.eye(300, dtype=np.float32)
    check_pass(FoldConstants(max_bytes=0), text, weights={"w": square, "u": 2 * square}, count=1)
    shared = text.replace("u)", "w)")  # the table is needed as it is, too
    check_pass(FoldConstants(max_bytes=0), shared, weights={"w": square}, count=0)


def test_products_of_large_constants_may_add_more() -> None:
    """A table of positions that each layer of DeBERTa projects, by weights that it uses elsewhere too."""
    text = """g (float[N, 64] x, float[N, 1024] u, float[N, 300] v) => (float[N, 300] y, float[N, 64] z) {
        p = MatMul (table, w)  k = Transpose <perm = [1, 0]> (p)  y = MatMul (x, k)
        r = MatMul (v, table)  s = Add (r, u)  z = MatMul (s, w)
    }"""
    random = np.random.default_rng(0)
    shapes = {"table": (300, 1024), "w": (1024, 64)}
    weights = {name: random.standard_normal(shape).astype(np.float32) / 32 for name, shape in shapes.items()}
    left = ["MatMul", "MatMul", "Add", "MatMul"]
    check_pass(FoldConstants(), text, weights=weights, after=left, count=2)
    context = Context()
    check_pass(FoldConstants(max_product_bytes=0), text, weights=weights, count=0, context=context)
    assert context.misses[0].why == "folding adds 76800 bytes, more than max_product_bytes=65536"


def test_a_large_constant_is_normalised() -> None:
    text = (
        "g (float[N, 300] x) => (float[N, 1024] y) { t = LayerNormalization (table, g)  y = MatMul (x, t) }"
    )
    weights = {"table": np.eye(300, 1024, dtype=np.float32), "g": np.ones(1024, np.float32)}
    check_pass(FoldConstants(), text, weights=weights, after=["MatMul"], count=1)


def test_a_product_that_is_larger_than_its_factors_stays() -> None:
    text = "g (float[N, 300] x) => (float[N, 300] y) { p = MatMul (a, b)  y = MatMul (x, p) }"
    weights = {"a": np.ones((300, 1), np.float32), "b": np.ones((1, 300), np.float32)}
    context = Context()
    check_pass(FoldConstants(), text, weights=weights, count=0, context=context)
    assert "more than max_bytes=65536" in context.misses[0].why


def test_the_norm_of_a_large_weight_is_folded() -> None:
    """The weight normalisation of wav2vec2's positional convolution."""
    text = """g (float[N, 600] x) => (float[N, 600] y) {
        n = ReduceL2 (v)  d = Div (g, n)  w = Mul (v, d)  y = MatMul (x, w)
    }"""
    weights = {"v": np.ones((600, 600), np.float32), "g": np.ones((1, 1), np.float32)}
    check_pass(FoldConstants(), text, weights=weights, after=["MatMul"], count=3)


def test_quantize_and_dequantize_stay() -> None:
    model = parse(
        """
        g (float[N, 3] x) => (float[N, 3] y) {
            q = QuantizeLinear (w, scale, zero)
            d = DequantizeLinear (q, scale, zero)
            y = Add (x, d)
        }
        """,
        weights={"w": W[:1], "scale": np.float32(0.1), "zero": np.int8(0)},
    )
    assert FoldConstants().rewrite(model, Context()) == 0


@pytest.mark.parametrize("op", ["RandomNormalLike", "RandomUniformLike", "Bernoulli"])
def test_random_operators_stay(op: str) -> None:
    model = parse(
        f"g (float[2, 3] x) => (float[2, 3] y) {{ r = {op} (w)  y = Add (x, r) }}", weights={"w": W}
    )
    assert FoldConstants().rewrite(model, Context()) == 0


def test_half_precision_is_moved_but_not_computed() -> None:
    text = """
        g (float16[N, 2] x) => (float16[N, 2] y) {
            t = Transpose (w)
            n = Mul (t, t)
            a = MatMul (x, w)
            y = MatMul (a, n)
        }
    """
    check_pass(FoldConstants(), text, weights={"w": W.astype(np.float16)}, count=1)


def test_a_folded_output_becomes_a_constant_node() -> None:
    check_pass(
        FoldConstants(),
        before="g (float[N] x) => (float[N] y, float[2, 3] z) { y = Relu (x)  z = Neg (w) }",
        weights={"w": W},
        after=["Relu", "Constant"],
        count=1,
    )


def test_inside_a_branch() -> None:
    model = check_pass(
        FoldConstants(),
        before="""
            g (bool c, float[N, 3] x) => (float[N, 3] y) {
                y = If (c) <
                    then_branch = t () => (float[N, 3] p) {
                        k = Constant <value_float = 3.0> ()  n = Neg (k)  p = Add (x, n)
                    },
                    else_branch = e () => (float[N, 3] q) { q = Neg (x) }
                >
            }
        """,
        count=2,
    )
    assert [node.op_type for node in model.graph.all_nodes()] == ["If", "Add", "Neg"]


def test_constants_of_functions_stay_nodes() -> None:
    model = check_pass(
        FoldConstants(),
        before="""
            <ir_version: 10, opset_import: ["": 20, "local": 1]>
            g (float[N] x) => (float[N] y) { y = local.f (x) }
            <domain: "local", opset_import: ["": 20]>
            f (x) => (y) { k = Constant <value_float = 3.0> ()  n = Neg (k)  y = Add (x, n) }
        """,
        count=1,
    )
    assert [[node.op_type for node in f] for f in model.functions.values()] == [["Constant", "Add"]]


def test_a_templated_constant_stays() -> None:
    check_pass(
        FoldConstants(),
        before="""
            <ir_version: 10, opset_import: ["": 20, "local": 1]>
            g (float[N] x) => (float[N] y) { y = local.f <k = 2.0> (x) }
            <domain: "local", opset_import: ["": 20]>
            f <k> (x) => (y) { c = Constant <value_float: float = @k> ()  n = Neg (c)  y = Add (x, n) }
        """,
        count=0,
    )


def test_before_ir_4_constants_are_nodes() -> None:
    text = """
        <ir_version: 3, opset_import: ["": 8]>
        g (float[N] x) => (float[N] y) {
            k = Constant <value: tensor = float[1] {3.0}> ()  n = Neg (k)  y = Add (x, n)
        }
    """
    check_pass(FoldConstants(), text, after=["Constant", "Add"], count=1)


def test_cast_like_of_known_dtype() -> None:
    check_pass(
        FoldConstants(),
        before="""
            g (float[N] x, int64[N] i) => (float[N] y, int64[N] z) {
                k = CastLike (two, i)
                z = Mul (i, k)
                a = CastLike (x, x)
                b = CastLike (i, a)
                y = Add (a, b)
            }
        """,
        weights={"two": np.float32(2)},
        after="z = Mul (i, k)\nb = Cast <to: int = 1> (i)\ny = Add (x, b)",
        count=4,
    )


def test_cast_like_of_an_unknown_dtype_stays() -> None:
    check_pass(
        FoldConstants(),
        before="""
            <ir_version: 10, opset_import: ["": 20, "local": 1]>
            g (float[N] x) => (float[N] y) { y = local.f (x) }
            <domain: "local", opset_import: ["": 20]>
            f (x) => (y) { k = Constant <value_float = 3.0> ()  c = CastLike (k, x)  y = Add (x, c) }
        """,
        count=0,
    )


def test_a_constant_if_becomes_its_branch() -> None:
    check_pass(
        FoldConstants(),
        before="""
            g (float[N] x) => (float[N] y)
            <bool yes = {1}>
            {
                a = If (yes) <
                    then_branch = t () => (float[N] p) <float[1] w = {2.0}> { n = Neg (x)  p = Mul (n, w) },
                    else_branch = e () => (float[N] q) { q = Relu (x) }
                >
                y = Abs (a)
            }
        """,
        after="n = Neg (x)\np = Mul (n, w)\ny = Abs (p)",
        count=1,
    )


def test_an_inlined_branch_does_not_clash_with_names_of_other_graphs() -> None:
    model = check_pass(
        FoldConstants(),
        before="""
            g (float[N] x, bool c) => (float[N] y, float[N] z)
            <bool no = {0}>
            {
                y = If (no) <
                    then_branch = t () => (float[N] p) { p = Neg (x) },
                    else_branch = e () => (float[N] q) <float[1] w = {2.0}> { n = Neg (x)  q = Mul (n, w) }
                >
                z = If (c) <
                    then_branch = t2 () => (float[N] p2) <float[1] w = {3.0}> {
                        n = Abs (x)  p2 = Mul (n, w)
                    },
                    else_branch = e2 () => (float[N] q2) { q2 = Relu (x) }
                >
            }
        """,
        count=1,
    )
    names = [value.name for node in model.graph.all_nodes() for value in node.outputs]
    assert len(names) == len(set(names))


def test_a_constant_if_in_a_function() -> None:
    model = check_pass(
        FoldConstants(),
        before="""
            <ir_version: 10, opset_import: ["": 20, "local": 1]>
            g (float[N] x) => (float[N] y) { y = local.f (x) }
            <domain: "local", opset_import: ["": 20]>
            f (x) => (y) {
                yes = Constant <value = bool {1}> ()
                y = If (yes) <
                    then_branch = t () => (p) <float[1] w = {2.0}> { p = Mul (x, w) },
                    else_branch = e () => (q) { q = Relu (x) }
                >
            }
        """,
        count=1,
    )
    assert [[node.op_type for node in f] for f in model.functions.values()] == [["Constant", "Mul"]]


def test_empty_tensors_and_missing_shapes() -> None:
    text = "g (float[N] x) => (float[M] y) { e = Neg (w)  c = Concat <axis = 0> (x, e)  y = Relu (c) }"
    model = parse(text, weights={"w": np.zeros(0, np.float32)})
    for value in (model.graph.node(0).outputs[0], model.graph.node(1).outputs[0]):
        value.shape = None
    check_pass(FoldConstants(), model, after="c = Concat <axis: int = 0> (x, e)\ny = Relu (c)", count=1)


def test_the_source_of_a_copy_is_untouched() -> None:
    model = parse("g (float[N, 2] x) => (float[N, 3] y) { n = Neg (w)  y = MatMul (x, n) }", weights={"w": W})
    before, text = to_bytes(model), text_of(model)
    copy = copy_model(model)
    FoldConstants().rewrite(copy, Context())
    assert to_bytes(model) == before
    assert text_of(model) == text
    assert isinstance(copy, ir.Model)


def test_parts_of_a_weight_are_cut_now_when_all_of_it_is() -> None:
    weights = {"w": np.arange(60000, dtype=np.float32).reshape(4, 15000), "k0": np.array([0]),
               "k2": np.array([2]), "k4": np.array([4])}  # fmt: skip
    body = "a = Slice (w, k0, k2, k0)  b = Slice (w, k2, k4, k0)  c = Concat <axis = 0> (b, a)"
    text = f"g (float[4, 15000] x) => (float[4, 15000] y) {{ {body}  y = Add (x, c) }}"
    model = check_pass(FoldConstants(), text, "y = Add (x, c)", count=3, weights=weights)
    assert "c" in model.graph.initializers
    text = f"g (float[4, 15000] x) => (float[4, 15000] y) {{ {body}  d = Add (w, x)  y = Add (d, c) }}"
    kept = check_pass(FoldConstants(), text, count=0, weights=weights)
    assert [node.op_type for node in kept.graph] == ["Slice", "Slice", "Concat", "Add", "Add"]


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax <axis = 0>"])
def test_an_old_softmax_takes_all_axes_from_one_on_and_is_not_evaluated(op: str) -> None:
    text = f"g (float[N, 4] x) => (float[2, N, 4] y) {{ s = {op} (w)  y = Add (x, s) }}"
    weights = {"w": np.arange(24, dtype=np.float32).reshape(2, 3, 4)}
    text = text.replace("N", "3")
    check_pass(FoldConstants(), text, count=0, weights=weights, opset=11)
    check_pass(FoldConstants(), text, "y = Add (x, s)", count=1, weights=weights, opset=13)


@pytest.mark.parametrize(
    ("op", "numbers"),
    [
        ("Unique <sorted = 0>", [3, 1, 3]),
        ("ReduceMax <keepdims = 0>", [1, np.nan, 3]),
        ("ReduceMin <keepdims = 0>", []),
        ("ReduceMean <keepdims = 0>", []),
    ],
)
def test_what_implementations_disagree_about_is_not_evaluated(op: str, numbers: list[float]) -> None:
    text = f"g (float[1] x) => (float[M] y) {{ s = {op} (w)  y = Add (x, s) }}"
    model = parse(text, weights={"w": np.array(numbers, np.float32)})
    assert FoldConstants().rewrite(model, Context()) == 0
