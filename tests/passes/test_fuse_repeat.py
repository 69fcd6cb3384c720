import numpy as np
import onnx_ir as ir
import pytest

from burnish.passes.base import Context
from burnish.passes.fusion.fuse_repeat import FuseRepeat
from burnish.testing import check_pass

INTS = {
    "two": np.array([2]), "one": np.array([1]), "three": np.array([3]), "thrice": np.array([1, 1, 3, 1, 1]),
    "heads": np.array([0, 6, -1, 4]), "wide": np.array([0, 2, -1, 12]), "rows": np.array([0, 2, -1, 4]),
}  # fmt: skip
REPEATED = "u = Unsqueeze (x, two)  e = Expand (u, thrice)  y = Reshape (e, heads)"


def graph(nodes: str, dtype: str = "float", output: str = "[B, 6, S, 4]") -> str:
    return f"g ({dtype}[B, 2, S, 4] x) => ({dtype}{output} y) {{ {nodes} }}"


def weights(nodes: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in INTS.items() if f", {name})" in nodes}


@pytest.mark.parametrize("dtype", ["float", "float16", "double", "int64"])
def test_heads_are_gathered(dtype: str) -> None:
    model = check_pass(FuseRepeat(), graph(REPEATED, dtype), count=1, weights=weights(REPEATED))
    (node,) = model.graph
    assert node.op_type == "Gather"
    indices = node.inputs[1]
    assert indices is not None
    assert ir.convenience.get_const_tensor(indices).numpy().tolist() == [0, 0, 0, 1, 1, 1]  # type: ignore[union-attr]


def test_in_the_sizes_of_the_model() -> None:
    nodes = """
        u = Unsqueeze (x, two)  size = Shape (x)  b = Shape <start = 0, end = 1> (x)
        s = Shape <start = 2, end = 3> (x)
        six = Constant <value_ints = [6]> ()  four = Constant <value_ints = [4]> ()
        t = Concat <axis = 0> (b, six, s, four)  e = Expand (u, thrice)
        y = Reshape <allowzero = 1> (e, t)
    """
    model = check_pass(FuseRepeat(), graph(nodes), count=1, weights=weights(nodes))
    assert "Gather" in [node.op_type for node in model.graph]


def test_an_expansion_that_is_read_elsewhere_stays() -> None:
    nodes = REPEATED + "  z = Neg (e)"
    text = graph(nodes).replace(" y) {", " y, float[B, 2, 3, S, 4] z) {")
    model = check_pass(FuseRepeat(), text, count=1, weights=weights(nodes))
    assert [node.op_type for node in model.graph] == ["Unsqueeze", "Expand", "Gather", "Neg"]


ALMOST = {
    "the features are repeated": (
        "u = Unsqueeze (x, three)  e = Expand (u, along)  y = Reshape (e, wide)", "[B, 2, S, 12]"),
    "all heads in turn": (
        "u = Unsqueeze (x, one)  e = Expand (u, round)  y = Reshape (e, heads)", "[B, 6, S, 4]"),
    "positions are repeated": (
        "u = Unsqueeze (x, two)  e = Expand (u, thrice)  y = Reshape (e, rows)", "[B, 2, T, 4]"),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "output"), ALMOST.values(), ids=ALMOST)
def test_other_repetitions_stay(nodes: str, output: str) -> None:
    more = {"along": np.array([1, 1, 1, 3, 1]), "round": np.array([1, 3, 1, 1, 1])}
    given = weights(nodes) | {name: array for name, array in more.items() if f", {name})" in nodes}
    context = Context()
    check_pass(FuseRepeat(), graph(nodes, output=output), count=0, weights=given, context=context)
    assert context.misses[0].why == "it does not provably repeat a known number of heads"
