"""Decomposed attention becomes one operator, for every mask; what must not fuse does not."""

import numpy as np
import pytest
from attention_graphs import (
    ADDITIVE,
    CAUSAL,
    GATHERED,
    GUARDED,
    HIDDEN,
    JOINED,
    KEY,
    KEY_TRANSPOSED,
    LOWEST,
    MASK,
    OUT,
    PROJECTED,
    SCALED,
    WEIGHTS,
    X,
    assert_same_for_all_masks,
    dynamo,
    eager,
    fused,
    graph,
    misses,
    the,
)

from burnish.model import to_bytes
from burnish.passes.base import Context
from burnish.passes.fusion.fuse_attention import FuseAttention
from burnish.runtime.reference import Reference
from burnish.testing import check_pass, parse


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
