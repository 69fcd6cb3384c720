"""What a session says of inputs that do not fit, and what it converts."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from burnish.errors import InputError
from burnish.manifest import DimRange, TensorSpec
from burnish.runtime.inputs import InputChecker

IDS = TensorSpec("input_ids", "int64", ("batch", "sequence"))
MASK = TensorSpec("attention_mask", "int64", ("batch", "sequence"))
IMAGE = TensorSpec("image", "float32", (None, 3, 8, 8))


def ids(*shape: int) -> np.ndarray:
    return np.ones(shape, np.int64)


def refusal(call: Callable[[], object]) -> InputError:
    with pytest.raises(InputError) as caught:
        call()
    return caught.value


def check(specs: list[TensorSpec], **feeds: Any) -> dict[str, Any]:
    return InputChecker(specs, {})(feeds)[0]


def test_arrays_that_fit_are_passed_as_they_are() -> None:
    given = ids(2, 5)
    arrays, sizes = InputChecker([IDS, MASK], {})({"input_ids": given, "attention_mask": ids(2, 5)})
    assert arrays["input_ids"] is given
    assert sizes == {"batch": 2, "sequence": 5}


def test_missing_names_the_input_and_its_shape() -> None:
    error = refusal(lambda: check([IDS, MASK], input_ids=ids(1, 2)))
    assert error.code == "INPUT_MISSING"
    assert "'attention_mask'" in error.what
    assert "int64 of shape [batch, sequence]" in error.hint


def test_misspelled_name_is_said_first_with_the_nearest() -> None:
    error = refusal(lambda: check([IDS, MASK], input_idz=ids(1, 2), attention_mask=ids(1, 2)))
    assert error.code == "INPUT_UNKNOWN"
    assert "'input_idz'" in error.what
    assert "'input_ids'" in error.hint


def test_one_input_too_many() -> None:
    error = refusal(lambda: check([IDS], input_ids=ids(1, 2), token_type_ids=ids(1, 2)))
    assert error.code == "INPUT_UNKNOWN"
    assert "token_type_ids" in error.what


@pytest.mark.parametrize("dtype", ["int32", "float64", "bool", "uint64"])
def test_arrays_are_never_cast(dtype: str) -> None:
    error = refusal(lambda: check([IDS], input_ids=np.ones((1, 2), dtype)))
    assert error.code == "INPUT_DTYPE"
    assert dtype in error.what
    assert "int64" in error.what


def test_float64_array_for_float32_is_refused_with_the_way_out() -> None:
    error = refusal(lambda: check([IMAGE], image=np.zeros((1, 3, 8, 8))))
    assert error.code == "INPUT_DTYPE"
    assert "float64" in error.what
    assert "astype('float32')" in error.hint


def test_lists_become_arrays_of_the_wanted_dtype() -> None:
    arrays = check([TensorSpec("x", "float32", ("n",)), IDS], x=[1, 2.5], input_ids=[[1, 2]])
    assert arrays["x"].dtype == np.float32
    assert arrays["x"].tolist() == [1, 2.5]
    assert arrays["input_ids"].dtype == np.int64


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("int64", [1.5]), ("bool", [1, 0]), ("int8", [200]), ("uint8", [-1]), ("float32", ["a"]),
        ("float16", [1e6]), ("int64", [None]), ("str", [1]), ("int4", [9]), ("float32", [1j]),
    ],
)  # fmt: skip
def test_lists_whose_values_would_change_are_refused(dtype: str, value: list[object]) -> None:
    error = refusal(lambda: check([TensorSpec("x", dtype, ("n",))], x=value))
    assert error.code == "INPUT_DTYPE"
    assert dtype in error.what + error.hint


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("bfloat16", [1.0, 2]), ("int4", [-8, 7]), ("int64", [True]), ("float32", []), ("str", ["a", "b"])],
)
def test_lists_of_values_that_fit(dtype: str, value: list[object]) -> None:
    array = check([TensorSpec("x", dtype, ("n",))], x=value)["x"]
    assert len(array) == len(value)
    assert array.dtype == (object if dtype == "str" else np.dtype(getattr(ml_dtypes, dtype, dtype)))


def test_ragged_lists() -> None:
    error = refusal(lambda: check([IDS], input_ids=[[1], [1, 2]]))
    assert error.code == "INPUT_SHAPE"
    assert "different lengths" in error.what


def test_objects_with_an_array_inside() -> None:
    class Tensor:
        def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
            return ids(1, 2)

    assert check([IDS], input_ids=Tensor())["input_ids"].shape == (1, 2)


def test_objects_that_do_not_give_their_array() -> None:
    class Cuda:
        def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

    error = refusal(lambda: check([IDS], input_ids=Cuda()))
    assert error.code == "INPUT_DTYPE"
    assert "cuda:0" in error.what


def test_big_endian_arrays_are_turned() -> None:
    array = check([TensorSpec("x", "float32", ("n",))], x=np.array([1.0, 2.0], ">f4"))["x"]
    assert array.dtype.isnative
    assert array.tolist() == [1, 2]


def test_subclasses_of_ndarray_become_plain() -> None:
    array = check([TensorSpec("x", "int64", ("n", 2))], x=np.rec.array(ids(1, 2)))["x"]
    assert type(array) is np.ndarray


def test_rank() -> None:
    error = refusal(lambda: check([IMAGE], image=np.zeros((3, 8, 8), np.float32)))
    assert error.code == "INPUT_RANK"
    assert "rank 4" in error.what
    assert "[?, 3, 8, 8]" in error.hint


def test_fixed_size_names_the_axis() -> None:
    error = refusal(lambda: check([IMAGE], image=np.zeros((1, 4, 8, 8), np.float32)))
    assert error.code == "INPUT_SHAPE"
    assert "size 4 in axis 1" in error.what
    assert "wants 3" in error.what


def test_dims_of_one_name_must_agree() -> None:
    error = refusal(lambda: check([IDS, MASK], input_ids=ids(2, 5), attention_mask=ids(2, 4)))
    assert error.code == "INPUT_SHAPE"
    assert "'sequence' is 5 in 'input_ids' and 4 in 'attention_mask'" in error.what


def test_dims_of_one_name_within_one_input() -> None:
    error = refusal(lambda: check([TensorSpec("x", "int64", ("n", "n"))], x=ids(2, 3)))
    assert error.code == "INPUT_SHAPE"


def test_unnamed_dims_are_free() -> None:
    two = [TensorSpec("a", "int64", (None,)), TensorSpec("b", "int64", (None,))]
    assert check(two, a=ids(1), b=ids(2))["b"].shape == (2,)


def test_ranges_of_the_manifest() -> None:
    checker = InputChecker([IDS], {"sequence": DimRange(2, 4)})
    assert checker({"input_ids": ids(1, 4)})[1]["sequence"] == 4
    for length in (1, 5):
        error = refusal(lambda: checker({"input_ids": ids(1, length)}))  # noqa: B023
        assert error.code == "INPUT_SHAPE"
        assert "2 to 4 (dim 'sequence')" in error.what


def test_range_of_an_unnamed_dim() -> None:
    checker = InputChecker([IMAGE], {"image.0": DimRange(1, 2)})
    error = refusal(lambda: checker({"image": np.zeros((3, 3, 8, 8), np.float32)}))
    assert "'image.0'" in error.what


def test_a_shape_seen_before_is_still_checked_for_dtype() -> None:
    checker = InputChecker([IDS], {})
    checker({"input_ids": ids(1, 2)})
    assert refusal(lambda: checker({"input_ids": np.ones((1, 2))})).code == "INPUT_DTYPE"


def test_unknown_rank_takes_any() -> None:
    spec = TensorSpec("x", "int64", None)
    assert check([spec], x=ids(1, 2, 3))["x"].ndim == 3


def test_inputs_with_a_default_may_be_left_out() -> None:
    checker = InputChecker([IDS], {}, optional=[TensorSpec("scale", "float32", ())])
    assert list(checker({"input_ids": ids(1, 2)})[0]) == ["input_ids"]
    assert checker({"input_ids": ids(1, 2), "scale": 2.0})[0]["scale"].dtype == np.float32
    assert refusal(lambda: checker({"input_ids": ids(1, 2), "scal": 2.0})).code == "INPUT_UNKNOWN"
