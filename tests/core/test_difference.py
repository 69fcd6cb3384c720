import numpy as np

from burnish.difference import difference, worst

A = np.array([1.0, 100.0, -2.0], np.float32)


def test_equal() -> None:
    assert difference("y", A, A.copy()).max_abs == 0


def test_relative_to_the_largest_magnitude() -> None:
    apart = difference("y", A, A + np.float32(0.5))
    assert apart.max_abs == 0.5
    assert apart.max_rel == 0.005
    assert apart.within(0.01)
    assert not apart.within(0.001)


def test_small_tensors_are_compared_absolutely() -> None:
    tiny = np.array([1e-9], np.float32)
    assert difference("y", tiny, tiny * 2).within(1e-6)


def test_nan_equals_nan_but_not_a_number() -> None:
    a = np.array([np.nan, np.inf, 1.0], np.float32)
    assert difference("y", a, a.copy()).max_abs == 0
    assert difference("y", a, np.array([0.0, np.inf, 1.0], np.float32)).max_abs == np.inf
    assert difference("y", a, np.array([np.nan, -np.inf, 1.0], np.float32)).max_abs == np.inf


def test_shape_and_dtype_count() -> None:
    assert difference("y", A, A[:2]).max_abs == np.inf
    assert difference("y", A, A.astype(np.float64)).max_abs == np.inf


def test_lossy_is_judged_by_the_norm() -> None:
    apart = difference("y", np.ones(100, np.float32), np.r_[2.0, np.ones(99)].astype(np.float32))
    assert apart.max_rel == 1.0
    assert apart.l2 == 0.1
    assert apart.within(0.2, lossy=True)
    assert not apart.within(0.2)


def test_strings_integers_and_empty() -> None:
    words = np.array(["a", "b"], object)
    assert difference("y", words, words.copy()).max_abs == 0
    assert difference("y", words, np.array(["a", "c"], object)).max_abs == np.inf
    assert difference("y", np.array([1, 2]), np.array([1, 3])).max_abs == 1
    assert difference("y", A[:0], A[:0]).max_abs == 0


def test_worst_finds_the_output_and_misses_none() -> None:
    assert worst({"a": A, "b": A}, {"a": A, "b": A + 1}).name == "b"
    assert worst({"a": A}, {}).max_abs == np.inf


def test_a_lossy_step_is_judged_by_the_output_with_the_largest_l2() -> None:
    large, small = np.array([100.0, 1.0]), np.array([0.001, 0.001])
    reference, actual = {"large": large, "small": small}, {"large": large + 2, "small": -small}
    assert worst(reference, actual).name == "large"
    assert worst(reference, actual, lossy=True).name == "small"
    assert not worst(reference, actual, lossy=True).within(0.05, lossy=True)
