"""Passes that go by the cost table: both directions, numbers checked, and what is said of it."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import pytest

from burnish.costs import Costs, Form, Known, Ratio
from burnish.feeds import make_feeds
from burnish.model import expose, signature, to_bytes
from burnish.passes.base import Context
from burnish.passes.drop_slower import DropSlower
from burnish.passes.forms import form_of, typical_size_of
from burnish.passes.fusion.alone import INVERSES
from burnish.passes.fusion.fuse_attention import FuseAttention
from burnish.passes.fusion.fuse_conv_activation import FuseConvActivation
from burnish.passes.recipe import Recipe
from burnish.passes.runner import run_recipe
from burnish.passes.shapes import Shapes
from burnish.runtime.reference import Reference
from burnish.testing import check_pass, parse

SIZES = {"B": 1, "S": 128}
SLOWER, FASTER, NOISE = Ratio(2.0, 1.5, 3.0), Ratio(0.5, 0.4, 0.9), Ratio(1.2, 0.9, 1.4)
RNG = np.random.default_rng(0)


def weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def table(ratio: Ratio, *forms: Form, name: str = "shipped") -> Costs:
    return Costs({form: Known(ratio, name) for form in forms}, SIZES)  # type: ignore[arg-type]


def forms(model: ir.Model) -> list[Form]:
    """Of all nodes that can be written out, at the typical sizes."""
    size_of, opset = typical_size_of(Shapes(model), Costs({}, SIZES)), model.graph.opset_imports[""]
    nodes = [node for node in model.graph if (node.domain, node.op_type) in INVERSES]
    found = [form_of(node, size_of, ir.DataType.FLOAT, opset) for node in nodes]
    assert None not in found
    return [form for form in found if form is not None]


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


SKIP = """
    g (float[B, S, 64] x, float[B, S, 64] s) => (float[B, S, 64] y)
    { y = com.microsoft.SkipLayerNormalization <epsilon = 0.001> (x, s, k, b) }
"""
NORM = weights(k=(64,), b=(64,))


@pytest.mark.parametrize(("ratio", "after"), [
    (SLOWER, ["Sum", "LayerNormalization"]), (FASTER, ["SkipLayerNormalization"]),
    (NOISE, ["SkipLayerNormalization"]),
])  # fmt: skip
def test_the_table_decides_without_a_timer(ratio: Ratio, after: list[str]) -> None:
    model = parse(SKIP, weights=NORM)
    context = Context(costs=table(ratio, *forms(model)))
    check_pass(DropSlower(), model, after, count=int(ratio is SLOWER), context=context)
    form = "SkipLayerNormalization (shift) about [256, 64]"
    told = f"{form}: {ratio} the time of Sum+LayerNormalization, by the shipped cost table"
    assert context.measured == ([told] if ratio is not NOISE else [])
    assert [miss.why for miss in context.misses] == (
        ["the cost table does not know what is faster at its size, and nothing is timed"]
        if ratio is NOISE
        else []
    )


def test_the_margin_is_asked_of_the_table_too() -> None:
    model = parse(SKIP, weights=NORM)
    context = Context(costs=table(SLOWER, *forms(model)))
    check_pass(DropSlower(margin=1.6), model, ["SkipLayerNormalization"], count=0, context=context)


class Clock:
    """Counts how often it is asked."""

    def __init__(self, ratio: Ratio) -> None:
        self.ratio, self.asked = ratio, 0

    def __call__(self, fused: ir.Model, standard: ir.Model, feeds: Mapping[str, np.ndarray]) -> Ratio:
        self.asked += 1
        return self.ratio


def probe(model: ir.Model, names: Sequence[str]) -> dict[str, np.ndarray]:
    return Reference(to_bytes(expose(model, names)))(
        make_feeds(signature(model).inputs, SIZES, seed=1), names
    )


@pytest.mark.parametrize(
    ("known", "timed", "asked", "count"),
    [
        (SLOWER, FASTER, 0, 1), (FASTER, SLOWER, 0, 0), (NOISE, SLOWER, 1, 1), (NOISE, FASTER, 1, 0),
        (NOISE, NOISE, 1, 0), (None, SLOWER, 1, 1), (None, NOISE, 1, 0),
    ],
)  # fmt: skip
def test_only_what_the_table_leaves_open_is_timed(
    known: Ratio | None, timed: Ratio, asked: int, count: int
) -> None:
    model, clock = parse(SKIP, weights=NORM), Clock(timed)
    costs = table(known, *forms(model)) if known else Costs({}, SIZES)
    context = Context(probe=probe, compare_speed=clock, costs=costs)
    assert DropSlower().rewrite(model, context) == count
    assert clock.asked == asked
    by = "timed here" if asked else "by the shipped cost table"
    assert [line.rpartition(", ")[2] for line in context.measured] == [by]


def test_sizes_that_only_a_run_shows_are_looked_up_too() -> None:
    """The rows that are chosen depend on values; the table is asked again when they were seen."""
    text = """
        g (float[S, 64] x, float[64] s) => (float[R, 64] y)
        {
            large = Greater (x, zero)  at = NonZero (large)
            rows = Gather <axis = 0> (at, first)  a = Gather (x, rows)
            y = com.microsoft.QuickGelu (a)
        }
    """
    arrays = {"zero": np.float32(-100), "first": np.array(0)}
    model, clock = parse(text, weights=arrays), Clock(FASTER)
    form = Form("com.microsoft::QuickGelu", "Mul+Sigmoid+Mul", "", "float32", (4**9 * 4,))
    assert 128 * 64 * 64 == 2 * 4**9  # rounded up
    context = Context(probe=probe, compare_speed=clock, costs=table(SLOWER, form, name="own"))
    assert DropSlower().rewrite(model, context) == 1
    assert clock.asked == 0
    assert context.measured[0].endswith("by the own cost table")


KERNELS = {
    "Gemm": ("y = Gemm <transB = 1> (x, w, k)", "float[S, 64] x", ["Transpose", "MatMul", "Add"]),
    "Gemm without a sum": ("y = Gemm (x, v)", "float[S, 64] x", ["MatMul"]),
    "FusedMatMul": (
        "y = com.microsoft.FusedMatMul <transA = 1, transB = 1, alpha = 0.5> (x, w)", "float[B, 64, S] x",
        ["Transpose", "Transpose", "MatMul", "Mul"],
    ),
    "RMSNormalization": (
        "y = RMSNormalization <epsilon = 0.01> (x, k)", "float[S, 64] x",
        ["Mul", "ReduceMean", "Add", "Sqrt", "Div", "Mul"],
    ),
    "SimplifiedLayerNormalization": (
        "y = SimplifiedLayerNormalization <epsilon = 0.01> (x, k)", "float[S, 64] x",
        ["Mul", "ReduceMean", "Add", "Sqrt", "Div", "Mul"],
    ),
    "Relu": (
        'y = com.microsoft.FusedConv <activation = "Relu"> (x, c)', "float[B, 4, 7, 5] x", ["Conv", "Relu"],
    ),
    "HardSigmoid": (
        'y = com.microsoft.FusedConv <activation = "HardSigmoid", activation_params = [0.3, 0.4]> (x, c)',
        "float[B, 4, 7, 5] x", ["Conv", "HardSigmoid"],
    ),
    "Clip": (
        'y = com.microsoft.FusedConv <activation = "Clip", activation_params = [-0.5, 0.5]> (x, c)',
        "float[B, 4, 7, 5] x", ["Conv", "Clip"],
    ),
}  # fmt: skip
ARRAYS = weights(w=(64, 64), v=(64, 64), k=(64,), c=(6, 4, 3, 3))
OLD = {"SimplifiedLayerNormalization": 17}


@pytest.mark.parametrize(("name", "case"), KERNELS.items(), ids=KERNELS)
def test_kernels_are_written_out_where_the_table_says_so(name: str, case: tuple[str, str, list[str]]) -> None:
    nodes, inputs, after = case
    rank = "B, 6, P, Q" if "Conv" in nodes else "B, S, 64" if "FusedMatMul" in nodes else "S, 64"
    text = f"g ({inputs}) => (float[{rank}] y) {{ {nodes} }}"
    used = {key: array for key, array in ARRAYS.items() if f"{key})" in nodes or f" {key}," in nodes}
    for ratio, count in ((SLOWER, 1), (FASTER, 0), (NOISE, 0)):
        model = parse(text, weights=used, opset=OLD.get(name, 23))
        context = Context(costs=table(ratio, *forms(model)))
        expected = after if count else None
        check_pass(DropSlower(), model, expected, count=count, context=context)


@pytest.mark.parametrize(
    ("nodes", "inputs", "shown"),
    [
        ("y = Gemm <alpha = 0.5> (x, v)", "float[S, 64] x", "Gemm"),
        ("y = RMSNormalization <axis = 0> (x, k2)", "float[S, 64] x", "RMSNormalization"),
        ('y = com.microsoft.FusedConv <activation = "HardSwish"> (x, c)', "float[1, 4, 5, 5] x", "FusedConv"),
    ],
)
def test_what_cannot_be_written_out_stays(nodes: str, inputs: str, shown: str) -> None:
    text = f"g ({inputs}) => (float[S, 64] y) {{ {nodes} }}"
    model = parse(text, weights=ARRAYS | weights(k2=(1, 64)), opset=23)
    assert DropSlower().rewrite(model, Context(costs=table(SLOWER, *forms(model)))) == 0
    assert ops(model) == [shown]


def test_what_onnxruntime_fuses_itself_is_never_timed() -> None:
    model = parse("g (float[S, 64] x) => (float[S, 64] y) { y = Gemm (x, v) }", weights={"v": ARRAYS["v"]})
    clock = Clock(SLOWER)
    context = Context(probe=probe, compare_speed=clock, costs=Costs({}, SIZES))
    assert DropSlower().rewrite(model, context) == 0
    assert (clock.asked, context.misses) == (0, [])


CONV = "g (float[B, 4, 7, 5] x) => (float[B, 6, 5, 3] y) { a = Conv (x, c)  y = Relu (a) }"


def test_an_activation_stays_apart_where_the_table_says_so() -> None:
    fused = parse(CONV, weights={"c": ARRAYS["c"]})
    assert FuseConvActivation().rewrite(fused, Context()) == 1
    known = forms(fused)
    for ratio, after in ((SLOWER, ["Conv", "Relu"]), (FASTER, ["FusedConv"]), (NOISE, ["FusedConv"])):
        context, model = Context(costs=table(ratio, *known)), parse(CONV, weights={"c": ARRAYS["c"]})
        check_pass(FuseConvActivation(), model, after, count=int(ratio is not SLOWER), context=context)
        assert [miss.why for miss in context.misses] == (
            ["the cost table has Conv+Relu as faster"] if ratio is SLOWER else []
        )


def test_later_convs_are_looked_up_when_the_one_before_was_fused() -> None:
    text = """
        g (float[B, 4, 9, 9] x) => (float[B, 8, 5, 5] y)
        { a = Conv (x, c)  b = Relu (a)  d = Conv (b, e)  y = Relu (d) }
    """
    arrays = weights(c=(4, 4, 3, 3), e=(8, 4, 3, 3))
    fused = parse(text, weights=arrays)
    FuseConvActivation().rewrite(fused, Context())
    first, second = forms(fused)
    assert first != second
    context = Context(costs=table(SLOWER, second))
    check_pass(FuseConvActivation(), parse(text, weights=arrays), ["FusedConv", "Conv", "Relu"], count=1,
               context=context)  # fmt: skip


ATTENTION = """
    g (float[B, S, 64] q, float[B, S, 64] k, float[B, S, 64] v) => (float[B, S, 64] y)
    { y = Attention <q_num_heads = 2, kv_num_heads = 2> (q, k, v) }
"""
WHOLE = Form("com.microsoft::MultiHeadAttention", "Attention", "", "float32", (4, 128, 128, 32))


@pytest.mark.parametrize(("ratio", "after"), [
    (SLOWER, "Attention"), (FASTER, "MultiHeadAttention"), (NOISE, "MultiHeadAttention"),
])  # fmt: skip
def test_attention_takes_the_faster_operator(ratio: Ratio, after: str) -> None:
    """From the standard operator and from single steps, in both directions."""
    whole = parse(ATTENTION, opset=23)
    steps = parse(ATTENTION, opset=23)
    writing = Context(costs=table(SLOWER, *forms(steps)))
    assert DropSlower().rewrite(steps, writing) == 1
    assert "Softmax" in ops(steps)
    for model, other in ((whole, "Attention"), (steps, "")):
        context = Context(costs=table(ratio, WHOLE))
        check_pass(FuseAttention(), model, [after], count=int(after != other), context=context)
    if ratio is SLOWER:
        model, context = parse(ATTENTION, opset=23), Context(costs=table(ratio, WHOLE))
        FuseAttention().rewrite(model, context)
        assert context.misses[0].why.startswith("the cost table has the standard Attention as faster")


def test_below_opset_23_there_is_no_standard_attention() -> None:
    steps = parse(ATTENTION, opset=23)
    DropSlower().rewrite(steps, Context(costs=table(SLOWER, *forms(steps))))
    steps.graph.opset_imports[""] = 22
    FuseAttention().rewrite(steps, Context(costs=table(SLOWER, WHOLE)))
    assert ops(steps) == ["MultiHeadAttention"]


def test_a_bias_that_multi_head_attention_takes_in_outweighs_the_table() -> None:
    text = ATTENTION.replace("{ y", "{ p = Add (q, b) r = Add (k, b) s = Add (v, b) y").replace(
        "(q, k, v) }", "(p, r, s) }"
    )
    model = parse(text, weights=weights(b=(64,)), opset=23)
    context = Context(costs=table(SLOWER, WHOLE))
    check_pass(FuseAttention(), model, ["MultiHeadAttention"], count=1, context=context)


LAYER = """
    g (float[B, S, 64] x, float[B, S, 64] s) => (float[B, S, 64] y)
    { a = Add (x, s)  n = LayerNormalization <axis = -1> (a, k, b)  z = Sigmoid (n)  y = Mul (n, z) }
"""


@pytest.mark.parametrize("opposite", [False, True])
def test_a_recipe_fuses_and_lowers_by_the_table(opposite: bool) -> None:
    fused = parse(LAYER, weights=NORM)
    fusing = Recipe.parse("fuse-gelu,fuse-skip-norm")
    norm, gelu = forms(run_recipe(fusing, fused, Context(), None).model)
    slower, faster = (gelu, norm) if opposite else (norm, gelu)
    known = {slower: Known(SLOWER, "own"), faster: Known(FASTER, "own")}
    context = Context(costs=Costs(known, SIZES))  # type: ignore[arg-type]
    recipe = Recipe.parse("fuse-gelu,fuse-skip-norm,drop-slower,remove-unused")
    after = run_recipe(recipe, fused, context, None)
    apart = ["SkipLayerNormalization", "Sigmoid", "Mul"]
    assert ops(after.model) == (apart if opposite else ["Sum", "LayerNormalization", "QuickGelu"])
    receipt = next(each for each in after.receipts if each.step == "drop-slower")
    assert len(receipt.measured) == 2
    assert all("by the own cost table" in line for line in receipt.measured)
    again = run_recipe(recipe, after.model, context, None)
    assert to_bytes(again.model) == to_bytes(after.model)
    feeds = make_feeds(signature(fused).inputs, {"B": 2, "S": 5}, seed=0)
    before = Reference(to_bytes(fused))(feeds)["y"]
    np.testing.assert_allclose(Reference(to_bytes(after.model))(feeds)["y"], before, atol=1e-5)
