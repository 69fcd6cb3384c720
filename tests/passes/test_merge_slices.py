import pytest

from burnish.passes.cleanup.merge_slices import MergeSlices
from burnish.testing import check_pass

NUMBERS = "int64[1] n0 = {0}, int64[1] n1 = {1}, int64[1] n2 = {2}, int64[1] n3 = {3}, int64[1] n5 = {5}, int64[1] end = {9223372036854775807}, int64[1] back = {-3}"  # noqa: E501
PARTS = {
    "all of it": "a = Slice (x, n0, n2, n1)  b = Slice (x, n2, n5, n1)",
    "to the end": "a = Slice (x, n0, n2, n1)  b = Slice (x, n2, end, n1)",
    "from the end": "a = Slice (x, n0, n2, n1)  b = Slice (x, back, end, n1)",
    "the last first": "b = Slice (x, n2, n5, n1)  a = Slice (x, n0, n2, n1)",
}


def graph(nodes: str, x: str = "float[N, 5] x", outputs: str = "float[N, 2] y, float[N, 3] z") -> str:
    return f"g ({x}) => ({outputs}) <{NUMBERS}> {{ {nodes}  y = Relu (a)  z = Neg (b) }}"


@pytest.mark.parametrize("nodes", PARTS.values(), ids=PARTS)
def test_pieces_become_one_split(nodes: str) -> None:
    model = check_pass(MergeSlices(), graph(nodes), ["Split", "Relu", "Neg"], count=1)
    split = model.graph.node(0)
    assert split.inputs[1] is not None
    assert split.inputs[1].const_value is not None
    assert split.inputs[1].const_value.numpy().tolist() == [2, 3]


def test_three_pieces_that_are_outputs() -> None:
    nodes = "y = Slice (x, n0, n1, n1)  z = Slice (x, n1, n2, n1)  u = Slice (x, n2, n3, n1)"
    outputs = "float[N, 1] y, float[N, 1] z, float[N, 1] u"
    text = f"g (float[N, 3] x) => ({outputs}) <{NUMBERS}> {{ {nodes} }}"
    check_pass(MergeSlices(), text, ["Split"], count=1)


def test_sizes_are_an_attribute_of_old_opsets() -> None:
    model = check_pass(MergeSlices(), graph(PARTS["all of it"]), ["Split", "Relu", "Neg"], count=1, opset=11)
    assert list(model.graph.node(0).attributes.get_ints("split", ())) == [2, 3]


def test_slices_by_attributes() -> None:
    nodes = (
        "a = Slice <axes = [1], starts = [0], ends = [2]> (x)  "
        "b = Slice <axes = [1], starts = [2], ends = [5]> (x)"
    )
    check_pass(MergeSlices(), graph(nodes), ["Split", "Relu", "Neg"], count=1, opset=9)


TWO = "float[N, 5] x", "float[N, P] y, float[N, Q] z"
KEPT = {
    "something left out": ("a = Slice (x, n0, n2, n1)  b = Slice (x, n3, n5, n1)", *TWO),
    "at the end": ("a = Slice (x, n0, n2, n1)  b = Slice (x, n2, n3, n1)", *TWO),
    "an overlap": ("a = Slice (x, n0, n3, n1)  b = Slice (x, n2, n5, n1)", *TWO),
    "the same twice": ("a = Slice (x, n0, n5, n1)  b = Slice (x, n0, n5, n1)", *TWO),
    "a step": ("a = Slice (x, n0, n2, n1, n2)  b = Slice (x, n2, n5, n1)", *TWO),
    "two axes": (
        "a = Slice (x, n0, n2, n1)  b = Slice (x, n2, n5, n0)",
        "float[9, 5] x",
        "float[P, Q] y, float[R, S] z",
    ),
    "a size not known": (PARTS["to the end"], "float[N, M] x", "float[N, P] y, float[N, Q] z"),
}


@pytest.mark.parametrize(("nodes", "x", "outputs"), KEPT.values(), ids=KEPT)
def test_what_is_no_partition_stays(nodes: str, x: str, outputs: str) -> None:
    check_pass(MergeSlices(), graph(nodes, x, outputs), count=0)


def test_along_two_axes_there_are_two_splits() -> None:
    nodes = (
        "a = Slice (x, n0, n2, n1)  b = Slice (x, n2, n5, n1)  "
        "c = Slice (x, n0, n1, n0)  d = Slice (x, n1, n3, n0)  u = Neg (c)  v = Neg (d)"
    )
    outputs = "float[3, 2] y, float[3, 3] z, float[1, 5] u, float[2, 5] v"
    model = check_pass(MergeSlices(), graph(nodes, "float[3, 5] x", outputs), count=2)
    splits = [node for node in model.graph if node.op_type == "Split"]
    assert len({node.name for node in splits}) == len(splits) == 2
