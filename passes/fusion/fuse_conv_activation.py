"""Relu(Conv(x))  ->  com.microsoft::FusedConv(x), and other activations likewise"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar, Final, final

import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass
from burnish.passes.forms import conv_form, typical_size_of
from burnish.passes.matching import CONTRIB, Scope, candidates, made_by, obstacle, scalar

Parameters = list[float] | None
"""What FusedConv is told of the activation; None: it cannot be told."""


@final
@dataclasses.dataclass(frozen=True)
class FuseConvActivation(Pass):
    """Fuse the activation behind a float32 Conv into onnxruntime's FusedConv, where the target has it.

    Known are Relu, Sigmoid, Tanh, LeakyRelu, HardSigmoid and Clip between constants, behind a Conv whose
    result nothing else reads. Quantisation knows Conv only, so this belongs last in a recipe.
    """

    name: ClassVar[str] = "fuse-conv-activation"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many activations were fused."""
        faster = _Table(model, context)
        return sum(_fuse(node, scope, context, faster) for node, scope in candidates(model, *_PARAMETERS))


def _fuse(activation: ir.Node, scope: Scope, context: Context, table: _Table) -> bool:
    conv = made_by(activation.inputs[0], "Conv")
    if conv is None:
        return False
    parameters = _PARAMETERS[activation.op_type](activation)
    why = _refusal(conv, parameters, context) or obstacle([conv, activation], activation.outputs)
    why = why or table.refusal(conv, activation)
    if not context.permit_unless(why, activation):
        return False
    attributes = dict(conv.attributes) | {"activation": ir.AttrString("activation", activation.op_type)}
    if parameters:
        attributes["activation_params"] = ir.AttrFloat32s("activation_params", parameters)
    new = ir.Node(CONTRIB, "FusedConv", list(conv.inputs), attributes.values(), num_outputs=1)
    results = {activation.outputs[0]: new.outputs[0]}
    table.learn(*next(iter(results.items())))
    scope.replace([conv, activation], [new], results, FuseConvActivation.name)
    return True


def _refusal(conv: ir.Node, parameters: Parameters, context: Context) -> str | None:
    if not context.target.has_kernel(CONTRIB, "FusedConv"):
        return f"target {context.target.name} has no {CONTRIB}::FusedConv"
    if parameters is None:
        return "the bounds of the Clip are not constant"
    dtypes = {value.dtype for value in conv.inputs if value is not None}
    return None if dtypes == {ir.DataType.FLOAT} else "FusedConv takes float32 only, or the type is not known"


@final
class _Table:
    """What the cost table says of a Conv with its activation inside, at the typical sizes."""

    def __init__(self, model: ir.Model, context: Context) -> None:
        self._costs = context.costs if context.costs is not None and context.costs.known else None
        self._shapes = None if self._costs is None else context.shapes(model)

    def refusal(self, conv: ir.Node, activation: ir.Node) -> str | None:
        """Why the two stay apart."""
        if self._costs is None or self._shapes is None:
            return None
        form = conv_form(conv, activation.op_type, typical_size_of(self._shapes, self._costs))
        faster = form is not None and self._costs.prefers_other(form)
        return f"the cost table has {form.instead} as faster" if form is not None and faster else None

    def learn(self, before: ir.Value, after: ir.Value) -> None:
        """A value that takes the place of another is as large."""
        if self._shapes is not None:
            self._shapes[after] = self._shapes[before]


def _leaky_relu(node: ir.Node) -> Parameters:
    return [node.attributes.get_float("alpha", 0.01)]


def _hard_sigmoid(node: ir.Node) -> Parameters:
    return [node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)]


def _clip(node: ir.Node) -> Parameters:
    """Both bounds; one that is left out is the last number of the type."""
    low, high = _bound(node, "min", 1, -_LARGEST), _bound(node, "max", 2, _LARGEST)
    return None if low is None or high is None else [low, high]


def _bound(node: ir.Node, name: str, position: int, default: float) -> float | None:
    value = node.inputs[position] if len(node.inputs) > position else None
    return node.attributes.get_float(name, default) if value is None else scalar(value)


_LARGEST: Final = 3.4028234663852886e38  # of float32
_PARAMETERS: Final[Mapping[str, Callable[[ir.Node], Parameters]]] = {
    "Relu": lambda _: [],
    "Sigmoid": lambda _: [],
    "Tanh": lambda _: [],
    "LeakyRelu": _leaky_relu,
    "HardSigmoid": _hard_sigmoid,
    "Clip": _clip,
}
