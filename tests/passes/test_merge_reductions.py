import pytest

from burnish.passes.cleanup.merge_reductions import MergeReductions
from burnish.testing import check_pass

NUMBERS = "int64[2] nc = {0, 3}, int64[2] any = {-1, 3}, int64[2] last = {2, 3}, int64[1] one = {2}"
X, Y = "float[N, 3, 5, 4] x", "float[N, 3] y"
MERGED = {
    "a mean": ("a = ReduceMean (x, last)  y = Reshape (a, nc)", "ReduceMean", 20),
    "any batch": ("a = ReduceMax (x, last)  y = Reshape (a, any)", "ReduceMax", 20),
    "a sum": ("a = ReduceSum (x, last)  y = Flatten (a)", "ReduceSum", 13),
    "squeezed": ("a = ReduceMean <axes = [-1, -2]> (x)  y = Squeeze (a, last)", "ReduceMean", 13),
    "a pool": ("a = GlobalAveragePool (x)  y = Flatten (a)", "ReduceMean", 20),
    "an old pool": ("a = GlobalMaxPool (x)  y = Reshape (a, nc)", "ReduceMax", 11),
    "a pool as large as the picture": (
        "a = AveragePool <kernel_shape = [5, 4], strides = [5, 4]> (x)  y = Flatten (a)", "ReduceMean", 20,
    ),
}  # fmt: skip


def graph(nodes: str, x: str = X, y: str = Y) -> str:
    return f"g ({x}) => ({y}) <{NUMBERS}> {{ {nodes} }}"


@pytest.mark.parametrize(("nodes", "op", "opset"), MERGED.values(), ids=MERGED)
def test_a_reduction_drops_its_axes(nodes: str, op: str, opset: int) -> None:
    model = check_pass(MergeReductions(), graph(nodes), [op], count=1, opset=opset)
    assert model.graph.node(0).attributes.get_int("keepdims") == 0


KEPT = {
    "one of two axes": ("a = ReduceMean (x, last)  y = Squeeze (a, one)", X, "float[N, 3, 1] y"),
    "other dims": ("a = ReduceMean (x, last)  y = Reshape (a, any)", "float[N, 6, 5, 4] x", "float[M, 3] y"),
    "a part of the picture": (
        "a = AveragePool <kernel_shape = [5, 3]> (x)  y = Flatten (a)", X, "float[N, 6] y",
    ),
    "with padding": (
        "a = AveragePool <kernel_shape = [5, 4], pads = [1, 1, 1, 1], strides = [5, 4]> (x)  y = Flatten (a)",
        X, Y,
    ),
    "a picture of any size": (
        "a = AveragePool <kernel_shape = [1, 1]> (x)  y = Flatten (a)",
        "float[N, 3, H, W] x", "float[N, C] y",
    ),
    "used elsewhere": (
        "a = ReduceMean (x, last)  y = Flatten (a)  z = Neg (a)", X, f"{Y}, float[N, 3, 1, 1] z",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "x", "y"), KEPT.values(), ids=KEPT)
def test_what_does_not_fit_stays(nodes: str, x: str, y: str) -> None:
    check_pass(MergeReductions(), graph(nodes, x, y), count=0)


def test_a_pool_over_a_picture_of_any_size() -> None:
    nodes = "a = GlobalAveragePool (x)  y = Reshape (a, nc)"
    check_pass(MergeReductions(), graph(nodes, "float[N, 3, H, W] x"), ["ReduceMean"], count=1)
