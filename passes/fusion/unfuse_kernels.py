"""The inverse of fusions around MatMul, Conv and the root mean square, in standard ops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import onnx_ir as ir

from burnish.passes.fusion.unfuse import Draft, Inverse, Results, input_of, is_used, type_of
from burnish.passes.matching import CONTRIB, rank

_CLIP_BY_INPUT: Final = 11  # the opset from which Clip takes its bounds as inputs
_AXES_BY_INPUT: Final = 18  # and ReduceMean its axes
_ACTIVATIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "Relu": (), "Sigmoid": (), "Tanh": (), "LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"),
}  # fmt: skip
"""The attributes that FusedConv's parameters stand for."""


def _refuse_gemm(node: ir.Node, _: int) -> str | None:
    if any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        return "it scales its product or its sum"
    return "its type is unknown" if type_of(node) is None else None


def _gemm(draft: Draft) -> Results:
    a, b = _operand(draft, 0, "transA"), _operand(draft, 1, "transB")
    like = draft.node.outputs[0]
    return {0: draft.biased(draft.op("MatMul", a, b, like=like), draft.input(2))}  # type: ignore[dict-item]


def _operand(draft: Draft, position: int, flag: str) -> ir.Value | None:
    """A matrix (or a batch of them), transposed where the attribute says so."""
    value = draft.input(position)
    if not draft.node.attributes.get_int(flag, 0):
        return value
    axes = list(range(rank(value) or 2))
    return draft.op("Transpose", value, perm=[*axes[:-2], axes[-1], axes[-2]])


def _refuse_fused_matmul(node: ir.Node, _: int) -> str | None:
    flags = node.attributes
    if any(flags.get_int(name, 0) for name in ("transBatchA", "transBatchB")):
        return "it moves its batches"
    turned = (flags.get_int("transA", 0), flags.get_int("transB", 0))
    if any(flag and (rank(value) or 0) < 2 for flag, value in zip(turned, node.inputs, strict=False)):
        return "the rank of what it transposes is unknown"
    return "its type is unknown" if type_of(node) is None else None


def _fused_matmul(draft: Draft) -> Results:
    alpha, like = draft.node.attributes.get_float("alpha", 1.0), draft.node.outputs[0]
    y = draft.op("MatMul", _operand(draft, 0, "transA"), _operand(draft, 1, "transB"), like=like)
    return {0: y if alpha == 1.0 else draft.op("Mul", y, draft.number("alpha", alpha), like=like)}


def _refuse_fused_conv(node: ir.Node, opset: int) -> str | None:
    activation = node.attributes.get_string("activation", "") or ""
    if activation not in _ACTIVATIONS and activation != "Clip":
        return f"its activation {activation!r} is not known"
    if activation == "Clip" and opset < _CLIP_BY_INPUT:
        return f"needs opset {_CLIP_BY_INPUT}; this graph has {opset}"
    return "its type is unknown" if type_of(node) is None else None


def _fused_conv(draft: Draft) -> Results:
    attributes, like = draft.node.attributes, draft.node.outputs[0]
    own = {n: a.value for n, a in attributes.items() if n not in ("activation", "activation_params")}
    y: ir.Value | None = draft.op("Conv", *(draft.input(i) for i in range(3)), like=like, **own)
    y = draft.biased(y, draft.input(3))
    activation = attributes.get_string("activation", "") or ""
    given = attributes.get_floats("activation_params", None) or ()
    if activation == "Clip":
        bounds = [draft.number(name, value) for name, value in zip(("min", "max"), given, strict=False)]
        return {0: draft.op("Clip", y, *bounds, like=like)}
    named = dict(zip(_ACTIVATIONS[activation], given, strict=False))
    return {0: draft.op(activation, y, like=like, **named)}


def _refuse_rms(node: ir.Node, _: int) -> str | None:
    x, axis = input_of(node, 0), node.attributes.get_int("axis", -1)
    if axis != -1 and (rank(x) is None or axis != (rank(x) or 0) - 1):
        return "it normalises over more than the last axis"
    if type_of(node) != ir.DataType.FLOAT:
        return "its type is not float32"
    return "its deviation is used" if any(map(is_used, node.outputs[1:])) else None


def _rms(draft: Draft) -> Results:
    """x / Sqrt(mean(x²) + epsilon) * scale"""
    x, epsilon = draft.input(0), draft.node.attributes.get_float("epsilon", 1e-5)
    square = draft.op("Mul", x, x, like=x)
    if draft.scope.opset >= _AXES_BY_INPUT:
        mean = draft.op("ReduceMean", square, draft.constant("axes", np.array([-1], np.int64)), keepdims=1)
    else:
        mean = draft.op("ReduceMean", square, axes=[-1], keepdims=1)
    root = draft.op("Sqrt", draft.op("Add", mean, draft.number("epsilon", epsilon)))
    return {0: draft.op("Mul", draft.op("Div", x, root, like=x), draft.input(1), like=x)}


KERNELS: Final[Mapping[tuple[str, str], Inverse]] = {
    ("", "Gemm"): Inverse(_refuse_gemm, _gemm, timed=False),
    (CONTRIB, "FusedMatMul"): Inverse(_refuse_fused_matmul, _fused_matmul, timed=False),
    (CONTRIB, "FusedConv"): Inverse(_refuse_fused_conv, _fused_conv, timed=False),
    ("", "RMSNormalization"): Inverse(_refuse_rms, _rms, timed=False),
    ("", "SimplifiedLayerNormalization"): Inverse(_refuse_rms, _rms, timed=False),
}
"""Only the cost table says that one of these is slower: onnxruntime makes them itself of most of what they
are written with, so timing each in every model would be in vain."""
