"""Settings of a session, and how they become onnxruntime's provider options (texts keyed by texts).

Nothing here touches a device: what is built can be tested on a machine without one.
Source: onnxruntime docs/execution-providers/{CUDA,TensorRT}-ExecutionProvider.md, and the option names in
the 1.31.1 provider libraries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from burnish.errors import InputError, nearest
from burnish.feeds import shape_at
from burnish.manifest import DimRange, TensorSpec

_SHORTEST, _TYPICAL, _LONGEST = 1, 128, 512


class CudaOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the CUDA provider works."""

    device: int = 0
    memory_limit: int | None = None
    """Bytes that its arena may hold; None: all."""
    tf32: bool = True
    """float32 products with 10-bit mantissas: faster, and errors of 1e-3 (onnxruntime's default)."""
    nhwc: bool = False
    """Convolutions in channels-last layout."""
    graph: bool = False
    """Capture a CUDA graph: needs bound inputs and outputs of fixed shapes, and every node on CUDA."""


class TensorRTOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the TensorRT provider builds its engines."""

    device: int = 0
    float16: bool = False
    int8: bool = False
    cache: str | None = None
    """Folder for engines and timings. onnxruntime never empties it: use one for each model and version."""
    workspace: int | None = None
    """Bytes that a build may use."""
    level: int = 3
    """Builder optimisation level, 0 to 5: higher builds longer."""
    graph: bool = False
    profile: Mapping[str, DimRange] = {}
    """Sizes of the dynamic dims that one engine covers; an engine is rebuilt where a size leaves them."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a session; the defaults are what an application deploys."""

    optimize: bool = True
    """onnxruntime's own graph optimiser (all levels)."""
    beside: tuple[str, ...] = ()
    """Providers that may run what the asked-for one cannot, in order, such as ("cuda",) for tensorrt."""
    shapes_on_cpu: bool = True
    """Let a GPU provider leave shape arithmetic on the CPU, as onnxruntime prefers; it is reported."""
    cuda: CudaOptions = CudaOptions()
    tensorrt: TensorRTOptions = TensorRTOptions()
    openvino_device: str = "CPU"
    """OpenVINO's name of the device: CPU, GPU, NPU."""
    provider: Mapping[str, str] = {}
    """More options of the asked-for provider, as onnxruntime spells them; they win."""
    session: Mapping[str, str] = {}
    """Session config entries, as onnxruntime spells them, such as session.intra_op.allow_spinning."""


IN_TURNS: Final = Options(session={"session.force_spinning_stop": "1"})
"""For sessions that run in turns in one process: the workers of one otherwise spin on into the
next one's run.

Measured on 2 cores, three sessions in turns: medians of 27.7 and 21.6 ms without, 20.2 and 8.4 ms with it.
"""


def make_options(given: Options | Mapping[str, object] | None) -> Options:
    """The settings from a struct, a plain mapping of its fields, or nothing.

    Raises:
        InputError: a field is unknown or of the wrong type (OPTIONS).
    """
    if given is None or isinstance(given, Options):
        return given or Options()
    for name in given:
        if name not in Options.__struct_fields__:
            raise InputError(
                f"A session has no option {name!r}.",
                nearest(name, Options.__struct_fields__),
                code="OPTIONS",
            )
    try:
        return msgspec.convert(dict(given), Options)
    except msgspec.ValidationError as error:
        raise InputError(
            f"A session option does not fit: {error}.",
            "See burnish.runtime.options.Options.",
            code="OPTIONS",
        ) from error


def provider_options(
    name: str, options: Options, *, threads: int, inputs: Sequence[TensorSpec] = ()
) -> dict[str, str]:
    """onnxruntime's options of that provider; those in `options.provider` win.

    Args:
        name: a name in `burnish.target.TARGETS`.
        options: the settings.
        threads: for a provider that does not follow the session's own number.
        inputs: of the model, for TensorRT's profile.
    """
    match name:
        case "cuda":
            built = cuda_options(options.cuda)
        case "tensorrt":
            built = tensorrt_options(options.tensorrt, inputs)
        case "openvino":
            # The plugin ignores the session's threads; its own knobs go through load_config.
            device = options.openvino_device
            config = {"INFERENCE_NUM_THREADS": str(threads)} if device == "CPU" else {}
            built = {"load_config": json.dumps({device: config})} if config else {}
        case _:
            built = {}
    return built | dict(options.provider)


def cuda_options(options: CudaOptions) -> dict[str, str]:
    """Options of CUDAExecutionProvider."""
    built = {
        "device_id": str(options.device),
        # Powers of two waste up to half of the memory; a model's needs are known after its first run.
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": _flag(options.tf32),
        "prefer_nhwc": _flag(options.nhwc),
        "enable_cuda_graph": _flag(options.graph),
    }
    if options.memory_limit is not None:
        built["gpu_mem_limit"] = str(options.memory_limit)
    return built


def tensorrt_options(options: TensorRTOptions, inputs: Sequence[TensorSpec]) -> dict[str, str]:
    """Options of TensorrtExecutionProvider, with one shape profile for all dynamic inputs."""
    built = {
        "device_id": str(options.device),
        "trt_fp16_enable": _flag(options.float16),
        "trt_int8_enable": _flag(options.int8),
        "trt_builder_optimization_level": str(options.level),
        "trt_cuda_graph_enable": _flag(options.graph),
    }
    if options.workspace is not None:
        built["trt_max_workspace_size"] = str(options.workspace)
    if options.cache is not None:
        built |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": options.cache,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": options.cache,
        }
    return built | profile_shapes(inputs, options.profile)


def profile_shapes(inputs: Sequence[TensorSpec], ranges: Mapping[str, DimRange]) -> dict[str, str]:
    """TensorRT's min, opt and max shapes of the dynamic inputs, written `ids:1x1,mask:1x1`.

    Empty where `ranges` is: TensorRT then builds for the sizes it sees. The typical size is 128, kept in
    range.

    Raises:
        InputError: a dynamic dim of an input is not in `ranges` (TensorRT wants all or none), or the
            inputs are not known (OPTIONS).
    """
    if not ranges:
        return {}
    if not inputs:
        raise InputError(
            "A TensorRT profile is given for a model whose inputs are not known before it is loaded.",
            "Load an artifact, which knows its inputs, or leave the profile out.",
            code="OPTIONS",
        )
    sizes = {name: _sizes(allowed) for name, allowed in ranges.items()}
    built = {}
    for index, kind in enumerate(("min", "opt", "max")):
        at = {name: three[index] for name, three in sizes.items()}
        dynamic = (spec for spec in inputs if not all(isinstance(d, int) for d in spec.shape or ()))
        shapes = (f"{spec.name}:{'x'.join(map(str, shape_at(spec, at)))}" for spec in dynamic)
        built[f"trt_profile_{kind}_shapes"] = ",".join(shapes)
    return built


def _sizes(allowed: DimRange) -> tuple[int, int, int]:
    low = max(_SHORTEST, allowed.min)
    high = allowed.max if allowed.max is not None else max(low, _LONGEST)
    return low, max(low, min(_TYPICAL, high)), high


def _flag(value: bool) -> str:
    return "1" if value else "0"
