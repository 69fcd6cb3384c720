import numpy as np
import pytest

from burnish.errors import InputError
from burnish.fallback_sizes import fallback_sizes
from burnish.feeds import assignments, batch_dims, dynamic_dims, make_feeds, shape_at, sizes_of, typical_sizes
from burnish.manifest import DimRange, TensorSpec

IDS = TensorSpec("input_ids", "int64", ("batch", "sequence"), "token_ids", 50)
MASK = TensorSpec("attention_mask", "int64", ("batch", "sequence"), "mask")


def test_assignments_cover_batch_1_2_3_and_length_1() -> None:
    found = assignments([IDS, MASK])
    assert len(found) >= 4
    assert {a["batch"] for a in found} == {1, 2, 3}
    assert 1 in {a["sequence"] for a in found}
    assert len({a["sequence"] for a in found}) >= 3


def test_a_batch_alone_goes_through_four_sizes() -> None:
    assert assignments([TensorSpec("x", "float32", ("N", 3))]) == [{"N": n} for n in (1, 2, 3, 4)]


def test_a_symbol_of_torch_that_is_always_first_is_a_batch() -> None:
    ids = TensorSpec("ids", "int64", ("s72", "s11"))
    past = TensorSpec("past", "float32", ("s72", 4, "s5", 8))
    assert batch_dims([ids, past]) == {"s72"}
    assert typical_sizes([ids, past]) == {"s72": 1, "s11": 128, "s5": 128}
    mask = TensorSpec("mask", "float32", ("s11", "s72"))
    assert batch_dims([ids, mask]) == frozenset()


def test_assignments_stay_in_range() -> None:
    found = assignments([IDS], {"sequence": DimRange(4, 8), "batch": DimRange(2, 2)})
    assert {a["batch"] for a in found} == {2}
    assert all(4 <= a["sequence"] <= 8 for a in found)


def test_a_static_model_has_one_assignment() -> None:
    assert assignments([TensorSpec("x", "float32", (2, 3))]) == [{}]


def test_two_free_dims_are_not_always_equal() -> None:
    found = assignments([TensorSpec("x", "float32", ("h", "w"))])
    assert any(a["h"] != a["w"] for a in found)


def test_large_inputs_are_made_at_small_sizes() -> None:
    audio, ids = TensorSpec("x", "float32", ("a", 80, 3000)), TensorSpec("i", "int64", ("a", "c"))
    assert assignments([audio, ids]) == [
        {"a": 3, "c": 1}, {"a": 1, "c": 5}, {"a": 5, "c": 2}, {"a": 2, "c": 3},
    ]  # fmt: skip
    assert [each["a"] for each in fallback_sizes([audio, ids])] == [1, 2, 7, 16, 32, 64, 96, 160]
    assert assignments([ids])[0] == {"a": 7, "c": 1}


def test_unnamed_dims_get_names() -> None:
    assert dynamic_dims([TensorSpec("x", "float32", (None, 3, None))]) == ["x.0", "x.2"]


def test_feeds_respect_what_inputs_mean() -> None:
    feeds = make_feeds([IDS, MASK], {"batch": 3, "sequence": 20}, seed=0)
    assert feeds["input_ids"].shape == (3, 20)
    assert feeds["input_ids"].dtype == np.int64
    assert feeds["input_ids"].min() >= 0
    assert feeds["input_ids"].max() < 50
    mask = feeds["attention_mask"]
    assert set(np.unique(mask)) <= {0, 1}
    assert (mask.sum(axis=1) >= 1).all()
    assert (np.diff(mask, axis=1) <= 0).all(), "padding is on the right"
    assert mask[0].all()


def test_positions_count_up_inside_their_table() -> None:
    spec = TensorSpec("position_ids", "int64", ("batch", "sequence"), "positions", 4)
    feeds = make_feeds([spec], {"batch": 2, "sequence": 6}, seed=0)
    assert feeds["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1]] * 2


def test_the_same_seed_gives_the_same_arrays() -> None:
    a, b = (make_feeds([IDS], {"batch": 2, "sequence": 5}, seed=7) for _ in range(2))
    assert np.array_equal(a["input_ids"], b["input_ids"])
    other = make_feeds([IDS], {"batch": 2, "sequence": 5}, seed=8)
    assert not np.array_equal(a["input_ids"], other["input_ids"])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "uint8", "int32", "bool", "float64"])
@pytest.mark.parametrize("shape", [(), (3,), (0, 2)])
def test_every_dtype_and_rank(dtype: str, shape: tuple[int, ...]) -> None:
    feeds = make_feeds([TensorSpec("x", dtype, shape)], {}, seed=0)
    assert feeds["x"].shape == shape
    assert str(feeds["x"].dtype) == dtype


def test_a_dim_without_a_size_is_named() -> None:
    with pytest.raises(InputError, match=r"Dim 'sequence' of input 'input_ids'"):
        make_feeds([IDS], {"batch": 1}, seed=0)


def test_an_unknown_rank_needs_data() -> None:
    with pytest.raises(InputError, match="unknown rank"):
        shape_at(TensorSpec("x", "float32", None), {})


def test_sizes_are_read_back_off_the_inputs() -> None:
    past = TensorSpec("past", "float32", ("batch", 2, "past", 8))
    mask = TensorSpec("mask", "int64", ("batch", "past + sequence"), "mask")
    unknown = TensorSpec("other", "float32")
    specs, sizes = (IDS, past, mask), {"batch": 2, "sequence": 3, "past": 5}
    feeds = make_feeds(specs, sizes, seed=0) | {"other": np.ones((7, 7), np.float32)}
    assert sizes_of((*specs, unknown), feeds) == sizes
