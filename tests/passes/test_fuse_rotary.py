import numpy as np
import onnx_ir as ir
import pytest

from burnish.model import to_bytes
from burnish.passes.base import Context
from burnish.passes.fusion.fuse_rotary import FuseRotary
from burnish.runtime.reference import Reference
from burnish.target import TARGETS
from burnish.testing import check_pass, parse

HEADS, SIZE = 2, 4
HIDDEN = HEADS * SIZE
INTS = {
    "split": np.array([0, 0, HEADS, SIZE], np.int64), "join": np.array([0, 0, HIDDEN], np.int64),
    "zero": np.array([0], np.int64), "middle": np.array([SIZE // 2], np.int64),
    "end": np.array([2**62], np.int64), "last": np.array([-1], np.int64), "one": np.array([1], np.int64),
    "sizes": np.array([SIZE // 2, SIZE // 2], np.int64),
}  # fmt: skip
TABLES = "f = Concat <axis = -1> (a, a)  cos = Cos (f)  sin = Sin (f)\n"
WIDE = TABLES + "c = Unsqueeze (cos, one)  s = Unsqueeze (sin, one)\n"
SLICES = "lower = Slice (x, zero, middle, last, one)  upper = Slice (x, middle, end, last, one)\n"
TURN = "n = Neg (upper)  t = Concat <axis = -1> (n, lower)  p = Mul (t, s)  q = Mul (x, c)  y = Add (q, p)\n"
FORMS = {
    "slices": WIDE + SLICES + TURN,
    "no steps": WIDE + SLICES.replace(", last, one)", ", last)") + TURN,
    "split": WIDE + "lower, upper = Split <axis = -1> (x, sizes)\n" + TURN,
    "operands swapped": WIDE + SLICES + TURN.replace("(t, s)", "(s, t)").replace("(q, p)", "(p, q)"),
    "scaled": WIDE.replace("cos = Cos (f)", "d = Cos (f)  cos = Mul (d, half)") + SLICES + TURN,
}
INPUTS = f"float[B, {HEADS}, S, {SIZE}] x, float[B, S, {SIZE // 2}] a"
OUTPUT = f"float[B, {HEADS}, S, {SIZE}] y"


def graph(nodes: str, inputs: str = INPUTS, output: str = OUTPUT) -> str:
    return f"g ({inputs}) => ({output}) {{ {nodes} }}"


def used(nodes: str) -> dict[str, np.ndarray]:
    arrays = INTS | {"half": np.array(0.5, np.float32)}
    return {name: array for name, array in arrays.items() if any(f", {name}{e}" in nodes for e in ",)")}


def rotary(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "RotaryEmbedding"]


@pytest.mark.parametrize("nodes", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("opset", [20, 23])
def test_forms(nodes: str, opset: int) -> None:
    model = check_pass(FuseRotary(), graph(nodes), count=1, opset=opset, weights=used(nodes))
    (node,) = rotary(model)
    assert node.domain == ("" if opset == 23 else "com.microsoft")
    assert [each.op_type for each in model.graph if each.op_type in ("Neg", "Add")] == []


JOINED = f"""
    {WIDE}
    r = Reshape (h, split)
    x = Transpose <perm = [0, 2, 1, 3]> (r)
    {SLICES}
    {TURN.replace("y = Add", "z = Add")}
    u = Transpose <perm = [0, 2, 1, 3]> (z)
    y = Reshape (u, join)
"""
JOINED_INPUTS = f"float[B, S, {HIDDEN}] h, float[B, S, {SIZE // 2}] a"
JOINED_OUTPUT = f"float[B, S, {HIDDEN}] y"


@pytest.mark.parametrize("opset", [20, 23])
def test_heads_that_are_joined_again_are_not_split(opset: int) -> None:
    text = graph(JOINED, JOINED_INPUTS, JOINED_OUTPUT)
    model = check_pass(FuseRotary(), text, count=1, opset=opset, weights=used(JOINED))
    (node,) = rotary(model)
    assert node.attributes.get_int("num_heads") == HEADS
    assert node.inputs[0] is not None
    assert node.inputs[0].name == "h"
    assert node.outputs[0].name == "y"


def test_a_norm_of_the_heads_between() -> None:
    nodes = JOINED.replace("x = Transpose <perm = [0, 2, 1, 3]> (r)",
                           "m = Relu (r)  x = Transpose <perm = [0, 2, 1, 3]> (m)")  # fmt: skip
    text = graph(nodes, JOINED_INPUTS, JOINED_OUTPUT)
    model = check_pass(FuseRotary(), text, count=1, opset=23, weights=used(nodes))
    (node,) = rotary(model)
    assert node.inputs[0] is not None
    assert node.inputs[0].producer().op_type == "Reshape"  # type: ignore[union-attr]


def test_heads_that_are_used_apart_stay_apart() -> None:
    nodes = JOINED.replace("y = Reshape (u, join)", "y = Reshape (u, join)  k = Relu (z)")
    text = graph(nodes, JOINED_INPUTS, f"{JOINED_OUTPUT}, float[B, {HEADS}, S, {SIZE}] k")
    model = check_pass(FuseRotary(), text, count=1, opset=23, weights=used(nodes))
    (node,) = rotary(model)
    assert node.attributes.get_int("num_heads") == HEADS
    made = {each.outputs[0].name: each.op_type for each in model.graph}
    assert made["z"] == "Transpose"
    assert made["y"] == "Reshape"


def test_queries_and_keys_share_the_tables() -> None:
    again = (SLICES + TURN).replace("(x,", "(k,")
    for name in ("lower", "upper", "n", "t", "p", "q", "y"):
        again = again.replace(f"{name} =", f"{name}2 =").replace(f"({name})", f"({name}2)")
        again = again.replace(f"({name},", f"({name}2,").replace(f", {name})", f", {name}2)")
    nodes = FORMS["slices"] + again
    text = graph(
        nodes, f"{INPUTS}, float[B, {HEADS}, S, {SIZE}] k", f"{OUTPUT}, float[B, {HEADS}, S, {SIZE}] y2"
    )
    model = check_pass(FuseRotary(), text, count=2, opset=20, weights=used(nodes))
    first, second = rotary(model)
    assert list(first.inputs)[1:] == list(second.inputs)[1:]
    assert sum(node.op_type == "Range" for node in model.graph) == 1


PARTIAL = f"""
    {WIDE}
    x = Slice (w, zero, turned, last, one)
    rest = Slice (w, turned, end, last, one)
    {SLICES}
    {TURN.replace("y = Add", "z = Add")}
    y = Concat <axis = -1> (z, rest)
"""


@pytest.mark.parametrize("opset", [20, 23])
def test_only_the_first_features_are_turned(opset: int) -> None:
    wide = f"float[B, {HEADS}, S, 10]"
    text = graph(PARTIAL, f"{wide} w, float[B, S, {SIZE // 2}] a", f"{wide} y")
    weights = used(PARTIAL) | {"turned": np.array([SIZE], np.int64)}
    model = check_pass(FuseRotary(), text, count=1, opset=opset, weights=weights)
    (node,) = rotary(model)
    assert node.attributes.get_int("rotary_embedding_dim") == SIZE
    assert node.inputs[0] is not None
    assert node.inputs[0].name == "w"


def test_features_that_do_not_follow_stay_apart() -> None:
    wide, nodes = (
        f"float[B, {HEADS}, S, 10]",
        PARTIAL.replace("Slice (w, turned, end", "Slice (w, sixth, end"),
    )
    text = graph(nodes, f"{wide} w, float[B, S, {SIZE // 2}] a", f"float[B, {HEADS}, S, 8] y")
    weights = used(nodes) | {"turned": np.array([SIZE], np.int64), "sixth": np.array([6], np.int64)}
    model = check_pass(FuseRotary(), text, count=1, opset=23, weights=weights)
    (node,) = rotary(model)
    assert "rotary_embedding_dim" not in node.attributes


@pytest.mark.parametrize("opset", [20, 23])
def test_one_table_serves_every_sentence(opset: int) -> None:
    text = graph(FORMS["slices"], INPUTS.replace("[B, S, 2] a", "[1, S, 2] a"))
    model = check_pass(FuseRotary(), text, count=1, opset=opset, weights=used(FORMS["slices"]))
    (node,) = rotary(model)
    assert node.domain == "com.microsoft"
    assert not any(each.op_type == "Range" for each in model.graph)


def test_the_standard_operator_serves_the_only_sentence() -> None:
    text = graph(FORMS["slices"], INPUTS.replace("[B, ", "[1, "), OUTPUT.replace("[B, ", "[1, "))
    model = check_pass(FuseRotary(), text, count=1, opset=23, weights=used(FORMS["slices"]))
    assert rotary(model)[0].domain == ""


APART = f"""
    {WIDE}
    r = Reshape (h, split)
    x = Transpose <perm = [0, 2, 1, 3]> (r)
    {SLICES}
    {TURN}
"""


@pytest.mark.parametrize("batch", ["B", "1"])
def test_it_comes_before_heads_are_split(batch: str) -> None:
    text = graph(APART, JOINED_INPUTS.replace("[B, S, 2] a", f"[{batch}, S, 2] a"))
    model = check_pass(FuseRotary(), text, count=1, opset=20, weights=used(APART))
    (node,) = rotary(model)
    assert node.inputs[0] is not None
    assert node.inputs[0].name == "h"
    assert node.attributes.get_int("num_heads") == HEADS
    assert [each.op_type for each in model.graph][-2:] == ["Reshape", "Transpose"]


@pytest.mark.parametrize(
    ("more", "output"),
    [
        ("v = Relu (x)", f"float[B, {HEADS}, S, {SIZE}] v"),
        ("v = Relu (r)", f"float[B, S, {HEADS}, {SIZE}] v"),
    ],
)
def test_heads_that_are_read_elsewhere_are_split_once(more: str, output: str) -> None:
    nodes = APART + more
    text = graph(nodes, JOINED_INPUTS, f"{OUTPUT}, {output}")
    model = check_pass(FuseRotary(), text, count=1, opset=20, weights=used(nodes))
    assert "num_heads" not in rotary(model)[0].attributes
    assert sum(each.op_type == "Transpose" for each in model.graph) == 1


def test_heads_of_other_sentences_are_split_first() -> None:
    """A Reshape may move tokens from one sentence to the next: they are counted anew there."""
    nodes, sizes = APART.replace("Reshape (h, split)", "Reshape (h, other)"), np.array([-1, 2, HEADS, SIZE])
    inputs = f"float[B, 6, {HIDDEN}] h, float[1, 2, {SIZE // 2}] a"
    text = graph(nodes, inputs, f"float[C, {HEADS}, 2, {SIZE}] y")
    model = check_pass(FuseRotary(), text, count=1, opset=20, weights=used(nodes) | {"other": sizes})
    assert "num_heads" not in rotary(model)[0].attributes


REFUSED = {
    "another length": (
        FORMS["slices"], INPUTS.replace("[B, S, 2] a", "[1, 1, 2] a"),
        "cosines do not provably have the batch and sequence of what they are multiplied with",
    ),
    "halves that differ": (
        FORMS["slices"].replace("Concat <axis = -1> (a, a)", "Concat <axis = -1> (a, b)"),
        INPUTS + ", float[B, S, 2] b", "the halves of the cosines are not provably alike",
    ),
    "float64": (
        FORMS["slices"], INPUTS.replace("float[", "double["),
        "RotaryEmbedding takes float32 or float16, not DOUBLE",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "inputs", "why"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_said(nodes: str, inputs: str, why: str) -> None:
    output = OUTPUT.replace("float", "double") if "double" in inputs else OUTPUT
    context = Context()
    text = graph(nodes, inputs, output)
    check_pass(FuseRotary(), text, count=0, opset=23, weights=used(nodes), context=context)
    assert [miss.why for miss in context.misses[:1]] == [why]


def test_a_target_without_the_kernel_keeps_the_arithmetic() -> None:
    nodes, context = FORMS["slices"], Context(target=TARGETS["openvino"])
    check_pass(FuseRotary(), graph(nodes), count=0, weights=used(nodes), context=context)
    assert context.misses[0].why == "target openvino has no kernel for com.microsoft::RotaryEmbedding"


def test_an_old_opset_keeps_the_arithmetic() -> None:
    """Found by `make fuzz-graphs`: Shape has no `start` there."""
    context = Context()
    nodes = FORMS["slices"]
    check_pass(FuseRotary(), graph(nodes), count=0, opset=13, weights=used(nodes), context=context)
    assert context.misses[0].why == "numbering the tokens needs opset 15; this graph has 13"


def test_no_tokens_at_all() -> None:
    """Found by `make fuzz-graphs`: a Reshape that takes 0 for "as it was"."""
    model = parse(graph(FORMS["slices"]), opset=20, weights=used(FORMS["slices"]))
    assert FuseRotary().rewrite(model, Context()) == 1
    feeds = {"x": np.zeros((2, HEADS, 0, SIZE), np.float32), "a": np.zeros((2, 0, SIZE // 2), np.float32)}
    assert Reference(to_bytes(model))(feeds)["y"].shape == (2, HEADS, 0, SIZE)


ALMOST = {
    "the other half negated": FORMS["slices"]
    .replace("Neg (upper)", "Neg (lower)")
    .replace("n, lower", "n, upper"),
    "another cut": FORMS["slices"].replace("Slice (x, middle, end", "Slice (x, one, middle"),
    "not multiplied itself": FORMS["slices"].replace("q = Mul (x, c)", "r = Relu (x)  q = Mul (r, c)"),
}


@pytest.mark.parametrize("nodes", ALMOST.values(), ids=ALMOST)
def test_what_is_almost_it_stays(nodes: str) -> None:
    model = parse(graph(nodes), opset=23, weights=used(nodes))
    assert FuseRotary().rewrite(model, Context()) == 0


def test_axes_that_are_attributes_are_left() -> None:
    nodes = (FORMS["slices"]).replace("Unsqueeze (cos, one)", "Unsqueeze <axes = [1]> (cos)")
    nodes = nodes.replace("Unsqueeze (sin, one)", "Unsqueeze <axes = [1]> (sin)")
    check_pass(FuseRotary(), graph(nodes), count=0, opset=12, weights=used(nodes))
