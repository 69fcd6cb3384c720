"""The standard Attention, and heads that come apart, stacked, from channels or sequence first."""

import numpy as np
from attention_graphs import (
    GATHERED,
    HEADS,
    HIDDEN,
    JOINED,
    KEY,
    MASK,
    OUT,
    SCALED,
    STANDARD,
    WEIGHTS,
    X,
    assert_same_for_all_masks,
    dynamo,
    fused,
    graph,
    misses,
    the,
)

from burnish.difference import worst
from burnish.model import to_bytes
from burnish.passes.base import Context
from burnish.passes.fusion.fuse_attention import FuseAttention
from burnish.runtime.reference import Reference
from burnish.target import TARGETS
from burnish.testing import check_pass, parse


def test_the_standard_operator_with_a_mask_of_keys() -> None:
    text = graph(f"{X}, {MASK}", STANDARD.format(mask=GATHERED, attributes="", input=", mask"))
    before = parse(text, opset=23, weights=WEIGHTS)
    after = fused(before)
    assert [node.domain for node in after.graph if node.op_type == "Attention"] == ["com.microsoft"]
    assert_same_for_all_masks(before, after)


def test_the_standard_operator_with_another_mask_has_its_heads_joined() -> None:
    text = graph(
        f"{X}, bool[batch, 1, seq, seq] mask", STANDARD.format(mask="", attributes="", input=", mask")
    )
    model = check_pass(FuseAttention(), text, count=1, opset=23, weights=WEIGHTS)
    assert (the(model, "Attention").domain, len(list(model.graph))) == ("", 7)

    def feed(mask: np.ndarray) -> dict[str, np.ndarray]:
        square = np.broadcast_to(
            mask[:, None, None, :] > 0, (*mask.shape[:1], 1, mask.shape[1], mask.shape[1])
        )
        return {"mask": square.copy()}

    assert_same_for_all_masks(parse(text, opset=23, weights=WEIGHTS), model, feed)


def test_the_standard_operator_stays_where_the_others_have_no_kernel() -> None:
    text = graph(X, STANDARD.format(mask="", attributes="<is_causal = 1, scale = 0.5>", input=""))
    context = Context(TARGETS["tensorrt"])
    model = check_pass(FuseAttention(), text, count=1, context=context, opset=23, weights=WEIGHTS)
    attention = the(model, "Attention")
    assert attention.domain == ""
    assert attention.attributes.get_int("q_num_heads", 0) == HEADS
    assert attention.attributes.get_int("is_causal", 0) == 1


def test_decomposed_becomes_standard_where_that_is_exact() -> None:
    before = parse(dynamo("inf"), opset=23, weights=WEIGHTS)
    after = fused(before, target="tensorrt")
    assert the(after, "Attention").domain == ""
    assert_same_for_all_masks(before, after)
    lowest = dynamo("lowest")
    assert "gives 0, which this graph does not" in misses(lowest, opset=23, target="tensorrt")
    assert "has no com.microsoft::MultiHeadAttention" in misses(lowest, opset=20, target="tensorrt")


REPEATED = """
    k0 = MatMul (x, wk2)  k2 = Reshape (k0, split2)  k4 = Transpose <perm = [0, 2, 1, 3]> (k2)
    v0 = MatMul (x, wv2)  v2 = Reshape (v0, split2)  v4 = Transpose <perm = [0, 2, 1, 3]> (v2)
    q0 = MatMul (x, wq)   q2 = Reshape (q0, split)   q = Transpose <perm = [0, 2, 1, 3]> (q2)
    ku = Unsqueeze (k4, ax2)  ke = Expand (ku, twice)  k = Reshape (ke, heads)
    vu = Unsqueeze (v4, ax2)  ve = Expand (vu, twice)  v = Reshape (ve, heads)
"""
GROUPED = WEIGHTS | {
    "wk2": WEIGHTS["wk"][:, :16], "wv2": WEIGHTS["wv"][:, :16], "split2": np.array([0, 0, 2, 8]),
    "twice": np.array([1, 1, 2, 1, 1]), "heads": np.array([0, 4, -1, 8]),
}  # fmt: skip


def test_keys_that_queries_share_are_not_repeated_for_the_standard_operator() -> None:
    text = f"g ({X}) => ({OUT}) {{ {REPEATED} o = Attention <is_causal = 1> (q, k, v) {JOINED} }}"
    model = check_pass(FuseAttention(), text, count=1, opset=23, weights=GROUPED)
    assert [node.op_type for node in model.graph] == ["MatMul", "MatMul", "MatMul", "Attention"]
    assert the(model, "Attention").attributes.get_int("kv_num_heads", 0) == 2


def test_keys_that_queries_share_are_repeated_below_opset_23() -> None:
    text = f"""g ({X}) => ({OUT}) {{ {REPEATED} {SCALED}
        w = Softmax <axis = -1> (scores)  o = MatMul (w, v) {JOINED} }}"""
    model = check_pass(FuseAttention(), text, count=1, opset=20, weights=GROUPED)
    attention = the(model, "MultiHeadAttention")
    assert [value.shape.rank() if value and value.shape else 0 for value in attention.inputs] == [3, 4, 4]


def test_heads_apart_are_joined_for_the_query_only() -> None:
    """A rotary embedding leaves query and key with heads as an axis of their own."""
    body = f"""{KEY} qr = Neg (q)  kr4 = Neg (k)  kt = Transpose <perm = [0, 1, 3, 2]> (kr4)
        scores = MatMul (qr, kt)  w = Softmax <axis = -1> (scores)  o = MatMul (w, v) {JOINED}"""
    model = check_pass(FuseAttention(), graph(X, body), count=1, weights=WEIGHTS)
    attention = the(model, "MultiHeadAttention")
    assert [value.shape.rank() if value and value.shape else 0 for value in attention.inputs] == [3, 4, 4]


def test_channels_of_convolutions_become_rows() -> None:
    """SqueezeBERT: heads are split from [batch, channels, positions], and joined to it again."""
    text = """g (float[batch, 32, seq] x) => (float[batch, 32, seq] z) {
        q0 = Neg (x)  k0 = Abs (x)  v0 = Sin (x)
        q1 = Reshape (q0, apart)  kt = Reshape (k0, apart)  v1 = Reshape (v0, apart)
        q = Transpose <perm = [0, 1, 3, 2]> (q1)  v = Transpose <perm = [0, 1, 3, 2]> (v1)
        raw = MatMul (q, kt)  scores = Mul (raw, scale)  w = Softmax <axis = -1> (scores)  o = MatMul (w, v)
        o1 = Transpose <perm = [0, 1, 3, 2]> (o)  z = Reshape (o1, together)
    }"""
    weights = {name: WEIGHTS[name] for name in ("scale",)}
    weights |= {"apart": np.array([0, 4, 8, -1]), "together": np.array([0, 32, -1])}
    model = check_pass(FuseAttention(), text, count=1, weights=weights)
    left = [node.op_type for node in model.graph]
    assert left[:3] == ["Neg", "Abs", "Sin"]
    assert left[3:] == ["Transpose"] * 3 + ["MultiHeadAttention", "Transpose"]


def test_heads_that_are_split_where_they_are_made_are_joined() -> None:
    """Whisper: keys and values of cross-attention may be of another batch where they are projected."""
    text = f"""g ({X}, float[other, 6, 32] y) => ({OUT}) {{
        q0 = MatMul (x, wq)  q1 = Reshape (q0, split)  q = Transpose <perm = [0, 2, 1, 3]> (q1)
        n = Shape <start = 0, end = 1> (x)  rest = Constant <value_ints = [-1, 4, 8]> ()
        to = Concat <axis = 0> (n, rest)  k1 = Reshape (y, to)  v0 = Neg (y)  v1 = Reshape (v0, to)
        kt = Transpose <perm = [0, 2, 3, 1]> (k1)  v = Transpose <perm = [0, 2, 1, 3]> (v1)
        raw = MatMul (q, kt)  scores = Mul (raw, scale)  w = Softmax <axis = -1> (scores)  o = MatMul (w, v)
        {JOINED}
    }}"""
    weights = {name: WEIGHTS[name] for name in ("wq", "split", "scale", "join")}
    before = parse(text, weights=weights)
    after = fused(before)
    assert [node.op_type for node in after.graph][-3:] == ["Reshape", "Reshape", "MultiHeadAttention"]
    run, rerun = Reference(to_bytes(before)), Reference(to_bytes(after))
    random = np.random.default_rng(7)
    for batch in (1, 2, 4):
        shapes = {"x": (batch, 3, HIDDEN), "y": (4, 6, HIDDEN)}
        feeds = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        assert worst(run(feeds), rerun(feeds)).within(1e-5)


def test_heads_apart_of_different_sizes_stay_apart() -> None:
    text = """g (float[b, 4, s, 8] q, float[b, 4, t, 8] k, float[b, 4, t, 6] v) => (float[b, 4, s, 6] o) {
        kt = Transpose <perm = [0, 1, 3, 2]> (k)  scores = MatMul (q, kt)
        w = Softmax <axis = -1> (scores)  o = MatMul (w, v)
    }"""
    assert "differ in size" in misses(text)
    check_pass(FuseAttention(), text.replace("t, 6", "t, 8").replace("s, 6", "s, 8"), count=1)


def test_sequence_first_as_in_multi_head_attention_of_torch() -> None:
    text = f"""g ({X}) => ({OUT}) {{
        xt = Transpose <perm = [1, 0, 2]> (x)  p = MatMul (xt, wqkv)  p1 = Add (p, bqkv)
        sp = Reshape (p1, three)  u = Unsqueeze (sp, ax0)  t = Transpose <perm = [3, 1, 2, 0, 4]> (u)
        qkv = Squeeze (t, m2)
        q0 = Gather <axis = 0> (qkv, zero)  k0 = Gather <axis = 0> (qkv, one)
        v0 = Gather <axis = 0> (qkv, two)
        sx = Shape (x)  b = Gather (sx, ax0)  s = Gather (sx, ax1)  nb = Mul (b, four)
        f = Concat <axis = 0> (s, nb, eight)  h = Concat <axis = 0> (b, four, s, eight)
        qf = Reshape (q0, f)  kf0 = Reshape (k0, f)  vf = Reshape (v0, f)
        qt = Transpose <perm = [1, 0, 2]> (qf)  kt0 = Transpose <perm = [1, 0, 2]> (kf0)
        vt = Transpose <perm = [1, 0, 2]> (vf)
        q = Reshape (qt, h)  k = Reshape (kt0, h)  v = Reshape (vt, h)
        {SCALED} w = Softmax <axis = -1> (scores)  o = MatMul (w, v)
        o1 = Transpose <perm = [2, 0, 1, 3]> (o)  o2 = Reshape (o1, flat2)
        o3 = Gemm <transB = 1> (o2, wo, bq)  back = Concat <axis = 0> (s, b, wide32)
        o4 = Reshape (o3, back)  z = Transpose <perm = [1, 0, 2]> (o4)
    }}"""
    more = {
        "wqkv": np.concatenate([WEIGHTS[f"w{n}"] for n in "qkv"], axis=1),
        "bqkv": np.concatenate([WEIGHTS[f"b{n}"] for n in "qkv"]),
        "three": np.array([0, 0, 3, 32]), "two": np.array(2), "four": np.array([4]), "eight": np.array([8]),
        "flat2": np.array([-1, 32]), "wide32": np.array([32]),
    }  # fmt: skip
    check_pass(FuseAttention(), text, ["Attention", "MatMul", "Add"], count=1, weights=WEIGHTS | more)
