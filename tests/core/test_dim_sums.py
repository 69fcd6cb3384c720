import pytest

from burnish.dim_sums import is_name, names_of, parts_of, size_of
from burnish.errors import InputError
from burnish.feeds import assignments, dynamic_dims, make_feeds
from burnish.manifest import TensorSpec
from burnish.runtime.inputs import InputChecker

IDS = TensorSpec("ids", "int64", ("batch", "sequence"))
PAST = TensorSpec("past", "float32", ("batch", 2, "past", 8))
MASK = TensorSpec("mask", "int64", ("batch", "past + sequence"), meaning="mask")


def test_a_sum_is_taken_apart_and_added_up() -> None:
    assert parts_of("past + sequence + 1") == ("past", "sequence", "1")
    assert names_of("past + sequence + 1") == ("past", "sequence")
    assert size_of("past + sequence + 1", {"past": 4, "sequence": 2}) == 7
    assert size_of("past + sequence", {"past": 4}) is None
    assert (parts_of("batch"), names_of("batch"), size_of("batch", {"batch": 3})) == ((), ("batch",), 3)


def test_other_expressions_are_names() -> None:
    assert parts_of("2*sequence") == ()
    assert names_of("2*sequence") == ("2*sequence",)


def test_what_is_computed_is_no_name() -> None:
    for dim in ("batch", "batch size", "seq-len", "x.0", "past + sequence", "a + b + 1"):
        assert is_name(dim)
    for dim in ("2*sequence", "(n//4)", "Min(n, (n//2))", "(((t - 3)//2)) + 1", "t - 3", "4*rows + 1"):
        assert not is_name(dim)


def test_feeds_of_an_input_whose_dim_is_a_sum() -> None:
    assert dynamic_dims([IDS, PAST, MASK]) == ["batch", "sequence", "past"]
    for sizes in assignments([IDS, PAST, MASK]):
        feeds = make_feeds([IDS, PAST, MASK], sizes, seed=0)
        assert feeds["mask"].shape == (sizes["batch"], sizes["past"] + sizes["sequence"])


def test_rows_with_a_past_are_padded_on_the_left() -> None:
    feeds = make_feeds([IDS, PAST, MASK], {"batch": 64, "sequence": 2, "past": 6}, seed=0)
    assert feeds["mask"][:, -1].all()
    assert not feeds["mask"].all()
    fresh = make_feeds([IDS, PAST, MASK], {"batch": 64, "sequence": 8, "past": 0}, seed=0)
    assert fresh["mask"][:, 0].all()
    assert not fresh["mask"].all()


def test_a_session_checks_sums() -> None:
    check = InputChecker([IDS, PAST, MASK], {})
    feeds = make_feeds([IDS, PAST, MASK], {"batch": 2, "sequence": 3, "past": 5}, seed=0)
    assert check(feeds)[1] == {"batch": 2, "sequence": 3, "past": 5}
    with pytest.raises(InputError, match=r"size 7 in axis 1, the model wants 8 \(past \+ sequence\)"):
        check(feeds | {"mask": feeds["mask"][:, :7]})
