import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import pytest

from burnish.costs import Ratio
from burnish.errors import ModelError
from burnish.feeds import make_feeds
from burnish.model import expose, signature, to_bytes
from burnish.passes.base import Context
from burnish.passes.drop_slower import DropSlower
from burnish.passes.fusion.alone import INVERSES
from burnish.passes.matching import MADE_BY
from burnish.passes.registry import load_pass
from burnish.runtime.reference import Reference
from burnish.testing import check_pass, parse

Feeds = Mapping[str, np.ndarray]
RNG = np.random.default_rng(0)


def weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def probe(model: ir.Model, names: Sequence[str]) -> dict[str, np.ndarray]:
    specs = signature(model).inputs
    dims = {dim: 3 for spec in specs for dim in spec.shape or () if isinstance(dim, str)}
    return Reference(to_bytes(expose(model, names)))(make_feeds(specs, dims, seed=1), names)


def timed(model: ir.Model, feeds: Feeds, times: int = 3) -> tuple[float, Feeds]:
    session = Reference(to_bytes(model))
    started = time.perf_counter()
    for _ in range(times):
        result = session(feeds)
    return time.perf_counter() - started, result


class Clock:
    """Says the ratios it is given, by op type, after checking that both models compute the same."""

    def __init__(self, **ratios: float) -> None:
        self.ratios, self.asked = ratios, []

    def __call__(self, fused: ir.Model, standard: ir.Model, feeds: Feeds) -> Ratio:
        (node,) = fused.graph
        assert {n.domain for n in standard.graph} == {""}
        assert set(feeds) == {value.name for value in fused.graph.inputs}
        _, before = timed(fused, feeds, times=1)
        _, after = timed(standard, feeds, times=1)
        for name, array in before.items():
            np.testing.assert_allclose(after[name], array, atol=1e-5)
        self.asked.append(node.op_type)
        return Ratio.exactly(self.ratios.get(node.op_type, 2.0))


def measured(clock: Callable[..., Ratio] | None = None) -> Context:
    return Context(probe=probe, compare_speed=clock or Clock())


def graph(nodes: str, x: str, y: str) -> str:
    return f"g ({x}) => ({y}) {{ {nodes} }}"


XS, Y = "float[B, S, 4] x, float[B, S, 4] s", "float[B, S, 4] y"
SKIP = "com.microsoft.SkipLayerNormalization <epsilon = 0.001>"
NORM = weights(k=(4,), b=(4,), c=(4,))


def test_skip_norm() -> None:
    check_pass(
        DropSlower(),
        graph(f"y = {SKIP} (x, s, k, b)", XS, Y),
        """
            [node_y_sum] y_sum = Sum (x, s)
            y = LayerNormalization <axis: int = -1, epsilon: float = 0.001> (y_sum, k, b)
        """,
        count=1,
        weights=NORM,
        context=measured(),
    )


def test_skip_norm_with_bias_and_sum() -> None:
    model = check_pass(
        DropSlower(),
        graph(f"y, , , t = {SKIP} (x, s, k, , c)  z = Neg (t)", XS, Y + ", float[B, S, 4] z"),
        ["Sum", "LayerNormalization", "Neg"],
        count=1,
        weights=NORM,
        context=measured(),
    )
    assert [value.name for value in model.graph.node(0).inputs] == ["x", "s", "c"]
    assert model.graph.node(0).outputs[0].name == "t"


def test_skip_rms_norm() -> None:
    text = graph("y = com.microsoft.SkipSimplifiedLayerNormalization (x, s, k, c)", XS, Y)
    after = ["Sum", "RMSNormalization"]
    check_pass(DropSlower(), text, after, count=1, opset=23, weights=NORM, context=measured())


def test_opset_without_the_norm_has_onnxruntimes_own() -> None:
    text = graph("y = com.microsoft.SkipSimplifiedLayerNormalization (x, s, k)", XS, Y)
    after = ["Sum", "SimplifiedLayerNormalization"]
    check_pass(DropSlower(), text, after, count=1, opset=22, weights=NORM, context=measured())


def test_skip_layer_norm_of_old_opsets() -> None:
    text = graph("y = com.microsoft.SkipLayerNormalization (x, s, k)", XS, Y)
    after = ["Sum", "LayerNormalization"]
    check_pass(DropSlower(), text, after, count=1, opset=16, weights=NORM, context=measured())


TANH_FORM = ["Mul", "Mul", "Add", "Mul", "Mul", "Tanh", "Add", "Mul", "Mul"]
ACTIVATIONS = {
    "BiasGelu (x, c)": (["Add", "Gelu"], ["Add", "Mul", "Erf", "Add", "Mul", "Mul"]),
    "Gelu (x)": (["Gelu"], ["Mul", "Erf", "Add", "Mul", "Mul"]),
    "FastGelu (x, c)": (["Add", "Gelu"], ["Add", *TANH_FORM]),
    "QuickGelu (x)": (["Mul", "Sigmoid", "Mul"], ["Mul", "Sigmoid", "Mul"]),
    "QuickGelu <alpha = 1.0> (x)": (["Sigmoid", "Mul"], ["Sigmoid", "Mul"]),
}  # fmt: skip


@pytest.mark.parametrize("node", ACTIVATIONS)
@pytest.mark.parametrize("opset", [20, 17])
def test_activations(node: str, opset: int) -> None:
    text = graph(f"y = com.microsoft.{node}", "float[B, S, 4] x", Y)
    after = ACTIVATIONS[node][0 if opset >= 20 else 1]
    check_pass(DropSlower(), text, after, count=1, opset=opset, weights=NORM, context=measured())


QKV = "float[B, S, 8] q, float[B, T, 8] k, float[B, T, 8] v"
HEAD = "y = com.microsoft.MultiHeadAttention <num_heads = 2>"
ATTENDED = ["MatMul", "Softmax", "MatMul"]
HEADS = {
    "plain": (f"{HEAD} (q, k, v)", "", ATTENDED),
    "scale": (f"{HEAD.replace('>', ', scale = 0.7>')} (q, k, v)", "", ATTENDED),
    "bias": (f"{HEAD} (q, k, v, b)", "", ["Add"] * 3 + ATTENDED),
    "mask": (f"{HEAD} (q, k, v, , m)", ", int32[B, T] m", ["MatMul", "Add", *ATTENDED[1:]]),
    "attention bias": (
        f"{HEAD} (q, k, v, , , a)", ", float[B, 1, S, T] a", ["MatMul", "Add", *ATTENDED[1:]],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "more", "after"), HEADS.values(), ids=HEADS)
def test_multi_head_attention(nodes: str, more: str, after: list[str]) -> None:
    text = graph(nodes, QKV + more, "float[B, S, 8] y")
    arrays = weights(b=(24,)) if "b)" in nodes else {}
    model = check_pass(DropSlower(), text, count=1, weights=arrays, context=measured())
    main = [n.op_type for n in model.graph if n.op_type in ("Add", "MatMul", "Softmax")]
    assert main == after


PACKED = "y = com.microsoft.Attention <num_heads = 2>"


@pytest.mark.parametrize(
    ("nodes", "more"),
    [
        (f"{PACKED} (x, w, b)", ""),
        (f"{PACKED} (x, w, b, m)", ", int32[B, S] m"),
        (f"{PACKED} (x, w, b, , , a)", ", float[B, 2, S, S] a"),
    ],
    ids=["plain", "mask", "attention bias"],
)
def test_packed_attention(nodes: str, more: str) -> None:
    text = graph(nodes, "float[B, S, 6] x" + more, "float[B, S, 8] y")
    arrays = weights(w=(6, 24), b=(24,))
    model = check_pass(DropSlower(), text, count=1, weights=arrays, context=measured())
    assert [n.op_type for n in model.graph][:3] == ["MatMul", "Add", "Split"]


FIRST = {"first": np.array([True, False, False, False, False])}


@pytest.mark.parametrize("mask", ["", "bool[S, 5]", "bool[B, 1, S, 5]", "float[B, 1, S, 5]"])
@pytest.mark.parametrize("apart", [True, False], ids=["rank 4", "rank 3"])
def test_standard_attention(mask: str, apart: bool) -> None:
    shape, heads = ("2, {}, 4", "") if apart else ("{}, 8", "<q_num_heads = 2, kv_num_heads = 2>")
    q, kv = f"float[B, {shape.format('S')}]", f"float[B, {shape.format(5)}]"
    inputs = f"{q} q, {kv} k, {kv} v" + (mask and f", {mask} m")
    nodes = f"y = Attention {heads} (q, k, v{', m' if mask else ''})"
    if "bool" in mask:  # a row that sees nothing has no defined result, so all see the first key
        nodes = "n = Or (m, first) " + nodes.replace("m)", "n)")
    arrays = FIRST if "bool" in mask else {}
    text = graph(nodes, inputs, f"{q} y")
    check_pass(DropSlower(), text, count=1, opset=23, weights=arrays, context=measured())


@pytest.mark.parametrize(
    ("nodes", "more", "why"),
    [
        (f"{HEAD} (q, k, v, , m)", ", int32[B] m", "its mask is given by lengths"),
        (HEAD.replace(">", ", unidirectional = 1>") + " (q, k, v)", "", "it is causal or rotates its inputs"),
        (f"{HEAD} (q, k, v, b)", ", float[24] b", "its bias cannot be split"),
    ],
)
def test_attention_that_stays(nodes: str, more: str, why: str) -> None:
    context, feeds = measured(), {"q": (2, 3, 8), "k": (2, 3, 8), "v": (2, 3, 8), "m": (2,), "b": (24,)}
    context.probe = lambda _, names: {name: np.ones(feeds[name], np.float32) for name in names}
    model = parse(graph(nodes, QKV + more, "float[B, S, 8] y"))
    assert DropSlower().rewrite(model, context) == 0
    assert context.misses[0].why == f"cannot be written in standard ops: {why}"


def test_faster_fused_op_stays() -> None:
    text = graph(f"y = {SKIP} (x, s, k)", XS, Y)
    for ratio, count in ((0.5, 0), (1.04, 0), (1.06, 1)):
        clock = Clock(SkipLayerNormalization=ratio)
        check_pass(DropSlower(), text, count=count, weights=NORM, context=measured(clock))


def test_margin_is_an_option() -> None:
    text, clock = graph(f"y = {SKIP} (x, s, k)", XS, Y), Clock(SkipLayerNormalization=1.5)
    check_pass(DropSlower(margin=1.6), text, count=0, weights=NORM, context=measured(clock))
    assert str(DropSlower(margin=1.6)) == "drop-slower{margin=1.6}"


def test_each_distinct_op_is_timed_once() -> None:
    clock = Clock()
    nodes = f"""
        a = {SKIP} (x, s, k)  d = {SKIP} (a, s, b)  e = {SKIP} (d, s, k, b)
        f = com.microsoft.QuickGelu (e)  y = com.microsoft.QuickGelu <alpha = 1.0> (f)
    """
    model = parse(graph(nodes, XS, Y), weights=NORM)
    assert DropSlower().rewrite(model, measured(clock)) == 5
    assert clock.asked == ["SkipLayerNormalization"] * 2 + ["QuickGelu"] * 2


def test_only_the_slower_ones_go() -> None:
    clock = Clock(QuickGelu=0.9)
    text = graph(f"a = {SKIP} (x, s, k)  y = com.microsoft.QuickGelu (a)", XS, Y)
    after = ["Sum", "LayerNormalization", "QuickGelu"]
    check_pass(DropSlower(), text, after, count=1, weights=NORM, context=measured(clock))


def test_without_a_timer_nothing_happens() -> None:
    for context in (Context(), Context(probe=probe), Context(compare_speed=Clock())):
        check_pass(
            DropSlower(), graph(f"y = {SKIP} (x, s, k)", XS, Y), count=0, weights=NORM, context=context
        )
        assert context.misses[0].why == "not measured: nothing can run the model here"


def test_a_timer_that_fails_is_told() -> None:
    def broken(*_: object) -> Ratio:
        raise ModelError("It does not load.", "Look at the node.")

    context = measured(broken)
    check_pass(DropSlower(), graph(f"y = {SKIP} (x, s, k)", XS, Y), count=0, weights=NORM, context=context)
    assert context.misses[0].why == "not measured: It does not load."


def test_bodies_and_functions_are_not_measured() -> None:
    text = """
        <ir_version: 10, opset_import: ["": 20, "com.microsoft": 1, "f": 1]>
        g (bool c, float[N] x) => (float[M] y) {
            y = If (c) <
                then_branch = t () => (float[M] p) { p = com.microsoft.QuickGelu (x) },
                else_branch = e () => (float[M] q) { q = f.act (x) }
            >
        }
        <domain: "f", opset_import: ["": 20, "com.microsoft": 1]>
        act (x) => (y) { y = com.microsoft.Gelu (x) }
    """
    context = measured()
    check_pass(DropSlower(), parse(text), count=0, context=context)
    assert [miss.why for miss in context.misses] == ["not measured: it is in a body or function"] * 2


def test_names_and_metadata() -> None:
    model = parse(graph(f"y = {SKIP} (x, s, k)", XS, Y), weights=NORM)
    model.graph.node(0).name = "norm"
    model.graph.node(0).metadata_props.update({"scope": "layer.0", MADE_BY: "fuse-skip-norm"})
    DropSlower().rewrite(model, measured())
    assert [node.name for node in model.graph] == ["node_y_sum", "norm"]
    for node in model.graph:
        assert dict(node.metadata_props) == {"scope": "layer.0", MADE_BY: "drop-slower"}


def test_it_undoes_what_the_fusions_did() -> None:
    text = graph("a = Add (x, c)  h = Gelu (a)  d = Add (h, s)  y = LayerNormalization (d, k)", XS, Y)
    model = parse(text, weights=NORM)
    for name in ("fuse-bias-gelu", "fuse-skip-norm"):
        assert load_pass(name)().rewrite(model, Context()) == 1
    after = ["Add", "Gelu", "Sum", "LayerNormalization"]
    check_pass(DropSlower(), model, after, count=2, context=measured())


def test_really_timed_by_onnxruntime() -> None:
    def compare(fused: ir.Model, standard: ir.Model, feeds: Feeds) -> Ratio:
        (slow, before), (fast, after) = timed(fused, feeds), timed(standard, feeds)
        np.testing.assert_allclose(before["output_0"], after["output_0"], atol=1e-5)
        return Ratio.exactly(slow / fast)

    model = parse(graph(f"y = {SKIP} (x, s, k)", XS, Y), weights=NORM)
    specs = signature(model).inputs
    feeds = make_feeds(specs, {"B": 2, "S": 5}, seed=0)
    before = Reference(to_bytes(model))(feeds)
    assert DropSlower(margin=0.0).rewrite(model, measured(compare)) == 1
    np.testing.assert_allclose(Reference(to_bytes(model))(feeds)["y"], before["y"], atol=1e-5)


def test_every_inverse_is_of_an_op_with_a_fusion_or_a_kernel() -> None:
    contrib = Context().target.contrib
    assert {op_type for domain, op_type in INVERSES if domain} <= contrib
