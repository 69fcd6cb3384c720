from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
import pytest

from burnish.difference import worst
from burnish.model import copy_model, to_bytes
from burnish.passes.base import Context
from burnish.passes.fusion.fuse_attention import FuseAttention
from burnish.runtime.reference import Reference
from burnish.target import TARGETS
from burnish.testing import check_pass, parse

HIDDEN, HEADS = 32, 4
LOWEST = float(np.finfo(np.float32).min)
_RANDOM = np.random.default_rng(7)
WEIGHTS: dict[str, np.ndarray] = {
    **{f"w{n}": _RANDOM.standard_normal((HIDDEN, HIDDEN), np.float32) / 6 for n in "qkvo"},
    **{f"b{n}": _RANDOM.standard_normal(HIDDEN, np.float32) for n in "qkv"},
    "split": np.array([0, 0, HEADS, HIDDEN // HEADS]),
    "join": np.array([0, 0, HIDDEN]),
    "zero": np.array(0), "one": np.array(1), "m1": np.array([-1]), "m2": np.array([-2]),
    "end": np.array([2**63 - 1]), "begin": np.array([-(2**63)]),
    "ax012": np.array([0, 1, 2]), "ax013": np.array([0, 1, 3]), "ax123": np.array([1, 2, 3]),
    "ax12": np.array([1, 2]), "root": np.float32(8.0**-0.25), "scale": np.float32(8.0**-0.5),
    "zerof": np.float32(0), "onef": np.float32(1), "lowest": np.float32(LOWEST),
    "ten": np.float32(-10000), "inf": np.float32(-np.inf), "true": np.array(True),
    "minus_one": np.float32(-1),
}  # fmt: skip

PROJECTED = """
    q0 = MatMul (x, wq)  q1 = Add (q0, bq)  q2 = Reshape (q1, split)
    k0 = MatMul (y, wk)  k1 = Add (k0, bk)  k2 = Reshape (k1, split)
    v0 = MatMul (y, wv)  v1 = Add (v0, bv)  v2 = Reshape (v1, split)
    q = Transpose <perm = [0, 2, 1, 3]> (q2)
    v = Transpose <perm = [0, 2, 1, 3]> (v2)
"""
KEY = "k = Transpose <perm = [0, 2, 1, 3]> (k2)"
KEY_TRANSPOSED = "kt = Transpose <perm = [0, 2, 3, 1]> (k2)"
JOINED = "o1 = Transpose <perm = [0, 2, 1, 3]> (o)  z = Reshape (o1, join)"
OUT = "float[batch, seq, 32] z"
X = "float[batch, seq, 32] x"
MASK = "int64[batch, seq] attention_mask"

# as torch 2.13 decomposes scaled_dot_product_attention below opset 23
SCALED = """
    sk = Shape (k)  s3 = Slice (sk, m1, end)  s2 = Slice (sk, m2, m1)  s01 = Slice (sk, begin, m2)
    flat = Concat <axis = 0> (m1, s2, s3)  kf = Reshape (k, flat)
    kr = Transpose <perm = [0, 2, 1]> (kf)
    wide = Concat <axis = 0> (s01, s3, s2)  kw = Reshape (kr, wide)
    qs = Mul (q, root)  ks = Mul (kw, root)  scores = MatMul (qs, ks)
"""
GUARDED = "nan = IsNaN (w)  weights = Where (nan, zerof, w)  o = MatMul (weights, v)"
# as transformers writes the padding mask
GATHERED = """
    seen = Cast <to = 9> (attention_mask)
    shape = Shape (attention_mask)
    bs = Slice (shape, ax0, ax1)  ss = Slice (shape, ax1, ax2)  b = Squeeze (bs)  s = Squeeze (ss)
    rb = Range (zero, b, one)  rs = Range (zero, s, one)
    ub = Unsqueeze (rb, ax123)  uk = Unsqueeze (rs, ax012)  uq = Unsqueeze (rs, ax013)
    ge = GreaterOrEqual (uq, zero)  all = And (true, ge)
    most = Max (ub, uk)  full = Shape (most)
    eb = Expand (ub, full)  ek = Expand (uk, full)  ib = Unsqueeze (eb, m1)  ik = Unsqueeze (ek, m1)
    index = Concat <axis = -1> (ib, ik)
    padding = GatherND (seen, index)
    mask = And (all, padding)
"""
WEIGHTS |= {f"ax{n}": np.array([n]) for n in range(3)}


def graph(inputs: str, body: str, outputs: str = OUT, *, cross: bool = False) -> str:
    projected = PROJECTED if cross else PROJECTED.replace("(y,", "(x,")
    return f"g ({inputs}) => ({outputs}) {{ {projected} {body} }}"


def dynamo(fill: str = "lowest", mask: str = GATHERED) -> str:
    body = f"""{KEY} {SCALED} {mask} bias = Where (mask, zerof, {fill})
        masked = Add (scores, bias)  w = Softmax <axis = -1> (masked) {GUARDED} {JOINED}"""
    return graph(f"{X}, {MASK}", body)


def eager(masked: str, inputs: str = f"{X}, {MASK}") -> str:
    body = f"""{KEY_TRANSPOSED} raw = MatMul (q, kt)  scores = Mul (raw, scale) {masked}
        w = Softmax <axis = -1> (masked)  o = MatMul (w, v) {JOINED}"""
    return graph(inputs, body)


ADDITIVE = """
    m4 = Unsqueeze (attention_mask, ax12)  mf = Cast <to = 1> (m4)  off = Sub (onef, mf)
    bias = Mul (off, {fill})  masked = Add (scores, bias)
"""
CAUSAL = """
    sx = Shape (x)  s1 = Slice (sx, ax1, ax2)  ss2 = Concat <axis = 0> (s1, s1)  ones = Expand (onef, ss2)
    below = Trilu <upper = 0> (ones)  ahead = Equal (below, zerof)
"""
STANDARD = f"{KEY} {{mask}} o = Attention {{attributes}} (q, k, v{{input}}) {JOINED}"


def masks(batch: int, length: int) -> dict[str, np.ndarray]:
    """0/1 masks [batch, length] of every kind."""
    random = np.random.default_rng(batch * 100 + length)
    at = np.arange(length)
    found = {
        "right padded": at < random.integers(1, length + 1, (batch, 1)),
        "left padded": at >= random.integers(0, length, (batch, 1)),
        "random": random.random((batch, length)) < 0.5,
        "nothing visible": np.zeros((batch, length)),
        "one sentence hidden": np.arange(batch)[:, None] + np.ones(length) > 1,
    }
    return {name: mask.astype(np.int64) for name, mask in found.items()}


def fused(model: ir.Model, *, count: int = 1, target: str = "cpu", packed: bool = True) -> ir.Model:
    copy = copy_model(model)
    context = Context(TARGETS[target])
    assert FuseAttention(packed=packed).rewrite(copy, context) == count, context.misses
    return copy


def assert_same_for_all_masks(
    before: ir.Model,
    after: ir.Model,
    feed: Callable[[np.ndarray], Mapping[str, np.ndarray]] = lambda mask: {"attention_mask": mask},
) -> None:
    run, rerun = Reference(to_bytes(before)), Reference(to_bytes(after))
    random = np.random.default_rng(3)
    for batch, length in ((1, 1), (1, 7), (2, 16), (3, 7), (3, 1)):
        for name, mask in masks(batch, length).items():
            x = random.standard_normal((batch, length, HIDDEN), np.float32)
            feeds = {"x": x, **feed(mask)}
            apart = worst(run(feeds), rerun(feeds))
            assert apart.within(1e-5), (batch, length, name, str(apart))


def misses(text: str, *, opset: int = 20, target: str = "cpu") -> str:
    """Why it does not fuse."""
    model = parse(text, opset=opset, weights=WEIGHTS)
    before, context = to_bytes(model), Context(TARGETS[target])
    assert FuseAttention().rewrite(model, context) == 0
    assert to_bytes(model) == before
    return " ".join(miss.why for miss in context.misses)


def the(model: ir.Model, op_type: str) -> ir.Node:
    (node,) = [node for node in model.graph.all_nodes() if node.op_type == op_type]
    return node


def test_as_torch_decomposes_it() -> None:
    model = check_pass(FuseAttention(), dynamo(), ["Cast", "Attention"], count=1, weights=WEIGHTS)
    attention = the(model, "Attention")
    assert attention.domain == "com.microsoft"
    assert attention.attributes.get_float("mask_filter_value", 0.0) == pytest.approx(LOWEST)
    assert attention.attributes.get_float("scale", 0.0) == pytest.approx(8.0**-0.5)
    assert attention.metadata_props["burnish.pass"] == "fuse-attention"
    assert attention.outputs[0].name == "z"


def test_with_the_lowest_float_a_hidden_sentence_gets_the_mean_of_its_values() -> None:
    before = parse(dynamo(), weights=WEIGHTS)
    assert_same_for_all_masks(before, fused(before))


def test_with_minus_infinity_and_a_guard_a_hidden_sentence_gets_zeros() -> None:
    model = check_pass(
        FuseAttention(), dynamo("inf"),
        ["Cast", "Attention", "ReduceMax", "Unsqueeze", "Cast", "Where"], count=1, weights=WEIGHTS,
    )  # fmt: skip
    before = parse(dynamo("inf"), weights=WEIGHTS)
    assert_same_for_all_masks(before, model)
    hidden = {"x": np.ones((2, 3, HIDDEN), np.float32), "attention_mask": np.zeros((2, 3), np.int64)}
    assert not Reference(to_bytes(model))(hidden)["z"].any()


def test_with_minus_infinity_and_no_guard_a_hidden_sentence_stays_nan() -> None:
    text = eager(ADDITIVE.format(fill="inf").replace("Mul (off, inf)", "Where (gone, inf, zerof)").replace(
        "off = Sub (onef, mf)", "gone = Equal (mf, zerof)"
    ))  # fmt: skip
    before = parse(text, weights=WEIGHTS)
    after = fused(before)
    assert [node.op_type for node in after.graph] == ["Cast", "Attention"]
    assert_same_for_all_masks(before, after)


@pytest.mark.parametrize("fill", ["lowest", "ten"])
def test_added_by_hand(fill: str) -> None:
    """As BERT was exported for years with -10000: a hidden sentence attends as if there were no mask."""
    before = parse(eager(ADDITIVE.format(fill=fill)), weights=WEIGHTS)
    after = fused(before)
    assert [node.op_type for node in after.graph] == ["Cast", "Attention"]
    assert_same_for_all_masks(before, after)


@pytest.mark.parametrize("fill", ["lowest", "inf"])
def test_filled_in_by_hand(fill: str) -> None:
    text = eager(f"""m4 = Unsqueeze (attention_mask, ax12)  hide = Equal (m4, zero)
        masked = Where (hide, {fill}, scores)""")
    before = parse(text, weights=WEIGHTS)
    after = fused(before)
    assert [node.op_type for node in after.graph] == ["Cast", "Attention"]
    assert_same_for_all_masks(before, after)


def test_a_moderate_number_filled_in_is_not_a_mask_of_keys() -> None:
    text = eager("""m4 = Unsqueeze (attention_mask, ax12)  hide = Equal (m4, zero)
        masked = Where (hide, minus_one, scores)""")
    assert "cannot be added instead" in misses(text)


def test_causal() -> None:
    model = check_pass(
        FuseAttention(), eager(f"{CAUSAL} masked = Where (ahead, inf, scores)", X), ["Attention"],
        count=1, weights=WEIGHTS,
    )  # fmt: skip
    assert the(model, "Attention").attributes.get_int("unidirectional", 0) == 1


def test_causal_and_padded() -> None:
    compared = "all = LessOrEqual (uk, uq)"
    mask = GATHERED.replace("ge = GreaterOrEqual (uq, zero)  all = And (true, ge)", compared)
    assert compared in mask
    before = parse(dynamo(mask=mask), weights=WEIGHTS)
    after = fused(before)
    assert [node.op_type for node in after.graph] == ["Cast", "Attention"]
    assert_same_for_all_masks(before, after)
    # with -inf, a row without a visible key is 0 in the graph, but not in the kernel: a bias and a guard
    before = parse(dynamo("inf", mask=mask), weights=WEIGHTS)
    after = fused(before)
    assert [node.op_type for node in after.graph][-3:] == ["Attention", "IsNaN", "Where"]
    assert_same_for_all_masks(before, after)


def test_bias_on_the_scores() -> None:
    text = eager("masked = Add (scores, bias)", f"{X}, float[batch, 1, seq, seq] bias")
    model = check_pass(FuseAttention(), text, ["Attention"], count=1, weights=WEIGHTS)
    assert model.graph.inputs[1] in the(model, "Attention").inputs


def test_bias_on_keys_is_expanded() -> None:
    text = eager("masked = Add (scores, bias)", f"{X}, float[batch, 1, 1, seq] bias")
    check_pass(
        FuseAttention(), text, ["Shape", "Shape", "Concat", "Expand", "Attention"], count=1, weights=WEIGHTS
    )


def test_bias_may_hide_everything_where_there_is_a_guard() -> None:
    body = f"""{KEY_TRANSPOSED} raw = MatMul (q, kt)  scores = Mul (raw, scale)
        masked = Add (scores, bias)  w = Softmax <axis = -1> (masked) {GUARDED} {JOINED}"""
    before = parse(graph(f"{X}, float[batch, 1, seq, seq] bias", body), weights=WEIGHTS)
    after = fused(before)
    assert [node.op_type for node in after.graph] == ["Attention", "IsNaN", "Where"]

    def feed(mask: np.ndarray) -> dict[str, np.ndarray]:
        batch, length = mask.shape
        bias = np.where(mask[:, None, None, :] > 0, np.float32(0.5), np.float32(-np.inf))
        return {"bias": np.broadcast_to(bias, (batch, 1, length, length)).copy()}

    assert_same_for_all_masks(before, after, feed)


def test_a_bias_of_two_finite_numbers_hides_nothing_for_good() -> None:
    """Then no row of weights is NaN, and what guards against that goes."""
    chosen = "bias = Where (see, zerof, low)  wide = Unsqueeze (bias, ax1)"
    body = f"""{KEY_TRANSPOSED} raw = MatMul (q, kt)  scores = Mul (raw, scale)  {chosen}
        masked = Add (scores, wide)  w = Softmax <axis = -1> (masked) {GUARDED} {JOINED}"""
    inputs = f"{X}, bool[batch, seq, seq] see"
    low = WEIGHTS | {"low": np.array(-10.0, np.float32)}
    text = graph(inputs, body)
    model = check_pass(FuseAttention(), text, ["Where", "Unsqueeze", "Attention"], count=1, weights=low)
    assert len(the(model, "Attention").inputs) == 6
    infinite = WEIGHTS | {"low": np.array(-np.inf, np.float32)}
    after = fused(parse(text, weights=infinite))
    assert [node.op_type for node in after.graph][-2:] == ["IsNaN", "Where"]


def test_mask_of_unknown_size_does_not_fuse() -> None:
    text = eager("masked = Add (scores, bias)", f"{X}, float[other, 1, seq, seq] bias")
    assert "does not provably broadcast" in misses(text)


def test_cross_attention() -> None:
    body = f"""{KEY_TRANSPOSED} raw = MatMul (q, kt)  scores = Div (raw, divisor)
        w = Softmax <axis = -1> (scores)  o = MatMul (w, v) {JOINED}"""
    text = graph(f"{X}, float[batch, other, 32] y", body, cross=True)
    model = check_pass(
        FuseAttention(), text, ["MatMul", "MatMul", "MatMul", "MultiHeadAttention"], count=1,
        weights=WEIGHTS | {"divisor": np.float32(8.0**0.5)},
    )  # fmt: skip
    attention = the(model, "MultiHeadAttention")
    bias = attention.inputs[3]
    assert bias is not None
    assert bias.const_value is not None
    np.testing.assert_array_equal(bias.const_value.numpy(), np.concatenate([WEIGHTS[f"b{n}"] for n in "qkv"]))


def test_queries_and_keys_of_other_batches_do_not_fuse() -> None:
    body = f"""{KEY_TRANSPOSED} scores = MatMul (q, kt)
        w = Softmax <axis = -1> (scores)  o = MatMul (w, v) {JOINED}"""
    text = graph(f"{X}, float[one, other, 32] y", body, "float[b, seq, 32] z", cross=True)
    assert "not provably of one batch size" in misses(text)


def test_not_packed_when_not_asked() -> None:
    before = parse(dynamo(), weights=WEIGHTS)
    after = fused(before, packed=False)
    expected = ["MatMul", "MatMul", "MatMul", "Cast", "MultiHeadAttention"]
    assert sorted(node.op_type for node in after.graph) == sorted(expected)
    assert_same_for_all_masks(before, after)


def test_not_packed_when_keys_are_given_out() -> None:
    body = f"""{KEY} {SCALED} w = Softmax <axis = -1> (scores)  o = MatMul (w, v) {JOINED}"""
    text = graph(X, body, f"{OUT}, float[batch, 4, seq, 8] k")
    model = check_pass(FuseAttention(), text, count=1, weights=WEIGHTS)
    assert the(model, "MultiHeadAttention").inputs[1] is not None
    assert [node.op_type for node in model.graph].count("MatMul") == 3


def test_one_projection_for_all_three_is_used_as_it_is() -> None:
    body = f"""p = MatMul (x, wqkv)  p1 = Add (p, bqkv)  pq, pk, pv = Split <axis = 2, num_outputs = 3> (p1)
        q2 = Reshape (pq, split)  k2 = Reshape (pk, split)  v2 = Reshape (pv, split)
        q = Transpose <perm = [0, 2, 1, 3]> (q2)  v = Transpose <perm = [0, 2, 1, 3]> (v2)
        {KEY_TRANSPOSED} scores = MatMul (q, kt)  w = Softmax <axis = -1> (scores)
        o = MatMul (w, v) {JOINED}"""
    weights = WEIGHTS | {
        "wqkv": np.concatenate([WEIGHTS[f"w{n}"] for n in "qkv"], axis=1),
        "bqkv": np.concatenate([WEIGHTS[f"b{n}"] for n in "qkv"]),
    }
    model = check_pass(
        FuseAttention(), f"g ({X}) => ({OUT}) {{ {body} }}", ["Attention"], count=1, weights=weights
    )
    weight = the(model, "Attention").inputs[1]
    assert weight is not None
    assert weight.name == "wqkv"


def test_layers_share_one_mask() -> None:
    second = PROJECTED.replace("(y,", "(h,").replace("(x,", "(h,")
    layer = f"""{KEY_TRANSPOSED} raw = MatMul (q, kt)  scores = Mul (raw, scale)
        masked = Add (scores, bias)  w = Softmax <axis = -1> (masked)  o = MatMul (w, v)"""
    mask = """m4 = Unsqueeze (attention_mask, ax12)  mf = Cast <to = 1> (m4)  off = Sub (onef, mf)
        bias = Mul (off, lowest)"""
    first = f"{PROJECTED.replace('(y,', '(x,')} {layer}"
    for name in ("q", "k", "v", "q0", "q1", "q2", "k0", "k1", "k2", "v0", "v1", "v2", "kt", "raw", "scores",
                 "masked", "w", "o"):  # fmt: skip
        first = first.replace(f" {name} =", f" {name}_ =").replace(f"({name},", f"({name}_,")
        first = first.replace(f"({name})", f"({name}_)").replace(f", {name})", f", {name}_)")
    text = f"""g ({X}, {MASK}) => ({OUT}) {{ {mask} {first}
        o_1 = Transpose <perm = [0, 2, 1, 3]> (o_)  h = Reshape (o_1, join) {second} {layer} {JOINED} }}"""
    model = check_pass(FuseAttention(), text, ["Cast", "Attention", "Attention"], count=2, weights=WEIGHTS)
    first_node, second_node = (node for node in model.graph if node.op_type == "Attention")
    assert first_node.inputs[3] is second_node.inputs[3]


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
    for batch in (1, 2, 4):
        shapes = {"x": (batch, 3, HIDDEN), "y": (4, 6, HIDDEN)}
        feeds = {name: _RANDOM.standard_normal(shape, np.float32) for name, shape in shapes.items()}
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


def test_weights_that_are_given_out_keep_it_apart() -> None:
    body = f"{KEY} {SCALED} w = Softmax <axis = -1> (scores)  o = MatMul (w, v) {JOINED}"
    text = graph(X, body, f"{OUT}, float[batch, 4, seq, seq] w")
    assert "weights are used elsewhere" in misses(text)


def test_scores_that_are_given_out_keep_it_apart() -> None:
    body = f"{KEY} {SCALED} w = Softmax <axis = -1> (scores)  o = MatMul (w, v) {JOINED}"
    text = graph(X, body, f"{OUT}, float[batch, 4, seq, seq] scores")
    assert "scores are used elsewhere" in misses(text)


def test_dropout_keeps_it_apart() -> None:
    body = f"""{KEY} {SCALED} w = Softmax <axis = -1> (scores)  d = Dropout (w)
        o = MatMul (d, v) {JOINED}"""
    assert "Dropout" in misses(graph(X, body))


def test_negative_scale_does_not_fuse() -> None:
    text = eager("masked = Neg (scores)", X).replace("masked = Neg (scores)", "masked = Mul (scores, minus)")
    context = Context()
    check_pass(FuseAttention(), text, count=0, context=context, weights=WEIGHTS | {"minus": np.float32(-1)})
    assert "scale is not positive" in context.misses[0].why


def test_single_steps_in_float16_stay() -> None:
    text = dynamo().replace("float[", "float16[")
    with np.errstate(over="ignore"):  # the lowest float32 becomes -inf
        half = {n: v.astype(np.float16) if v.dtype == np.float32 else v for n, v in WEIGHTS.items()}
    model = parse(text, weights=half)
    context = Context()
    assert FuseAttention().rewrite(model, context) == 0
    assert "float32" in context.misses[0].why


def test_a_classifier_is_no_attention() -> None:
    text = f"g ({X}) => ({OUT}) {{ a = MatMul (x, wq)  b = Softmax <axis = -1> (a)  z = MatMul (b, wk) }}"
    assert misses(text) == ""


def test_inside_a_branch() -> None:
    body = (
        f"{PROJECTED.replace('(y,', '(x,')} {KEY} {SCALED} w = Softmax <axis = -1> (scores) o = MatMul (w, v)"
    )
    text = f"""g (bool c, {X}) => ({OUT}) {{
        z = If (c) <
            then_branch = t () => (float[batch, seq, 32] zt) {{ {body} {JOINED.replace("z =", "zt =")} }},
            else_branch = e () => (float[batch, seq, 32] ze) {{ ze = Relu (x) }}
        >
    }}"""
    model = check_pass(FuseAttention(), text, count=1, weights=WEIGHTS)
    assert [node.op_type for node in model.graph.all_nodes()] == ["If", "Attention", "Relu"]


def test_inside_a_function() -> None:
    """A function knows no shapes but those it makes; its constants stay inside it."""
    constants = {"split": "[2, 5, 4, 8]", "join": "[2, 5, 32]"}
    text = f"""
        <ir_version: 10, opset_import: ["": 20, "com.microsoft": 1, "own": 1]>
        g (float[2, 5, 32] x) => (float[2, 5, 32] z) {{ z = own.attend (x) }}
        <domain: "own", opset_import: ["": 20]>
        attend (x) => (z) {{
            join = Constant <value_ints = {constants["join"]}> ()
            split = Constant <value_ints = {constants["split"]}> ()
            r = Reshape (x, join)  a = Relu (r)  b = Sigmoid (r)
            q2 = Reshape (r, split)  k2 = Reshape (a, split)  v2 = Reshape (b, split)
            q = Transpose <perm = [0, 2, 1, 3]> (q2)  v = Transpose <perm = [0, 2, 1, 3]> (v2)
            {KEY_TRANSPOSED} raw = MatMul (q, kt)
            scale = Constant <value_float = 0.3> ()  scores = Mul (raw, scale)
            w = Softmax <axis = -1> (scores)  o = MatMul (w, v) {JOINED}
        }}
    """
    model = check_pass(FuseAttention(), text, count=1)
    (function,) = model.functions.values()
    assert [node.op_type for node in function][-1] == "MultiHeadAttention"
    assert function.opset_imports["com.microsoft"] == 1
