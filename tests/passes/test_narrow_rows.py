import numpy as np
import onnx_ir as ir
import pytest

from burnish.errors import BurnishError
from burnish.manifest import DimRange
from burnish.model import to_bytes
from burnish.passes.base import Context
from burnish.passes.fusion.narrow_rows import NarrowRows
from burnish.runtime.reference import Reference
from burnish.target import TARGETS
from burnish.testing import check_pass, parse

_RANDOM = np.random.default_rng(7)
WEIGHTS = {
    "w": _RANDOM.standard_normal((16, 16), np.float32) / 4,
    "up": _RANDOM.standard_normal((16, 32), np.float32) / 4,
    "down": _RANDOM.standard_normal((32, 16), np.float32) / 4,
    "b": _RANDOM.standard_normal(16, np.float32),
    "scale": _RANDOM.standard_normal(16, np.float32),
    "qkv": _RANDOM.standard_normal((16, 48), np.float32) / 4,
    "bqkv": _RANDOM.standard_normal(48, np.float32),
    "table": _RANDOM.standard_normal((1, 6, 16), np.float32),
    "first": np.array(0),
    "second": np.array(1),
    "last": np.array(-1),
    "row": np.array([0]),
    "rows": np.array([1, 0, 1]),
    "n0": np.array([0]),
    "n1": np.array([1]),
    "n2": np.array([2]),
    "n4": np.array([4]),
    "tall": np.ones((6, 16), np.float32),
    "back": np.array([-2]),
    "end": np.array([2**63 - 1]),
    "axis1": np.array([1]),
    "axis2": np.array([2]),
    "columns": np.array([3, 5]),
    "heads": np.array([0, 0, 2, 8]),
    "merged": np.array([0, 0, 16]),
}
X = "float[batch, seq, 16] x"


def graph(nodes: str, *, x: str = X, y: str = "float[batch, 16] y") -> str:
    return f"g ({x}) => ({y}) {{ {nodes} }}"


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def narrow(nodes: str, expected: list[str] | None, *, count: int = 1, opset: int = 20, **io: str) -> ir.Model:
    """Apply the pass; `expected` None: nothing may change."""
    text = graph(nodes, **io)
    before = ops(parse(text, weights=WEIGHTS))
    return check_pass(
        NarrowRows(), text, before if expected is None else expected,
        count=0 if expected is None else count, weights=WEIGHTS, opset=opset,
    )  # fmt: skip


def test_a_product_makes_the_row_that_is_read() -> None:
    model = check_pass(
        NarrowRows(),
        graph("p = MatMul (x, w)  y = Gather <axis = 1> (p, first)"),
        """
            [node_x_rows] x_rows = Gather <axis: int = 1> (x, x_rows_indices)
            [node_p_rows] p_rows = MatMul (x_rows, w)
            y = Gather <axis: int = 1> (p_rows, y_index)
        """,
        count=1,
        weights=WEIGHTS,
    )
    assert [str(dim) for dim in model.graph.node(1).outputs[0].shape or ()] == ["batch", "1", "16"]
    assert {node.metadata_props["burnish.pass"] for node in list(model.graph)[:2]} == {"narrow-rows"}


BLOCK = (
    "n = LayerNormalization (x, scale, b)  u = MatMul (n, up)  a = Gelu (u)  d = MatMul (a, down)"
    "  e = Add (d, b)  s = Add (e, x)"
)


@pytest.mark.parametrize("opset", [20, 23])
def test_a_residual_block_reads_the_same_row_once(opset: int) -> None:
    narrow(
        f"{BLOCK}  y = Gather <axis = 1> (s, last)",
        ["Gather", "LayerNormalization", "MatMul", "Gelu", "MatMul", "Add", "Add", "Gather"],
        opset=opset,
    )


SELECTIONS = {
    "a vector, which is left as it is": (
        "y = Gather <axis = 1> (p, row)", "float[batch, 1, 16] y", ["Gather", "MatMul"],
    ),
    "rows twice": (
        "y = Gather <axis = 1> (p, rows)", "float[batch, 3, 16] y", ["Gather", "MatMul", "Gather"],
    ),
    "the first two": ("y = Slice (p, n0, n2, axis1)", "float[batch, m, 16] y", ["Slice", "MatMul"]),
    "the last two": ("y = Slice (p, back, end, axis1)", "float[batch, m, 16] y", ["Slice", "MatMul"]),
}  # fmt: skip


@pytest.mark.parametrize(("node", "y", "left"), SELECTIONS.values(), ids=SELECTIONS)
def test_rows_are_chosen_in_several_ways(node: str, y: str, left: list[str]) -> None:
    text = graph(f"p = MatMul (x, w)  {node}", y=y)
    check_pass(NarrowRows(), text, left, count=1, weights=WEIGHTS, dims={"seq": DimRange(2, 9)})


def test_two_rows_of_one_value_are_made_together() -> None:
    nodes = (
        "p = MatMul (x, w)  f = Gather <axis = 1> (p, second)  g = Gather <axis = 1> (p, first)"
        "  y = Sub (f, g)"
    )
    model = check_pass(
        NarrowRows(), graph(nodes), ["Gather", "MatMul", "Gather", "Gather", "Sub"],
        count=1, weights=WEIGHTS, dims={"seq": DimRange(2, 9)},
    )  # fmt: skip
    indices = model.graph.node(0).inputs[1]
    assert indices is not None
    assert indices.const_value is not None
    assert indices.const_value.numpy().tolist() == [0, 1]


def test_an_index_may_be_computed_behind_what_it_narrows() -> None:
    nodes = "p = MatMul (x, w)  c = ReduceSum <keepdims = 0> (k)  y = Gather <axis = 1> (p, c)"
    check_pass(
        NarrowRows(),
        graph(nodes, x=f"{X}, int64[1] k"),
        ["ReduceSum", "Unsqueeze", "Gather", "MatMul", "Gather"],
        count=1,
        weights=WEIGHTS,
        dims={"seq": DimRange(200, 300)},
    )


def test_a_row_of_its_own_for_each_element_of_the_batch() -> None:
    nodes = (
        "p = MatMul (x, w)  a = Add (p, b)  sizes = Shape <start = 0, end = 1> (x)  n = Squeeze (sizes)"
        "  count = Range (first, n, second)  i = Unsqueeze (count, axis1)"
        "  j = ArgMax <axis = -1, keepdims = 1> (ids)  pairs = Concat <axis = -1> (i, j)"
        "  y = GatherND (a, pairs)"
    )
    model = narrow(
        nodes,
        ["ArgMax", "Unsqueeze", "GatherND", "MatMul", "Add", "Squeeze"],
        x=f"{X}, float[batch, seq] ids",
    )
    assert model.graph.node(2).attributes.get_int("batch_dims") == 1


def test_rows_that_differ_in_the_batch_stay_behind_what_moves_it() -> None:
    nodes = (
        "t = Transpose <perm = [1, 0, 2]> (x)  p = MatMul (t, w)  u = Transpose <perm = [1, 0, 2]> (p)"
        "  sizes = Shape <start = 0, end = 1> (x)  n = Squeeze (sizes)  count = Range (first, n, second)"
        "  i = Unsqueeze (count, axis1)  j = ArgMax <axis = -1, keepdims = 1> (ids)"
        "  pairs = Concat <axis = -1> (i, j)  y = GatherND (u, pairs)"
    )
    narrow(nodes, None, x=f"{X}, float[batch, seq] ids")


COLUMNS = {
    "several": ("g = Gather <axis = 2> (p, columns)", "float[batch, 2] y"),
    "the same index": ("g = Gather <axis = 2> (p, row)", "float[batch, 1] y"),
    "a slice": ("g = Slice (p, n0, n4, axis2)", "float[batch, 4] y"),
}


@pytest.mark.parametrize(("node", "y"), COLUMNS.values(), ids=COLUMNS)
def test_a_selection_of_columns_is_narrowed_itself(node: str, y: str) -> None:
    nodes = f"p = MatMul (x, w)  {node}  y = Gather <axis = 1> (g, first)"
    narrow(nodes, ["Gather", "MatMul", node.split()[2], "Gather"], y=y)


ATTENTION = (
    "r = Reshape (x, heads)  t = Transpose <perm = [0, 2, 1, 3]> (r)  k = Transpose <perm = [0, 1, 3, 2]> (t)"
    "  q = MatMul (t, k)  s = Softmax (q)  o = MatMul (s, t)  u = Transpose <perm = [0, 2, 1, 3]> (o)"
    "  m = Reshape (u, merged)"
)
APART = "p = MatMul (x, w)  l, r = Split <axis = -1, num_outputs = 2> (p)  c = Concat <axis = -1> (r, l)"
LAYOUT = {
    "heads apart": (
        f"{ATTENTION}  p = MatMul (m, w)  y = Gather <axis = 1> (p, first)",
        ["Reshape", "Transpose", "Transpose", "Gather", "MatMul", "Softmax", "MatMul", "Transpose", "Reshape",
         "MatMul", "Gather"],
    ),
    "along another axis": (
        f"{APART}  y = Gather <axis = 1> (c, first)", ["Gather", "MatMul", "Split", "Concat", "Gather"],
    ),
    "reduced": (
        "p = MatMul (x, w)  s = ReduceMax (p, axis2)  d = Sub (p, s)  y = Gather <axis = 1> (d, first)",
        ["Gather", "MatMul", "ReduceMax", "Sub", "Gather"],
    ),
    "a table of positions": (
        "p = MatMul (x, w)  a = Add (p, table)  y = Gather <axis = 1> (a, first)",
        ["Gather", "MatMul", "Gather", "Add", "Gather"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "left"), LAYOUT.values(), ids=LAYOUT)
def test_layout_that_keeps_the_axis_apart(nodes: str, left: list[str]) -> None:
    x = "float[batch, 6, 16] x" if "table" in nodes else X
    check_pass(NarrowRows(), graph(nodes, x=x), left, count=1, weights=WEIGHTS)


PACKED = "com.microsoft.Attention <num_heads = 2{}> (x, qkv, bqkv{})"


def attention(attributes: str = "", mask: str = "") -> str:
    return f"o = {PACKED.format(attributes, mask)}  p = MatMul (o, w)  y = Gather <axis = 1> (p, first)"


TAKEN_APART = ["Gather", "MatMul", "MatMul", "MatMul", "MultiHeadAttention", "MatMul", "Gather"]
MASKS = {
    "none": ("", X),
    "of keys": (", mask", f"{X}, int32[batch, seq] mask"),
    "of queries and keys": (", mask", f"{X}, int32[batch, seq, seq] mask"),
    "a bias": (", , , bias", f"{X}, float[batch, 2, seq, seq] bias"),
}


@pytest.mark.parametrize(("mask", "x"), MASKS.values(), ids=MASKS)
def test_packed_attention_is_taken_apart(mask: str, x: str) -> None:
    left = [*TAKEN_APART]
    if "seq, seq" in x:
        left.insert(1, "Gather")
    narrow(attention(mask=mask), left, x=x)


def test_parts_of_the_weight_have_their_own_sizes() -> None:
    narrow(attention(", qkv_hidden_sizes = [16, 16, 16], scale = 0.2"), TAKEN_APART)


def test_an_output_that_nothing_reads_is_no_hindrance() -> None:
    narrow(attention().replace("o = com", "o, present = com"), TAKEN_APART)


def test_without_a_kernel_attention_stays() -> None:
    context = Context(target=TARGETS["openvino"])
    left = ["Attention", "Gather", "MatMul", "Gather"]
    check_pass(NarrowRows(), graph(attention()), left, count=1, weights=WEIGHTS, context=context)


def test_queries_of_attention() -> None:
    nodes = (
        "q = MatMul (x, w)  o = com.microsoft.MultiHeadAttention <num_heads = 2> (q, m, m, , , bias)"
        "  y = Gather <axis = 1> (o, first)"
    )
    x = f"{X}, float[batch, total, 16] m, float[1, 2, seq, total] bias"
    narrow(nodes, ["Gather", "MatMul", "Gather", "MultiHeadAttention", "Gather"], x=x)


@pytest.mark.parametrize("mask", ["float[seq, total] mask", "bool[batch, 1, seq, total] mask"])
def test_queries_of_the_standard_attention(mask: str) -> None:
    nodes = (
        "q = MatMul (x, w)  o = Attention <q_num_heads = 2, kv_num_heads = 2> (q, m, m, mask)"
        "  y = Gather <axis = 1> (o, first)"
    )
    left = ["Gather", "MatMul", "Gather", "Attention", "Gather"]
    narrow(nodes, left, x=f"{X}, float[batch, total, 16] m, {mask}", opset=23)


def test_a_skip_norm_hands_on_its_sum() -> None:
    nodes = (
        "p = MatMul (x, w)  n, a, c, s = com.microsoft.SkipLayerNormalization (p, x, scale, b)"
        "  u = MatMul (n, w)  t = Add (u, s)  y = Gather <axis = 1> (t, first)"
    )
    narrow(nodes, ["Gather", "MatMul", "SkipLayerNormalization", "MatMul", "Add", "Gather"])


ROW, WHOLE = "float[batch, 16] y", "float[batch, seq, 16] z"
FIRST = "y = Gather <axis = 1> (p, first)"
BODIES = (
    "then_branch = t () => (float[batch, seq, 16] i) { i = Relu (p) }, "
    "else_branch = e () => (float[batch, seq, 16] j) { j = Neg (p) }"
)
KEPT = {
    "an output of the model": (f"z = MatMul (x, w)  {FIRST.replace('p', 'z')}", f"{ROW}, {WHOLE}"),
    "read whole too": (f"p = MatMul (x, w)  {FIRST}  z = Relu (p)", f"{ROW}, {WHOLE}"),
    "read along another axis too": (
        f"p = MatMul (x, w)  {FIRST}  z = Gather <axis = 2> (p, first)", f"{ROW}, float[batch, seq] z",
    ),
    "read in a body": (f"p = MatMul (x, w)  {FIRST}  z = If (c) <{BODIES}>", f"{ROW}, {WHOLE}"),
    "sums only": (f"q = Add (x, b)  p = Relu (q)  {FIRST}", ROW),
    "mixed by a softmax": (f"p = Softmax <axis = 1> (x)  {FIRST}", ROW),
    "mixed by a running sum": (f"p = CumSum (x, second)  {FIRST}", ROW),
    "mixed by a norm": (f"p = LayerNormalization <axis = 1> (x, tall)  {FIRST}", ROW),
    "causal": (f"p = {PACKED.format(', unidirectional = 1', '')}  {FIRST}", ROW),
    "columns": ("p = MatMul (x, w)  y = Gather <axis = 2> (p, first)", "float[batch, seq] y"),
    "the first and all": (
        f"p = MatMul (x, w)  {FIRST}  r = Slice (p, n1, end, axis1)  z = ReduceMax <keepdims = 0> (r, axis1)",
        f"{ROW}, float[batch, 16] z",
    ),
    "all but one": ("p = MatMul (x, w)  y = Slice (p, n1, end, axis1)", "float[batch, m, 16] y"),
    "most of what is there": ("p = MatMul (x, w)  y = Slice (p, n0, n4, axis1)", "float[batch, 4, 16] y"),
    "rows from both ends": (
        f"p = MatMul (x, w)  f = {FIRST[4:]}  g = Gather <axis = 1> (p, last)  y = Add (f, g)", ROW,
    ),
    "two sums for one": (f"p = com.microsoft.SkipLayerNormalization (x, r, scale, b)  {FIRST}", ROW),
}  # fmt: skip


def kept_input(nodes: str) -> str:
    return "float[batch, 6, 16] x" if any(name in nodes for name in ("tall", "n4", "ReduceMax")) else X


@pytest.mark.parametrize(("nodes", "y"), KEPT.values(), ids=KEPT)
def test_left_alone(nodes: str, y: str) -> None:
    x = kept_input(nodes)
    x += ", bool c" if "(c)" in nodes else ""
    x += ", float[batch, seq, 16] r" if ", r," in nodes else ""
    narrow(nodes, None, x=x, y=y)


TOLD = {
    "the first and all": "other parts of what it reads from are read too",
    "an output of the model": "what it reads from is an output of the model",
    "read whole too": "what it reads from is read as a whole too",
    "causal": "it cannot be moved before the Attention",
}


@pytest.mark.parametrize(("case", "why"), TOLD.items())
def test_near_misses_are_told(case: str, why: str) -> None:
    context, (nodes, y) = Context(), KEPT[case]
    NarrowRows().rewrite(parse(graph(nodes, x=kept_input(nodes), y=y), weights=WEIGHTS), context)
    assert [(miss.value, miss.why) for miss in context.misses] == [("y", why)]


def test_two_towers_are_two_rewrites() -> None:
    nodes = f"p = MatMul (x, w)  {FIRST}  q = MatMul (v, w)  z = Gather <axis = 1> (q, first)"
    x, y = f"{X}, float[batch, seq, 16] v", "float[batch, 16] y, float[batch, 16] z"
    narrow(nodes, ["Gather", "MatMul", "Gather"] * 2, count=2, x=x, y=y)


EMPTY = {"no batch": (0, 4), "no rows": (2, 0), "one row": (2, 1)}


@pytest.mark.parametrize(("batch", "rows"), EMPTY.values(), ids=EMPTY)
def test_sizes_at_the_edge(batch: int, rows: int) -> None:
    nodes = f"o = {PACKED.format('', '')}  p = MatMul (o, w)  y = Slice (p, n0, n1, axis1)"
    model = parse(graph(nodes, y="float[batch, m, 16] y"), weights=WEIGHTS)
    feeds = {"x": _RANDOM.standard_normal((batch, rows, 16), np.float32)}
    before = Reference(to_bytes(model))(feeds)["y"]
    assert NarrowRows().rewrite(model, Context()) == 1
    after = Reference(to_bytes(model))(feeds)["y"]
    assert after.shape == before.shape
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("index", ["first", "last"])
def test_a_row_that_is_not_there_stays_an_error(index: str) -> None:
    model = parse(graph(f"p = MatMul (x, w)  y = Gather <axis = 1> (p, {index})"), weights=WEIGHTS)
    feeds = {"x": np.zeros((2, 0, 16), np.float32)}
    for _ in range(2):
        with pytest.raises(BurnishError):
            Reference(to_bytes(model))(feeds)
        assert NarrowRows().rewrite(model, Context()) <= 1
    assert ops(model) == ["Gather", "MatMul", "Gather"]
