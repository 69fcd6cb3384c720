import numpy as np
import pytest

from burnish.passes.base import Context
from burnish.passes.cleanup.merge_transposes import MergeTransposes
from burnish.testing import check_pass, parse

ROW = np.arange(4, dtype=np.float32)
BLOCK = np.arange(12, dtype=np.float32).reshape(3, 4)
WEIGHTS = {
    "half": np.array(0.5, np.float32), "six": np.array(6, np.float32), "row": ROW, "block": BLOCK,
    "one": np.array([1]), "last": np.array([-1]), "two": np.array([2]), "far": np.array([2**62]),
    "zero": np.array([0]), "sizes": np.array([1, 3]), "pads": np.array([0, 1, 2, 0, 0, 3]),
    "pad": np.array([1, 2]),
}  # fmt: skip
# x [N, 3, 4] is stored [N, 4, 3]
THROUGH = [
    "b = Relu (a)",
    "b = Clip (a, half, six)",
    "b = Mul (half, a)",
    "b = Add (a, row)",
    "b = Sub (block, a)",
    "b = Add (a, a)",
    "b = Softmax <axis = 1> (a)",
    "b = LogSoftmax (a)",
    "c = Greater (a, half)  d = Sqrt (a)  b = Where (c, d, row)",
    "b = Concat <axis = 1> (a, a)",
    "c, d = Split <axis = 2> (a, sizes)  b = Concat <axis = -1> (d, c)",
    "b = Slice (a, one, far, last)",
    "b = Slice (a, zero, two)",
    "b = Pad (a, pads)",
    "b = Pad (a, pad, , last)",
    "b = ReduceMean (a, one)",
    "b = ReduceMax (a, last)",
    "c = ReduceSum <keepdims = 0> (a, last)  d = Unsqueeze (c, last)  b = Add (a, d)",
    "c = ReduceSum (a, one)  d = Squeeze (c, one)  e = Unsqueeze (d, one)  b = Mul (e, a)",
]


def used(text: str) -> dict[str, np.ndarray]:
    words = text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    return {name: array for name, array in WEIGHTS.items() if name in words}


@pytest.mark.parametrize("nodes", THROUGH)
def test_two_cancel_across(nodes: str) -> None:
    text = f"""g (float[N, 4, 3] x) => (float[M, J, K] y) {{
        s = Sigmoid (x)  a = Transpose <perm = [0, 2, 1]> (s)  {nodes}  y = Transpose <perm = [0, 2, 1]> (b)
    }}"""
    model = check_pass(MergeTransposes(), text, count=1, weights=used(nodes), opset=20)
    assert "Transpose" not in {node.op_type for node in model.graph}


@pytest.mark.parametrize("perm", [[0, 2, 3, 1], [2, 0, 3, 1], [3, 2, 1, 0]])
def test_orders_that_are_not_their_own_inverse(perm: list[int]) -> None:
    back = [perm.index(axis) for axis in range(4)]
    text = f"""g (float[N, 3, 4, 5] x) => (float[A, B, C, D] y) {{
        s = Sigmoid (x)  a = Transpose <perm = {perm}> (s)
        c = Slice (a, one, far, two)  d = Pad (c, pads)  e = ReduceMean <keepdims = 0> (d, one)
        f = Unsqueeze (e, one)  h = Mul (f, d)  g = Softmax <axis = 2> (h)  y = Transpose <perm = {back}> (g)
    }}"""
    weights = used("one far two") | {"pads": np.array([0, 1, 2, 0, 0, 0, 3, 1])}
    model = check_pass(MergeTransposes(), text, count=1, weights=weights)
    assert "Transpose" not in {node.op_type for node in model.graph}


def test_a_residual_block() -> None:
    text = """g (float[N, 8, 8, 4] x) => (float[N, 8, 8, 4] y) {
        p = Transpose <perm = [0, 3, 1, 2]> (x)  c = Conv <pads = [1, 1, 1, 1]> (p, w)
        q = Transpose <perm = [0, 2, 3, 1]> (c)  r = Relu (q)  b = Add (r, row)
        s = Transpose <perm = [0, 3, 1, 2]> (b)  d = Conv <pads = [1, 1, 1, 1]> (s, w)
        t = Transpose <perm = [0, 2, 3, 1]> (d)  u = Add (t, b)  y = Tanh (u)
    }"""
    weights = {"row": ROW, "w": np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32)}
    model = check_pass(MergeTransposes(), text, count=1, weights=weights)
    assert sum(node.op_type == "Transpose" for node in model.graph) == 2


def test_three_become_one_behind_a_concat() -> None:
    text = """g (float[N, 2] x, float[N, 3] z, float[N, 4] w) => (float[K, N] y) {
        a = Transpose (x)  b = Transpose (z)  c = Transpose (w)  y = Concat <axis = 0> (a, b, c)
    }"""
    model = check_pass(MergeTransposes(), text, ["Concat", "Transpose"], count=1)
    assert model.graph.node(0).attributes.get_int("axis") == 1


def test_a_value_that_is_needed_as_it_was() -> None:
    text = """g (float[N, 4, 3] x) => (float[N, 4, 3] y, float[N, 3, 4] z, float[N, 3, 4] v) {
        a = Transpose <perm = [0, 2, 1]> (x)  b = Relu (a)  y = Transpose <perm = [0, 2, 1]> (b)
        z = Neg (b)  v = Identity (b)
    }"""
    model = check_pass(MergeTransposes(), text, count=1)
    assert [node.op_type for node in model.graph] == ["Relu", "Transpose", "Neg", "Identity"]


def test_an_output_keeps_its_name() -> None:
    text = """g (float[N, 4, 3] x) => (float[N, 3, 4] b, float[N, 4, 3] y, float[N, 4, 3] z) {
        a = Transpose <perm = [0, 2, 1]> (x)  b = Relu (a)
        y = Transpose <perm = [0, 2, 1]> (b)  c = Transpose <perm = [0, 2, 1]> (b)  z = Neg (c)
    }"""
    model = check_pass(MergeTransposes(), text, ["Relu", "Transpose", "Neg"], count=1)
    assert [value.name for node in model.graph for value in node.outputs] == ["y", "b", "z"]


KEPT = [
    "a = Transpose <perm = [0, 2, 1]> (x)  y = Relu (a)",
    "a = Transpose <perm = [0, 2, 1]> (x)  b = Add (a, v)  y = Transpose <perm = [0, 2, 1]> (b)",
    "a = Transpose <perm = [0, 2, 1]> (x)  b = CumSum (a, one)  y = Transpose <perm = [0, 2, 1]> (b)",
    (
        "a = Transpose <perm = [0, 2, 1]> (x)  b = Neg (a)  z = Neg (b)  y = Transpose <perm = [0, 2, 1]> (b)"
        "  u = MatMul (a, x)"
    ),
]


@pytest.mark.parametrize("nodes", KEPT)
def test_kept(nodes: str) -> None:
    outputs = "y, z, u" if " z " in nodes else "y"
    text = f"g (float[N, 4, 3] x, float[4] v) => ({outputs}) {{ {nodes} }}"
    model = parse(text, weights={"one": np.array(1)} if "one" in nodes else {})
    assert MergeTransposes().rewrite(model, Context()) == 0


def test_softmax_of_old_opsets_flattens_and_stays() -> None:
    text = """g (float[N, 4, 3] x) => (float[N, 4, 3] y) {
        a = Transpose <perm = [0, 2, 1]> (x)  b = Softmax (a)  y = Transpose <perm = [0, 2, 1]> (b)
    }"""
    check_pass(MergeTransposes(), text, ["Transpose", "Softmax", "Transpose"], count=0, opset=11)


def test_only_axes_of_one_move() -> None:
    text = """g (float[N, 1, 4] x) => (float[1, N, 4] y, float[4, N, 1] z) {
        y = Transpose <perm = [1, 0, 2]> (x)  z = Transpose (x)
    }"""
    check_pass(MergeTransposes(), text, ["Reshape", "Transpose"], count=1)


def test_axes_of_one_move_and_go() -> None:
    text = """g (float[S, 1, N, 4] x) => (float[S, N, 4] y, float[S, N, 1, 1, 4] z) {
        a = Transpose <perm = [0, 2, 1, 3]> (x)  y = Reshape (a, three)
        d = Transpose <perm = [0, 2, 1, 3]> (x)  z = Reshape (d, five)
    }"""
    weights = {"three": np.array([0, 0, 4]), "five": np.array([0, 0, 1, 1, 4])}
    check_pass(MergeTransposes(), text, ["Squeeze", "Transpose", "Reshape"], count=1, weights=weights)


def test_into_gemm() -> None:
    text = """g (float[4, N] x, float[5, 4] w, float[N, 5] v)
    => (float[N, 5] y, float[N, N] z, float[5, 5] u) {
        a = Transpose (x)  b = Transpose <perm = [1, 0]> (w)  y = Gemm (a, b)
        c = Transpose <perm = [1, 0]> (v)  z = Gemm <transB = 1> (v, v)  u = Gemm (c, v)
    }"""
    model = check_pass(MergeTransposes(), text, count=3)
    gemm = next(node for node in model.graph if node.op_type == "Gemm")
    assert (gemm.attributes.get_int("transA"), gemm.attributes.get_int("transB")) == (1, 1)


def test_inside_a_branch_that_reads_what_is_around_it() -> None:
    text = """g (bool c, float[N, 4, 3] x) => (float[N, 4, 3] y) {
        a = Transpose <perm = [0, 2, 1]> (x)
        y = If (c) <
            then_branch = t () => (float[N, 4, 3] p) { p = Transpose <perm = [0, 2, 1]> (a) },
            else_branch = e () => (float[N, 4, 3] q) {
                r = Transpose <perm = [0, 2, 1]> (x)  s = Relu (r)  q = Transpose <perm = [0, 2, 1]> (s)
            }
        >
    }"""
    model = check_pass(MergeTransposes(), text, count=1)
    assert [node.op_type for node in model.graph.all_nodes()] == ["Transpose", "If", "Transpose", "Relu"]


def test_constants_that_are_needed_as_they_were_are_copied_only_when_small() -> None:
    big = np.ones((200, 200), np.float32)
    nodes = "a = Transpose (x)  b = Add (a, w)  y = Transpose (b)"
    for extra, count in (("", 1), ("  z = Neg (w)  u = Add (y, z)", 0)):
        text = f"g (float[200, 200] x) => ({'u' if extra else 'y'}) {{ {nodes}{extra} }}"
        model = parse(text, weights={"w": big})
        assert MergeTransposes().rewrite(model, Context()) == count


def test_a_transpose_back_has_a_name_of_its_own() -> None:
    model = parse(
        """
        g (float[N, 3, 4] x) => (float[N, 4, 3] y, float[N, 3, 4] z) {
            t = Transpose <perm = [0, 2, 1]> (x)
            s = Relu (t)
            u = Neg (s)
            y = Gelu (s)
            z = Transpose <perm = [0, 2, 1]> (u)
        }
        """
    )
    for node in model.graph:
        node.name = f"node_{node.outputs[0].name}"  # as torch names them
    MergeTransposes().rewrite(model, Context())
    names = [node.name for node in model.graph]
    assert len(set(names)) == len(names), names
