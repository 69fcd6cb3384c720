"""Settings as onnxruntime's provider options; no device is needed to look at them."""

import json

import pytest

from burnish.errors import InputError
from burnish.manifest import DimRange, TensorSpec
from burnish.runtime.options import CudaOptions, Options, TensorRTOptions, make_options, provider_options

INPUTS = (
    TensorSpec("ids", "int64", ("batch", "sequence")),
    TensorSpec("image", "float32", (1, 3, 8, 8)),
    TensorSpec("mask", "int64", ("batch", "sequence")),
)


def test_cuda_defaults_and_limits() -> None:
    built = provider_options("cuda", Options(), threads=1)
    assert built["device_id"] == "0"
    assert built["enable_cuda_graph"] == "0"
    assert "gpu_mem_limit" not in built
    options = Options(cuda=CudaOptions(device=1, memory_limit=1 << 30, tf32=False, graph=True))
    built = provider_options("cuda", options, threads=1)
    assert (built["device_id"], built["gpu_mem_limit"]) == ("1", str(1 << 30))
    assert (built["use_tf32"], built["enable_cuda_graph"]) == ("0", "1")


def test_every_option_is_text() -> None:
    for name in ("cpu", "openvino", "cuda", "tensorrt"):
        built = provider_options(name, Options(), threads=2, inputs=INPUTS)
        assert all(isinstance(value, str) for value in built.values())


def test_own_provider_options_win() -> None:
    options = Options(provider={"use_tf32": "0", "enable_cudnn": "0"})
    built = provider_options("cuda", options, threads=1)
    assert (built["use_tf32"], built["enable_cudnn"]) == ("0", "0")


def test_tensorrt_cache_is_off_until_a_folder_is_given() -> None:
    assert not any("cache" in key for key in provider_options("tensorrt", Options(), threads=1))
    options = Options(tensorrt=TensorRTOptions(cache="/engines", float16=True, workspace=1 << 20))
    built = provider_options("tensorrt", options, threads=1)
    assert (built["trt_engine_cache_enable"], built["trt_engine_cache_path"]) == ("1", "/engines")
    assert (built["trt_fp16_enable"], built["trt_max_workspace_size"]) == ("1", str(1 << 20))


def test_tensorrt_profile_of_the_dynamic_inputs() -> None:
    profile = {"batch": DimRange(1, 8), "sequence": DimRange(4, 512)}
    options = Options(tensorrt=TensorRTOptions(profile=profile))
    built = provider_options("tensorrt", options, threads=1, inputs=INPUTS)
    assert built["trt_profile_min_shapes"] == "ids:1x4,mask:1x4"
    assert built["trt_profile_opt_shapes"] == "ids:8x128,mask:8x128"
    assert built["trt_profile_max_shapes"] == "ids:8x512,mask:8x512"


def test_tensorrt_profile_needs_every_dim() -> None:
    options = Options(tensorrt=TensorRTOptions(profile={"batch": DimRange(1, 8)}))
    with pytest.raises(InputError, match="'sequence'"):
        provider_options("tensorrt", options, threads=1, inputs=INPUTS)


def test_tensorrt_profile_needs_to_know_the_inputs() -> None:
    options = Options(tensorrt=TensorRTOptions(profile={"batch": DimRange(1, 8)}))
    with pytest.raises(InputError) as caught:
        provider_options("tensorrt", options, threads=1)
    assert caught.value.code == "OPTIONS"


def test_openvino_gets_its_threads_through_load_config() -> None:
    built = provider_options("openvino", Options(), threads=3)
    assert json.loads(built["load_config"]) == {"CPU": {"INFERENCE_NUM_THREADS": "3"}}
    assert provider_options("openvino", Options(openvino_device="GPU"), threads=3) == {}


def test_options_from_a_mapping() -> None:
    made = make_options({"optimize": False, "beside": ["cuda"], "cuda": {"device": 2}})
    assert made == Options(optimize=False, beside=("cuda",), cuda=CudaOptions(device=2))
    assert make_options(None) == Options()
    assert make_options(made) is made


@pytest.mark.parametrize("given", [{"optimize": "yes"}, {"cuda": {"device": "first"}}, {"optimise": True}])
def test_options_that_do_not_fit(given: dict[str, object]) -> None:
    with pytest.raises(InputError) as caught:
        make_options(given)
    assert caught.value.code == "OPTIONS"
