import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from burnish.passes.base import Context
from burnish.passes.dims import Dim, product
from burnish.passes.shapes import Fact, Shapes
from burnish.testing import parse

B, S = Dim.named("batch"), Dim.named("sequence")


def facts(text: str, **options: object) -> dict[str | None, Fact]:
    model = parse(text, **options)  # type: ignore[arg-type]
    shapes = Shapes(model)
    return {value.name: shapes[value] for node in model.graph.all_nodes() for value in node.outputs}


def spelt(dims: tuple[Dim, ...] | None) -> str:
    return "?" if dims is None else ",".join(map(str, dims))


def shape_of(expression: str, *, inputs: str = "float[batch, sequence, 8] x", **options: object) -> str:
    return spelt(facts(f"g ({inputs}) => (z) {{ y = {expression} z = Identity (y) }}", **options)["y"].shape)


@pytest.mark.parametrize(
    ("expression", "inputs", "shape"),
    [
        ("MultiHeadAttention <num_heads = 2> (x, k, k)", "float[b, t, 12] k", "batch,sequence,12"),
        ("MultiHeadAttention <num_heads = 2> (x, k, k)", "float[b, 2, t, 6] k", "batch,sequence,12"),
        ("MultiHeadAttention <num_heads = 2> (k)", "float[b, t, 2, 3, 4] k", "?"),
        (
            "GroupQueryAttention <num_heads = 2, kv_num_heads = 1> (x, k, k, , , l, n)",
            "float[b, t, 4] k, int32[b] l, int32[1] n", "batch,sequence,8",
        ),
        ("Attention <num_heads = 2> (x, w, k)", "float[8, 36] w, float[36] k", "batch,sequence,12"),
        ("Attention <num_heads = 2, qkv_hidden_sizes = [8, 8, 6]> (x, w, k)", "float[8, 22] w, float[22] k",
         "batch,sequence,6"),
        ("Attention <num_heads = 2> (x, w, k)", "float[8, 35] w, float[35] k", "?"),
        ("Attention <num_heads = 2> (w, w, k)", "float[8, 36] w, float[36] k", "?"),
    ],
)  # fmt: skip
def test_shapes_of_onnxruntimes_attentions(expression: str, inputs: str, shape: str) -> None:
    given = f"float[batch, sequence, 8] x, {inputs}"
    assert shape_of(f"com.microsoft.{expression}", inputs=given) == shape


@pytest.mark.parametrize("op_type", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
def test_the_sum_of_a_skip_norm_has_its_shape(op_type: str) -> None:
    found = facts(
        f"""g (float[batch, sequence, 8] x, float[8] scale) => (y, sum) {{
            y, mean, deviation, sum = com.microsoft.{op_type} (x, x, scale)
        }}"""
    )
    assert [spelt(found[name].shape) for name in ("y", "mean", "sum")] == [
        "batch,sequence,8", "?", "batch,sequence,8",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("expression", "inputs", "shape"),
    [
        ("MatMulNBits <K = 8, N = 5, bits = 4, block_size = 16> (x, w, s)", "uint8[5, 1, 8] w",
         "batch,sequence,5"),
        ("GatherBlockQuantized <bits = 4, block_size = 16, gather_axis = 0, quantize_axis = 2> (w, ids, s)",
         "uint8[90, 2, 8] w, int64[batch, t] ids", "batch,t,2,16"),
        ("GatherBlockQuantized <bits = 8, block_size = 16, gather_axis = 0, quantize_axis = 1> (w, ids, s)",
         "uint8[90, 32] w, int64[batch, t] ids", "batch,t,32"),
        ("GatherBlockQuantized <block_size = 16, gather_axis = 1, quantize_axis = 2> (w, ids, s)",
         "int4[3, 90, 32] w, int64[t] ids", "3,t,32"),
        ("GatherBlockQuantized (w, ids, s)", "uint8[90, n] w, int64[t] ids", "?"),
    ],
)  # fmt: skip
def test_shapes_of_weights_in_blocks(expression: str, inputs: str, shape: str) -> None:
    given = f"float[batch, sequence, 8] x, float[90, 2, 1] s, {inputs}"
    assert shape_of(f"com.microsoft.{expression}", inputs=given) == shape


def test_dims_are_polynomials() -> None:
    assert B * S == S * B
    assert (B + S) * Dim.of(2) - S == B * Dim.of(2) + S
    assert (Dim.of(4) * B * Dim.of(8)).divided_by(B) == Dim.of(32)
    assert (B + S).divided_by(B) is None
    assert (B * B).divided_by(B) == B
    assert Dim.of(7).divided_by(Dim.of(2)) is None
    assert (B - B).size == 0
    assert product([B, Dim.of(3), S]).size is None
    assert str(B * S + Dim.of(1)) == "1+batch*sequence"


def test_what_is_known_of_a_size_that_is_not_negative() -> None:
    assert B.minimum == 0
    assert (B + Dim.of(1)).is_at_least(1)
    assert not (B - Dim.of(1)).is_at_least(0)
    assert (B - S).minimum is None
    assert B.name == "batch"
    assert (B * Dim.of(2)).name is None


@pytest.mark.parametrize(
    ("expression", "shape"),
    [
        ("Relu (x)", "batch,sequence,8"),
        ("Transpose <perm = [2, 0, 1]> (x)", "8,batch,sequence"),
        ("Flatten (x)", "batch,8*sequence"),
        ("Concat <axis = 1> (x, x)", "batch,2*sequence,8"),
        ("ReduceSum <keepdims = 0> (x, axes)", "batch,sequence"),
        ("ReduceSum (x, axes)", "batch,sequence,1"),
        ("Unsqueeze (x, axes)", "batch,sequence,8,1"),
        ("Squeeze (x)", "?"),
        ("Reshape (x, heads)", "batch,sequence,2,4"),
        ("Reshape (x, rows)", "batch*sequence,8"),
        ("Slice (x, start, end)", "min(1,batch),sequence,8"),
        ("Gather <axis = 2> (x, index)", "batch,sequence,2,1"),
        ("MatMul (x, w)", "batch,sequence,5"),
        ("Add (x, bias)", "batch,sequence,8"),
        ("Tile (x, times)", "batch,3*sequence,8"),
        ("Pad (x, pads)", "batch,sequence,10"),
        ("Softmax (x)", "batch,sequence,8"),
        ("Size (x)", ""),
        ("Split <axis = 2, num_outputs = 1> (x)", "batch,sequence,8"),
    ],
)
def test_shapes(expression: str, shape: str) -> None:
    weights = {
        "axes": np.array([-1]),
        "heads": np.array([0, 0, 2, -1]),
        "rows": np.array([-1, 8]),
        "start": np.array([0]),
        "end": np.array([1]),
        "index": np.array([[0], [1]]),
        "w": np.zeros((8, 5), np.float32),
        "bias": np.zeros((1, 8), np.float32),
        "times": np.array([1, 3, 1]),
        "pads": np.array([0, 0, 1, 0, 0, 1]),
    }
    used = {
        name: array
        for name, array in weights.items()
        if f" {name})" in expression or f" {name}," in expression
    }
    assert shape_of(expression, weights=used) == shape


def test_contents_of_shape_arithmetic() -> None:
    found = facts(
        """
        g (float[batch, sequence, 8] x) => (int64[4] z)
        <int64 one = {1}, int64[1] first = {0}, int64[1] two = {2}, int64[2] tail = {2, -1}>
        {
            s = Shape (x)
            b = Slice (s, first, one1)
            n = Gather (s, one)
            m = Mul (n, one)
            r = ReduceProd (s)
            h = Unsqueeze (m, first)
            last = Shape <start = 2> (x)
            d = Div (last, two)
            c = Concat <axis = 0> (b, h, tail)
            z = Identity (c)
        }
        """,
        weights={"one1": np.array([1])},
    )
    assert spelt(found["c"].content) == "batch,sequence,2,-1"
    assert spelt(found["r"].content) == "8*batch*sequence"
    assert found["d"].ints == (4,)
    assert found["n"].rank == 0


def test_where_and_equal_as_old_exporters_write_expand() -> None:
    found = facts(
        """
        g (float[batch, 4] x) => (int64[2] z)
        <int64[2] wanted = {-1, 4}, int64[1] minus = {-1}>
        {
            s = Shape (x)
            e = Equal (wanted, minus)
            w = Where (e, s, wanted)
            f = Equal (s, minus)
            z = Where (f, wanted, w)
        }
        """
    )
    assert spelt(found["w"].content) == "batch,4"
    assert found["f"].ints == (0, 0)  # no size is -1
    assert spelt(found["z"].content) == "batch,4"


def test_positions_that_are_cut_to_the_sequence_broadcast_with_it() -> None:
    found = facts(
        """
        g (float[batch, sequence, 8] x) => (float[batch, sequence, 8] z) {
            n = Shape <start = 1, end = 2> (x)
            p = Slice (table, start, n, axis)
            z = Add (x, p)
        }
        """,
        weights={"table": np.zeros((1, 512, 8), np.float32), "start": np.array([0]), "axis": np.array([1])},
    )
    assert spelt(found["p"].shape) == "1,min(512,sequence),8"
    assert spelt(found["z"].shape) == "batch,sequence,8"


def test_sums_cancel_as_a_whole() -> None:
    """Keys of past and present positions: the -1 of [-1, past + sequence, 16] is 4 * batch."""
    found = facts(
        """
        g (float[batch, 4, past, 16] p, float[batch, 4, sequence, 16] q) => (float[A, B, C] z)
        <int64[1] minus = {-1}, int64[1] last = {16}>
        {
            k = Concat <axis = 2> (p, q)
            n = Shape <start = 2, end = 3> (k)
            t = Concat <axis = 0> (minus, n, last)
            z = Reshape (k, t)
        }
        """
    )
    assert spelt(found["z"].shape) == "4*batch,past+sequence,16"


def test_two_names_may_be_one_and_another() -> None:
    assert shape_of("Add (a, b)", inputs="float[m, 3] a, float[n, 3] b") == "?0,3"
    assert shape_of("Add (a, b)", inputs="float[m, 3] a, float[2, 3] b") == "2,3"
    assert shape_of("Add (a, b)", inputs="float[m, 3] a, float[m, 1] b") == "m,3"


def test_both_branches_must_agree() -> None:
    text = """
        g (bool c, float[batch, 4] x) => (float[D, E] z) {{
            y = If (c) <
                then_branch = t () => (float[D, E] p) {{ p = Neg (x) }},
                else_branch = e () => (float[D, E] q) {{ q = {other} (x) }}
            >
            z = Relu (y)
        }}
    """
    assert spelt(facts(text.format(other="Abs"))["z"].shape) == "batch,4"
    assert spelt(facts(text.format(other="Transpose"))["z"].shape) == "?0,?1"  # no size in common


def test_other_operators_are_asked_of_onnx() -> None:
    weights = {"w": np.zeros((5, 3, 3, 3), np.float32)}
    assert (
        shape_of("Conv <pads = [1, 1, 1, 1]> (x, w)", inputs="float[batch, 3, 8, 8] x", weights=weights)
        == "batch,5,8,8"
    )


def test_stale_annotations_and_old_opsets_tell_nothing() -> None:
    model = parse(
        "g (float[batch, 4] x) => (float[batch, 4] y) { a = com.microsoft.Unknown (x) y = Relu (a) }"
    )
    model.graph.node(0).outputs[0].shape = ir.Shape([1, 4])
    assert Shapes(model)[model.graph.node(1).outputs[0]].shape is None
    assert shape_of("Relu (x)", opset=6) == "?"


def test_invalid_nodes_are_not_followed() -> None:
    assert shape_of("Squeeze (x, axes)", inputs="float x", weights={"axes": np.array([0])}) == "?"
    assert shape_of("Gather <axis = 5> (x, i)", weights={"i": np.array([0])}) == "?"


def test_facts_are_kept_from_pass_to_pass_until_something_is_rewritten() -> None:
    """What is found between the leave to change something and the change is of the model before."""
    model, context = parse("g (float[N, 3] x) => (float[N, 3] y) { y = Relu (x) }"), Context()
    kept = context.shapes(model)
    assert context.shapes(model) is kept
    following = dataclasses.replace(context, rewrites=[])
    assert following.shapes(model) is kept
    assert following.permit("y")
    found = following.shapes(model)
    assert found is not kept
    assert dataclasses.replace(context, rewrites=[]).shapes(model) not in (kept, found)


def test_contents_of_the_parts_of_a_split() -> None:
    found = facts(
        """g (float[batch, sequence, 8] x) => (p, q, r) {
            s = Shape (x)  p, q = Split (s, sizes)  r, u = Split <axis = 0> (s, wrong) }""",
        weights={"sizes": np.array([1, 2]), "wrong": np.array([1, 3])},
    )
    assert [spelt(found[name].content) for name in "pqr"] == ["batch", "sequence,8", "?"]


@pytest.mark.parametrize(
    ("expression", "shape"),
    [
        ("Conv (image, point)", "n,4,h,w"),
        ("Conv <pads = [1, 1, 1, 1]> (image, three)", "n,4,h,w"),
        ("Conv <pads = [1, 2, 1, 2], dilations = [1, 2]> (image, three)", "n,4,h,w"),
        ("Conv <pads = [2, 2, 2, 2]> (image, three)", "n,4,2+h,2+w"),
        ("Conv (image, three)", "n,4,?0,?1"),  # a window may be larger than the image
        ("Conv <strides = [2, 1]> (image, point)", "n,4,?0,w"),
        ("Conv <strides = [2, 2]> (fixed, three)", "n,4,7,3"),
        ('Conv <auto_pad = "VALID"> (fixed, three)', "n,4,14,6"),
        ('Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (fixed, three)', "n,4,8,4"),
        ('com.microsoft.FusedConv <activation = "Relu"> (image, point)', "n,4,h,w"),
        ("Resize (image, , , sizes)", "1,n,7,7"),
        ("Resize (image, , half)", "n,3,?0,?1"),
    ],
)
def test_shapes_of_windows(expression: str, shape: str) -> None:
    found = facts(
        f"""g (float[n, 3, h, w] image, float[n, 3, 16, 8] fixed) => (y)
            <float[4, 3, 1, 1] point = {{{", ".join("0" * 12)}}},
             float[4, 3, 3, 3] three = {{{", ".join("0" * 108)}}},
             int64[1] one = {{1}}, float[4] half = {{1, 1, 0.5, 0.5}}>
        {{
            size = Shape <start = 0, end = 1> (image)
            two = Concat <axis = 0> (one, size)
            seven = Constant <value_ints = [7, 7]> ()
            sizes = Concat <axis = 0> (two, seven)
            y = {expression}
        }}"""
    )
    assert spelt(found["y"].shape) == shape


def test_a_concat_knows_what_any_of_its_inputs_knows() -> None:
    text = """g (float[n, s, 2] x, bool[s] flags) => (z) {
        some = Compress <axis = 1> (x, flags)
        z = Concat <axis = 2> (some, x)
    }"""
    assert spelt(facts(text)["some"].shape) == "n,?0,2"
    assert spelt(facts(text)["z"].shape) == "n,s,4"


def test_quotients_of_sizes_have_one_name() -> None:
    text = """g (float[n, s, t] x) => (y) <int64 eight = {8}, int64 minus = {-9}, int64[1] flat = {-1}> {
        n = Shape <start = 0, end = 1> (x)
        s = Shape <start = 1, end = 2> (x)
        a = Div (n, s)
        b = Div (n, s)
        c = Div (n, eight)
        m = Add (n, minus)
        d = Div (m, eight)
        y = Concat <axis = 0> (a, b, c)
    }"""
    found = facts(text)
    assert found["y"].content == (found["a"].content or ()) * 2 + (found["c"].content or ())
    assert len(set(found["y"].content or ())) == 2
    assert found["d"].content is None  # may be negative: a name stands for a size


@pytest.mark.parametrize(("attribute", "known"), [("", False), ("<allowzero = 1>", True)])
def test_two_sizes_that_are_0_together_may_be_copies(attribute: str, known: bool) -> None:
    """Reshape [0, 8] to [0, 0, 8], of n = 0, gives [0, 8, 8]."""
    found = facts(f"""
        g (float[n, n, 8] x) => (z) <int64[2] to = {{-1, 8}}> {{
            rows = Reshape (x, to)  s = Shape (x)  y = Reshape {attribute} (rows, s)  z = Identity (y)
        }}
    """)
    assert (spelt(found["y"].shape) == "n,n,8") == known


@pytest.mark.parametrize(("attribute", "known"), [("", False), ("<allowzero = 1>", True)])
def test_a_size_without_a_name_that_is_0_beside_an_empty_batch_may_be_a_copy(
    attribute: str, known: bool
) -> None:
    """Reshape [0, 8] to [0, 0, 8], of an empty batch beside a declared 0, gives [0, 8, 8]."""
    found = facts(f"""
        g (float[batch, 0, 8] x, float[rows, 8] m) => (z) {{
            s = Shape (x)  y = Reshape {attribute} (m, s)  z = Identity (y)
        }}
    """)
    assert (found["y"].shape == found["s"].content) == known


def test_a_size_that_is_0_where_a_multiple_of_it_stands_is_no_copy() -> None:
    found = facts("""
        g (float[batch, sequence, 8] x) => (z) <int64[2] to = {-1, 8}> {
            rows = Reshape (x, to)  s = Shape (x)  y = Reshape (rows, s)  z = Identity (y)
        }
    """)
    assert spelt(found["y"].shape) == "batch,sequence,8"


def test_contents_come_back_from_a_higher_rank() -> None:
    found = facts("""
        g (float[batch, 8] x) => (int64[2] y, int64[2] z, int64[2] w)
        <int64[1] axis = {0}, int64[2] two = {0, 1}, int64[1] flat = {-1}, int64[2] column = {2, 1}>
        {
            s = Shape (x)
            u = Unsqueeze (s, axis)  v = Unsqueeze (u, axis)  y = Squeeze (v, two)
            r = Reshape (s, column)  z = Reshape (r, flat)
            t = Transpose (r)        w = Squeeze (t, axis)
        }
    """)
    assert [spelt(found[name].content) for name in "yzw"] == ["batch,8", "batch,8", "?"]
    assert found["u"].content is None
