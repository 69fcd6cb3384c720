import itertools

import numpy as np

from burnish.exporter.lattice import lattice
from burnish.exporter.padding import padding_cleared
from burnish.manifest import DimRange, Manifest, TensorSpec

SPECS = [
    TensorSpec("ids", "int64", ("batch", "sequence")),
    TensorSpec("past", "float32", ("batch", 2, "past", 4)),
    TensorSpec("mask", "int64", ("batch", "past + sequence"), meaning="mask"),
]
DIMS = {"batch": DimRange(), "sequence": DimRange(1, 64), "past": DimRange(0, 64)}


def sizes(parameters: int) -> list[tuple[int, int, int]]:
    return [(a["batch"], a["sequence"], a["past"]) for a in lattice(SPECS, DIMS, parameters)]


def test_all_combinations_of_a_small_model() -> None:
    short = set(itertools.product((1, 2, 3), (1, 2, 7), (0, 1, 57)))
    assert set(sizes(1000)) == short | {(batch, 64, 0) for batch in (1, 2, 3)}, "no more than 64 in all"


def test_a_batch_of_none_is_compared_where_it_is_promised() -> None:
    found = lattice([TensorSpec("x", "float32", ("batch", 3))], {"batch": DimRange(0, 8)}, 10)
    assert [each["batch"] for each in found] == [0, 1, 2, 3, 8]


def test_every_pair_of_a_larger_one() -> None:
    found = sizes(100_000_000)
    assert len(found) < 20
    for first, second in ((0, 1), (0, 2), (1, 2)):
        levels = [(1, 2, 3), (1, 2, 7), (0, 1, 57)]
        pairs = set(itertools.product(levels[first], levels[second]))
        assert {(each[first], each[second]) for each in found} >= pairs


def test_every_size_of_the_largest() -> None:
    found = sizes(7_000_000_000)
    assert len(found) <= 5
    assert {each[0] for each in found} == {1, 2, 3}
    assert {each[1] for each in found} == {1, 2, 7, 64}
    assert {each[2] for each in found} == {0, 1, 57}


def test_long_dims_are_cut() -> None:
    found = lattice(SPECS[:1], {"batch": DimRange(), "sequence": DimRange(1, 8192)}, 10)
    assert max(each["sequence"] for each in found) == 512


def test_what_is_not_dynamic_has_one_assignment() -> None:
    assert lattice([TensorSpec("x", "float32", (2, 3))], {}, 10) == [{}]


def test_what_a_decoder_computes_at_padding_is_not_compared() -> None:
    outputs = (
        TensorSpec("present", "float32", ("batch", 2, "past + sequence", 4)),
        TensorSpec("logits", "float32", ("batch", "sequence", 5)),
        TensorSpec("pooled", "float32", ("batch", 4)),
    )
    mask = np.array([[1, 1, 1], [0, 1, 0]])
    clear = padding_cleared(Manifest(tuple(SPECS), outputs), {"mask": mask})
    ones = {"present": np.ones((2, 2, 3, 4)), "logits": np.ones((2, 2, 5)), "pooled": np.ones((2, 4))}
    found = clear(ones)
    assert found["present"][:, 0, :, 0].tolist() == [[1, 1, 1], [0, 1, 0]]
    assert found["logits"][..., 0].tolist() == [[1, 1], [1, 0]]
    assert found["pooled"].all()


def test_masks_of_encoders_change_nothing() -> None:
    specs = (TensorSpec("mask", "int64", ("batch", "sequence"), meaning="mask"),)
    outputs = (TensorSpec("hidden", "float32", ("batch", "sequence", 4)),)
    clear = padding_cleared(Manifest(specs, outputs), {"mask": np.zeros((2, 3), np.int64)})
    assert clear({"hidden": np.ones((2, 3, 4))})["hidden"].all()
