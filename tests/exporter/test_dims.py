import pytest

from burnish.errors import ExportError
from burnish.exporter.dims import Axis, example_sizes, other_sizes, read_axes
from burnish.manifest import DimRange

SHAPES = {"ids": (1, 7), "mask": (1, 7), "x": (4, 3)}


def axis(input_: str, index: int, name: str, low: int = 1, high: int | None = None) -> Axis:
    return Axis(input_, index, name, DimRange(low, high), promised=True)


class NamedDim:
    """What a torch.export.Dim looks like."""

    def __init__(self, name: str, low: int, high: float) -> None:
        self.__name__, self.min, self.max = name, low, high


def test_a_name_alone_has_no_bound() -> None:
    (found,) = read_axes({"ids": {0: "batch"}}, SHAPES)
    assert found == Axis("ids", 0, "batch", DimRange(1, None), promised=False)


def test_a_range_given_once_holds_for_every_axis_of_that_name() -> None:
    found = read_axes({"ids": {1: ("sequence", 1, 64)}, "mask": {1: "sequence"}}, SHAPES)
    assert {a.allowed for a in found} == {DimRange(1, 64)}
    assert all(a.promised for a in found)


def test_axes_may_count_from_the_end() -> None:
    (found,) = read_axes({"ids": {-1: "sequence"}}, SHAPES)
    assert found.axis == 1


def test_a_torch_dim_is_read() -> None:
    (found,) = read_axes({"ids": {0: NamedDim("batch", 0, 8)}}, SHAPES)
    assert found.allowed == DimRange(1, 8)
    (free,) = read_axes({"ids": {0: NamedDim("batch", 0, float("inf"))}}, SHAPES)
    assert (free.allowed, free.promised) == (DimRange(1, None), False)


def test_ranges_from_the_command_line_win() -> None:
    (found,) = read_axes({"ids": {1: ("sequence", 1, 512)}}, SHAPES, {"sequence": (2, 32)})
    assert found.allowed == DimRange(2, 32)


@pytest.mark.parametrize(
    ("dynamic", "ranges", "says"),
    [
        ({"idss": {0: "batch"}}, None, "Did you mean 'ids'"),
        ({"ids": {2: "batch"}}, None, "no axis 2"),
        ({"ids": {0: "batch size"}}, None, "cannot name a dim"),
        ({"ids": {0: 7}}, None, "Cannot take a dynamic dim from 7"),
        ({"ids": {0: ("batch", 4, 4)}}, None, "cannot range from 4 to 4"),
        ({"ids": {0: ("b", 1, 4)}, "mask": {0: ("b", 1, 8)}}, None, "two ranges"),
        ({"ids": {0: "batch"}}, {"bach": (1, 2)}, "Did you mean 'batch'"),
        ({"ids": {0: "batch"}}, {"batch": 4}, "Cannot take the range of 'batch' from 4"),
        ({"ids": ["batch"]}, None, "Cannot take dynamic dims of 'ids' from"),
        ({"ids": {"0": "batch"}}, None, "has no axis '0'"),
        ("batch", None, "Cannot take dynamic dims from 'batch'"),
        ({"ids": {0: ("batch", "1", "8")}}, None, "Cannot take a dynamic dim from"),
        ({"ids": {0: ("batch", None, 8)}}, None, "Cannot take a dynamic dim"),
    ],
)
def test_what_cannot_be_is_refused(
    dynamic: dict[str, dict[int, object]], ranges: dict[str, tuple[int, int]] | None, says: str
) -> None:
    with pytest.raises(ExportError, match=says) as caught:
        read_axes(dynamic, SHAPES, ranges)
    assert caught.value.code == "EXPORT_DYNAMIC"


def test_examples_of_size_one_and_zero_are_widened() -> None:
    sizes = example_sizes([axis("ids", 0, "batch"), axis("e", 0, "rows")], {"ids": (1,), "e": (0,)})
    assert sizes == {"batch": 2, "rows": 3}


def test_equal_sizes_of_two_dims_are_made_different() -> None:
    sizes = example_sizes([axis("x", 0, "a"), axis("y", 0, "b")], {"x": (4,), "y": (4,)})
    assert sizes["a"] == 4
    assert sizes["b"] != 4


def test_sizes_that_hide_nothing_stay() -> None:
    sizes = example_sizes([axis("x", 0, "a"), axis("y", 0, "b")], {"x": (4,), "y": (9,)})
    assert sizes == {"a": 4, "b": 9}


def test_sizes_stay_in_range() -> None:
    sizes = example_sizes([axis("x", 0, "a", 1, 4), axis("y", 0, "b", 1, 4)], {"x": (4,), "y": (4,)})
    assert sizes == {"a": 4, "b": 2}


def test_other_sizes_are_unlike_all_before() -> None:
    axes = [axis("x", 0, "a"), axis("y", 0, "b", 1, 5), axis("z", 0, "c", 2, 3)]
    found = other_sizes(axes, {"a": 4, "b": 5, "c": 3})
    assert len({4, 5, 3, found["a"], found["b"]}) == 5
    assert found["b"] < 5
    assert found["c"] in (2, 3)


def test_one_dim_with_two_example_sizes_is_refused() -> None:
    with pytest.raises(ExportError, match=r"sizes \[2, 3\]"):
        example_sizes([axis("x", 0, "a"), axis("y", 0, "a")], {"x": (2,), "y": (3,)})
