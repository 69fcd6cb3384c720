import pytest

from burnish.errors import TargetError
from burnish.target import TARGETS, CacheRules, QdqRules, Target, get_target


def test_the_four_targets() -> None:
    assert list(TARGETS) == ["cpu", "openvino", "cuda", "tensorrt"]


def test_kernels() -> None:
    cpu = get_target("cpu")
    assert cpu.has_kernel("com.microsoft", "BiasGelu")
    assert not cpu.has_kernel("com.microsoft", "PagedAttention")
    assert cpu.has_kernel("", "LayerNormalization")
    assert not cpu.has_kernel("", "GroupNormalization")
    assert not cpu.has_kernel("my.domain", "Anything")
    assert not get_target("tensorrt").has_kernel("com.microsoft", "BiasGelu")


def test_cuda_has_no_int8_activations() -> None:
    assert get_target("cuda").qdq is None
    assert not get_target("cuda").dynamic_int8


def test_an_unknown_target_suggests_the_nearest() -> None:
    with pytest.raises(TargetError, match="No target named 'cdua'") as caught:
        get_target("cdua")
    assert caught.value.hint == "Did you mean 'cuda'?"


def test_contradictions_cannot_be_built() -> None:
    rules = QdqRules("u8", symmetric=True, bias_int32=True, linear_output=False, conv_output=False)
    with pytest.raises(TargetError, match="symmetric u8"):
        Target("odd", "OddExecutionProvider", qdq=rules)
    with pytest.raises(TargetError, match="DynamicQuantizeMatMul"):
        Target("odd", "OddExecutionProvider", dynamic_int8=True)
    with pytest.raises(TargetError, match="without a GroupQueryAttention kernel"):
        Target("odd", "OddExecutionProvider", kv_cache=CacheRules("group-query", frozenset({"float32"})))


def test_how_caches_are_updated_in_place() -> None:
    cpu = get_target("cpu").kv_cache
    assert cpu is not None
    assert cpu.form == "group-query"
    assert "float32" in cpu.dtypes
    assert get_target("openvino").kv_cache is None
