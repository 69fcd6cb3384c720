"""One record per way to run a model: which kernels are there, and how QDQ must look there.

Passes ask a target for a capability (`target.has_kernel("com.microsoft", "BiasGelu")`), never for its name.
Kernel tables: registry dump of onnxruntime 1.31.1 (CPU), class names in its CUDA provider library.
"""

from __future__ import annotations

import dataclasses
from typing import Final, Literal, final

from burnish.errors import TargetError, nearest

Activation = Literal["u8", "s8"]
Device = Literal["cpu", "cuda"]
CacheForm = Literal["group-query", "tensor-scatter"]
"""The operators that update a key and value cache in place: GroupQueryAttention, or TensorScatter."""

_CONTRIB: Final = "com.microsoft"
OWN_IN_DEFAULT_DOMAIN: Final = {"LayerNormalization": 17, "SimplifiedLayerNormalization": 2**31}
"""Ops that onnxruntime has in the default domain below the opset that brings them to ONNX (2**31: never)."""
_CPU_CONTRIB: Final = frozenset(
    {
        "Attention", "BiasGelu", "DynamicQuantizeMatMul", "EmbedLayerNormalization", "FastGelu",
        "FusedConv", "FusedGemm", "FusedMatMul", "GatherBlockQuantized", "Gelu", "GroupQueryAttention",
        "LayerNormalization", "MatMulIntegerToFloat", "MatMulNBits", "MultiHeadAttention", "QAttention",
        "QGemm", "QLinearAdd", "QLinearMul", "QuickGelu", "RotaryEmbedding", "SimplifiedLayerNormalization",
        "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
    }
)  # fmt: skip
# Not FusedConv: ResNet-50 on an H100 takes 2.1 times as long with it as with Conv and Relu.
_CUDA_CONTRIB: Final = frozenset(
    {
        "Attention", "BiasGelu", "BiasSplitGelu", "EmbedLayerNormalization", "FastGelu", "FusedMatMul",
        "GatherBlockQuantized", "Gelu", "GroupNorm", "GroupQueryAttention",
        "LayerNormalization", "MatMulNBits", "MultiHeadAttention", "PackedAttention", "PagedAttention",
        "QuickGelu", "RotaryEmbedding", "SimplifiedLayerNormalization", "SkipGroupNorm",
        "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
    }
)  # fmt: skip
_CPU_ACTIVATIONS: Final = frozenset(
    {"Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh"}
)
# Standard ops that onnxruntime has no kernel for and inlines as functions (slow, and never fused).
_CPU_INLINED: Final = frozenset({"GroupNormalization", "HardSwish", "Mish", "Swish"})
_CUDA_INLINED: Final = frozenset({"GroupNormalization", "Mish", "Swish"})


@final
@dataclasses.dataclass(frozen=True)
class QdqRules:
    """How quantised tensors must be written so that the target really runs them in int8.

    Source: reference/compression.md section 4, measured on onnxruntime 1.31.1.
    """

    activation: Activation
    """Type of activations: `u8` asymmetric, or `s8`."""
    symmetric: bool
    """Activations have zero point 0."""
    bias_int32: bool
    """Bias of a Linear or Conv is an int32 DequantizeLinear; otherwise it stays float."""
    linear_output: bool
    """A Linear gets a QuantizeLinear on its output."""
    conv_output: bool
    """A Conv gets a QuantizeLinear on its output (onnxruntime's CPU kernels need it)."""


@final
@dataclasses.dataclass(frozen=True)
class ConvRules:
    """What the target's FusedConv does behind the convolution. CPU: measured on onnxruntime 1.31.1."""

    activations: frozenset[str]
    """Activations that it knows."""
    adds: bool = False
    """It takes a fourth input of the result's shape, and adds it before the activation."""
    in_blocks: bool = False
    """Convolutions of images run with channels in blocks, with a sum only where that is in blocks too."""


@final
@dataclasses.dataclass(frozen=True)
class CacheRules:
    """How a decoder's cache is updated in place. Source: reference/runtime.md section 5.2."""

    form: CacheForm
    dtypes: frozenset[str]
    """numpy names of the types of queries and caches that its kernel takes."""


@final
@dataclasses.dataclass(frozen=True)
class Target:
    """A way to run a model; contradictory records cannot be built.

    Raises:
        TargetError: the record contradicts itself.
    """

    name: str
    provider: str
    """onnxruntime's name of the execution provider."""
    contrib: frozenset[str] = frozenset()
    """onnxruntime's own ops that have a kernel: those of domain com.microsoft, and those that it has in the
    default domain (`OWN_IN_DEFAULT_DOMAIN`)."""
    inlined: frozenset[str] = frozenset()
    """Standard ops without a kernel, which onnxruntime replaces by their function body."""
    qdq: QdqRules | None = None
    """None: int8 activations do not run here (weight-only quantisation may)."""
    dynamic_int8: bool = False
    """DynamicQuantizeLinear + MatMulInteger run in int8."""
    fused_conv: ConvRules | None = None
    """None: there is no FusedConv."""
    kv_cache: CacheRules | None = None
    """None: no operator is known to update a cache in place here."""
    device: Device = "cpu"
    """Where onnxruntime keeps its values."""
    max_opset: int = 26

    def __post_init__(self) -> None:
        if self.qdq is not None and self.qdq.symmetric and self.qdq.activation != "s8":
            raise TargetError(
                f"Target {self.name!r} asks for symmetric {self.qdq.activation} activations.",
                "Symmetric activations are s8 with zero point 0; set activation='s8'.",
            )
        if self.dynamic_int8 and "DynamicQuantizeMatMul" not in self.contrib:
            raise TargetError(
                f"Target {self.name!r} claims dynamic int8 without a DynamicQuantizeMatMul kernel.",
                "Add the kernel to `contrib`, or set dynamic_int8=False.",
            )
        if (self.fused_conv is not None) != ("FusedConv" in self.contrib):
            raise TargetError(
                f"Target {self.name!r} has a FusedConv kernel or rules for one, and not both.",
                "Name the kernel in `contrib` and what it does in `fused_conv`.",
            )

        grouped = self.kv_cache is not None and self.kv_cache.form == "group-query"
        if grouped and "GroupQueryAttention" not in self.contrib:
            raise TargetError(
                f"Target {self.name!r} updates caches by group-query without a GroupQueryAttention kernel.",
                "Add the kernel to `contrib`, or set kv_cache=None.",
            )

    def has_kernel(self, domain: str, op_type: str) -> bool:
        """True when the target runs the op with a kernel of its own (not as an inlined function)."""
        if domain == _CONTRIB:
            return op_type in self.contrib
        return domain in ("", "ai.onnx") and op_type not in self.inlined


TARGETS: Final[dict[str, Target]] = {
    target.name: target
    for target in (
        Target(
            "cpu",
            "CPUExecutionProvider",
            contrib=_CPU_CONTRIB,
            inlined=_CPU_INLINED,
            qdq=QdqRules("u8", symmetric=False, bias_int32=True, linear_output=False, conv_output=True),
            dynamic_int8=True,
            fused_conv=ConvRules(_CPU_ACTIVATIONS, adds=True, in_blocks=True),
            kv_cache=CacheRules("group-query", frozenset({"float32", "float16"})),
        ),
        Target(
            "openvino",
            "OpenVINOExecutionProvider",
            qdq=QdqRules("u8", symmetric=False, bias_int32=False, linear_output=False, conv_output=False),
        ),
        Target(
            "cuda",
            "CUDAExecutionProvider",
            contrib=_CUDA_CONTRIB,
            inlined=_CUDA_INLINED,
            kv_cache=CacheRules("group-query", frozenset({"float16", "bfloat16"})),
            device="cuda",
        ),
        Target(
            "tensorrt",
            "TensorrtExecutionProvider",
            qdq=QdqRules("s8", symmetric=True, bias_int32=False, linear_output=False, conv_output=False),
            device="cuda",
        ),
    )
}


def is_own(op_type: str, opset: int) -> bool:
    """True for an op of the default domain that onnxruntime has at that opset, but ONNX has not."""
    return opset < OWN_IN_DEFAULT_DOMAIN.get(op_type, 0)


def get_target(name: str) -> Target:
    """The record of a target by name.

    Raises:
        TargetError: no target has that name.
    """
    if name not in TARGETS:
        raise TargetError(f"No target named {name!r}.", nearest(name, TARGETS))
    return TARGETS[name]
