import numpy as np
import pytest

from burnish.passes.base import Context
from burnish.passes.cleanup.remove_sequences import RemoveSequences
from burnish.testing import check_pass, parse

NUMBERS = {
    "zero": np.array(0), "one": np.array(1), "last": np.array(-1), "two": np.array(2), "five": np.array(5),
    "sizes": np.array([1, 3]),
}  # fmt: skip
X = "float[N, 4] x"


@pytest.mark.parametrize("opset", [11, 13, 18, 23])
def test_becomes_a_split(opset: int) -> None:
    text = f"""g ({X}) => (float[N, M] z) {{
        s = SplitToSequence <axis = 1> (x, sizes)
        a = SequenceAt (s, zero)  b = SequenceAt (s, last)  z = Add (a, b)
    }}"""
    check_pass(RemoveSequences(), text, ["Split", "Add"], count=1, opset=opset, weights=NUMBERS)


def test_equal_chunks_with_a_rest() -> None:
    text = """g (float[N, 5] x) => (float[N, 2] a, float[N, 1] c) {
        s = SplitToSequence <axis = 1> (x, two)  a = SequenceAt (s, zero)  c = SequenceAt (s, two)
    }"""
    model = check_pass(RemoveSequences(), text, ["Split"], count=1, weights=NUMBERS)
    assert [value.name for value in model.graph.outputs] == ["a", "c"]


def test_a_part_that_is_read_twice() -> None:
    text = f"""g ({X}) => (float[N, 1] z, float[N, 1] a) {{
        s = SplitToSequence <axis = 1> (x, sizes)
        a = SequenceAt (s, zero)  b = SequenceAt (s, zero)  z = Neg (b)
    }}"""
    check_pass(RemoveSequences(), text, ["Split", "Neg"], count=1, weights=NUMBERS)


@pytest.mark.parametrize(
    ("keepdims", "out"), [(1, "float[N, 1] z, float[1, 4] a"), (0, "float[N] z, float[4] a")]
)
def test_parts_of_one_index(keepdims: int, out: str) -> None:
    text = f"""g ({X}) => ({out}) {{
        s = SplitToSequence <axis = -1, keepdims = {keepdims}> (x)  b = SequenceAt (s, last)
        c = SequenceAt (s, one)  z = Add (b, c)
        t = SplitToSequence <keepdims = {keepdims}> (x)  a = SequenceAt (t, zero)
    }}"""
    check_pass(RemoveSequences(), text, ["Gather", "Gather", "Add", "Gather"], count=2, weights=NUMBERS)


def test_inside_a_branch() -> None:
    text = f"""g (bool c, {X}) => (float[N, M] y) {{
        y = If (c) <
            then_branch = t () => (float[N, K] a) {{
                s = SplitToSequence <axis = 1> (x, sizes)  a = SequenceAt (s, one) }},
            else_branch = e () => (float[N, 4] d) {{ d = Relu (x) }}
        >
    }}"""
    model = check_pass(RemoveSequences(), text, count=1, weights=NUMBERS)
    assert [node.op_type for node in model.graph.all_nodes()] == ["If", "Split", "Relu"]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("s = SplitToSequence <axis = 0> (x, two)  z = SequenceAt (s, zero)", "sizes of the parts"),
        ("s = SplitToSequence <axis = 1> (x)  z = SequenceAt (s, place)", "known places"),
        ("s = SplitToSequence <axis = 1> (x, sizes)  z = SequenceAt (s, place)", "known places"),
        ("s = SplitToSequence <axis = 1> (x, sizes)  z = ConcatFromSequence <axis = 1> (s)", "known places"),
        ("s = SplitToSequence <axis = 1> (x, sizes)  z = SequenceAt (s, five)", "where it ends"),
    ],
)
def test_what_stays(body: str, why: str) -> None:
    model = parse(f"g ({X}, int64 place) => (float[N, M] z) {{ {body} }}", weights=NUMBERS)
    context = Context()
    assert RemoveSequences().rewrite(model, context) == 0
    assert why in context.misses[0].why
