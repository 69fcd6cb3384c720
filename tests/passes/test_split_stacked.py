import numpy as np
import pytest

from burnish.passes.base import Context
from burnish.passes.cleanup.split_stacked import SplitStacked
from burnish.testing import check_pass

INTS = {
    "stack": np.array([0, 0, 3, 2, 4]), "flat": np.array([0, 0, 3, 8]), "two": np.array([2]),
    **{f"i{n}": np.array([n]) for n in range(5)}, **{f"at{n}": np.array(n) for n in range(3)},
    "end": np.array([2**62]), "minus": np.array([-3]), "wide": np.array([0, 0, 3, 2, 2, 2]),
}  # fmt: skip
STACK = "v = Reshape (x, stack)  "
HEADS = "[B, S, 2, 4]"


def part(n: int, *, axis: str = "i2", end: str = "") -> str:
    end = end or f"i{n + 1}"
    return f"s{n} = Slice (v, i{n}, {end}, {axis}, i1)  p{n} = Squeeze (s{n}, {axis})  "


def graph(nodes: str, shapes: list[str] | None = None) -> str:
    shapes = [HEADS] * 3 if shapes is None else shapes
    outputs = ", ".join(f"float{shape} p{n}" for n, shape in enumerate(shapes))
    return f"g (float[B, S, 24] x) => ({outputs}) {{ {nodes} }}"


def weights(nodes: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in INTS.items() if any(f", {name}{end}" in nodes for end in ",)")}


TAKEN = {
    "slices": part(0) + part(1) + part(2),
    "counted from the end": part(0, axis="minus") + part(1) + part(2),
    "gathered": "".join(f"p{n} = Gather <axis = 2> (v, at{n})  " for n in range(3)),
}


@pytest.mark.parametrize("taken", TAKEN.values(), ids=TAKEN)
def test_parts_of_rows(taken: str) -> None:
    nodes = STACK + taken
    model = check_pass(SplitStacked(), graph(nodes), count=1, weights=weights(nodes))
    assert [node.op_type for node in model.graph] == ["Split", *["Reshape"] * 3]
    assert [list(value.shape or ())[-1] for value in model.graph.node(0).outputs] == [8, 8, 8]


def test_parts_of_more_axes() -> None:
    nodes = "v = Reshape (x, wide)  " + TAKEN["slices"]
    model = check_pass(SplitStacked(), graph(nodes, ["[B, S, 2, 2, 2]"] * 3), count=1, weights=weights(nodes))
    assert [node.op_type for node in model.graph] == ["Split", *["Reshape"] * 3]


def test_in_any_order() -> None:
    nodes = STACK + part(2) + part(0) + part(1)
    check_pass(SplitStacked(), graph(nodes), count=1, weights=weights(nodes))


MISSED = {
    "a part is left out": (STACK + part(0) + part(2).replace("p2", "p1"), [HEADS] * 2),
    "a part is taken twice": (
        STACK + part(0) + part(1) + part(1).replace("s1", "s2").replace("p1", "p2"), None),
    "two parts at once": (
        STACK + part(0) + part(1) + "p2 = Slice (v, i1, i3, i2, i1)", [HEADS, HEADS, "[B, S, 2, 2, 4]"]),
    "the whole is read": (STACK + part(0) + part(1) + "p2 = Neg (v)", [HEADS, HEADS, "[B, S, 3, 2, 4]"]),
    "another axis": (
        STACK + part(0) + part(1) + part(1, axis="i3").replace("s1", "s2").replace("p1", "p2"),
        [HEADS, HEADS, "[B, S, 3, 4]"]),
    "a part with its axis": (STACK + part(0) + part(1) + "p2 = Slice (v, i2, i3, i2, i1)",
                             [HEADS, HEADS, "[B, S, 1, 2, 4]"]),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "shapes"), MISSED.values(), ids=MISSED)
def test_what_is_not_taken_part_by_part_stays(nodes: str, shapes: list[str] | None) -> None:
    context = Context()
    check_pass(SplitStacked(), graph(nodes, shapes), count=0, weights=weights(nodes), context=context)
    if len(shapes or [""] * 3) == 3:
        assert [miss.why for miss in context.misses] == [
            "what it stacks is not taken part by part, each once"
        ]


def test_an_old_opset_stays() -> None:
    nodes = STACK + TAKEN["gathered"]
    check_pass(SplitStacked(), graph(nodes), count=0, weights=weights(nodes), opset=12)
