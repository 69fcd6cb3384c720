"""In what a decoder that updates its cache in place must equal the neutral one."""

import numpy as np
import pytest

from burnish.feeds import make_feeds
from burnish.kv_cache import KV_CACHE, WINDOW, InPlace
from burnish.manifest import DimRange, Manifest, TensorSpec

TOTAL = "past_sequence + sequence"
BUFFER = f"{TOTAL} + room"
LOWERED = Manifest(
    inputs=(
        TensorSpec("input_ids", "int64", ("batch", "sequence"), "token_ids", 20),
        TensorSpec("attention_mask", "int64", ("batch", TOTAL), "mask"),
        TensorSpec("past.key", "float32", ("batch", 2, BUFFER, 4)),
        TensorSpec("past.value", "float32", ("batch", 2, BUFFER, 4)),
    ),
    outputs=(
        TensorSpec("logits", "float32", ("batch", "sequence", 20)),
        TensorSpec("present.key", "float32", ("batch", 2, BUFFER, 4)),
    ),
    dims={"past_sequence": DimRange(0)},
)
META = {KV_CACHE: "group-query"}


def promise(**more: str) -> InPlace:
    found = InPlace.of(META | more, LOWERED)
    assert found is not None
    return found


def feeds(mask: list[list[int]], past: int, room: int = 0) -> dict[str, np.ndarray]:
    rows, total = np.shape(mask)
    sizes = {"batch": rows, "sequence": total - past, "past_sequence": past, "room": room}
    return make_feeds(LOWERED.inputs, sizes, seed=0) | {"attention_mask": np.array(mask)}


def test_the_roles_are_read_from_the_dims() -> None:
    found = promise()
    assert (found.mask, found.past, found.new) == (
        "attention_mask",
        ("past.key", "past.value"),
        ("input_ids", 1),
    )
    assert (found.past_dim, found.new_dim, found.buffer_dim) == ("past_sequence", "sequence", BUFFER)
    assert found.shortest_past == 0
    assert found.window is None
    assert promise(**{WINDOW: "6"}).window == 6


def test_other_models_promise_everything() -> None:
    assert InPlace.of({}, LOWERED) is None
    assert InPlace.of(META, Manifest(inputs=LOWERED.inputs[:2], outputs=())) is None


@pytest.mark.parametrize(
    ("sizes", "near"),
    [
        ({"batch": 1, "sequence": 4, "past_sequence": 3}, {"batch": 1, "sequence": 4, "past_sequence": 3}),
        ({"batch": 3, "sequence": 1, "past_sequence": 3}, {"batch": 3, "sequence": 1, "past_sequence": 3}),
        ({"batch": 3, "sequence": 4, "past_sequence": 0}, {"batch": 3, "sequence": 4, "past_sequence": 0}),
        ({"batch": 3, "sequence": 4, "past_sequence": 3}, {"batch": 3, "sequence": 4, "past_sequence": 0}),
    ],
)
def test_many_rows_take_many_tokens_only_without_a_past(sizes: dict[str, int], near: dict[str, int]) -> None:
    def make(wanted: object) -> dict[str, np.ndarray]:
        return make_feeds(LOWERED.inputs, {**wanted, "room": 0}, seed=1)  # type: ignore[dict-item]

    case = (sizes, make(sizes))
    ((found, _),) = promise().cases([case, case], make)
    assert found == near


def test_a_model_that_needs_a_past_gets_one_token_instead() -> None:
    found = InPlace.of(META, Manifest(LOWERED.inputs, LOWERED.outputs, {"past_sequence": DimRange(1)}))
    assert found is not None
    sizes = {"batch": 3, "sequence": 4, "past_sequence": 3}
    ((near, _),) = found.cases([(sizes, {})], lambda wanted: feeds([[1] * 4] * 3, 3))
    assert near == {"batch": 3, "sequence": 1, "past_sequence": 3}


def test_prompts_are_padded_on_the_right() -> None:
    found = promise().feeds(feeds([[0, 0, 1], [1, 1, 1], [0, 1, 0]], 0))
    assert found is not None
    assert found["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1], [1, 0, 0]]
    assert found["attention_mask"].dtype == np.int64


def test_pasts_have_different_lengths_and_a_new_token_each() -> None:
    ragged = feeds([[1] * 5] * 3, 4)
    found = promise().feeds(ragged)
    assert found is not None
    assert found["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 1], [1, 1, 0, 0, 1]]
    narrow = promise(**{WINDOW: "4"}).feeds(ragged)
    assert narrow is not None
    assert narrow["attention_mask"].all(), "the neutral graph counts holes as places of a window"


def test_what_it_does_not_take() -> None:
    assert promise().feeds(feeds([[1] * 6] * 2, 4)) is None


def test_caches_are_buffers_for_the_lowered_model_only() -> None:
    given = feeds([[1] * 5], 4, room=2)
    neutral, lowered = promise().fit({}, given), promise().fit(META, given)
    assert neutral["past.key"].shape == (1, 2, 4, 4)
    assert lowered["past.key"].shape == (1, 2, 7, 4), "there is room already"
    short = given | {name: neutral[name] for name in ("past.key", "past.value")}
    roomy = promise().fit(META, short)["past.value"]
    assert roomy.shape == (1, 2, 8, 4)
    np.testing.assert_array_equal(roomy[:, :, :4], neutral["past.value"])
    assert (roomy[:, :, 4:] != 0).all(), "rubbish, which nobody may read"


def test_padding_is_not_compared() -> None:
    given = feeds([[1, 1, 1], [1, 0, 0]], 0)
    outputs = {
        "logits": np.ones((2, 3, 20), np.float32), "present.key": np.ones((2, 2, 8, 4), np.float32)
    }  # fmt: skip
    found = promise().promised(given, outputs)
    assert found["logits"][:, :, 0].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert found["present.key"].shape == (2, 2, 3, 4), "the room is cut off"
    assert found["present.key"][:, 0, :, 0].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_a_new_token_after_pasts_of_different_lengths_is_not_compared_in_the_cache() -> None:
    given = feeds([[1, 1, 1, 1], [1, 1, 0, 1]], 3)
    outputs = {"logits": np.ones((2, 1, 20)), "present.key": np.ones((2, 2, 4, 4))}
    found = promise().promised(given, outputs)
    assert found["logits"].all()
    assert found["present.key"][:, 0, :, 0].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_outputs_without_tokens_are_compared_whole() -> None:
    given, outputs = feeds([[1, 0]], 0), {"logits": np.ones((1, 2, 20)), "loss": np.ones(())}
    assert promise().promised(given, outputs)["loss"] == 1


def test_a_window_is_left_in_some_case() -> None:
    cases = [({"batch": 2, "sequence": 1, "past_sequence": 3}, feeds([[1] * 4] * 2, 3))]
    assert promise().beyond(cases) is None
    assert promise(**{WINDOW: "3"}).beyond(cases) is None
    assert promise(**{WINDOW: "4"}).beyond(cases) == {"batch": 1, "sequence": 1, "past_sequence": 5}


def test_samples_as_a_model_takes_them() -> None:
    samples = [feeds([[1] * 6] * 2, 4), feeds([[0, 1, 1]], 0)]
    (found,) = promise().fitting(META, samples)
    assert found["attention_mask"].tolist() == [[1, 1, 0]]
    assert found["past.key"].shape == (1, 2, 3, 4)
