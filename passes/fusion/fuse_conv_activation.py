"""Relu(Conv(x) + z)  ->  com.microsoft::FusedConv(x, z), and other activations likewise"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar, Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, is_op, tensor_of
from burnish.passes.forms import conv_form, typical_size_of
from burnish.passes.fusion.blocked import is_image_conv, is_in_blocks
from burnish.passes.fusion.fuse_hard_swish import clip_bounds, gates_swish
from burnish.passes.fusion.quantised import reads_quantised
from burnish.passes.matching import CONTRIB, Scope, candidates, either_way, made_by, obstacle
from burnish.passes.shapes import Fact, Shapes

Parameters = list[float] | None
"""What FusedConv is told of the activation; None: it cannot be told."""


@final
@dataclasses.dataclass(frozen=True)
class FuseConvActivation(Pass):
    """Fuse what stands behind a float32 Conv into onnxruntime's FusedConv, as far as the target's does it.

    That is what is added, where it provably has the shape of the result (a residual) and, on targets that run
    convolutions in blocks of channels, is in blocks itself; and then an activation: Relu, Sigmoid, Tanh,
    LeakyRelu, HardSigmoid, Clip between constants, and HardSwish, whole or as x * HardSigmoid(x). Kept: a
    result that something else reads too. Quantisation knows Conv only, so this belongs last in a recipe; and
    a Conv between QuantizeLinear and DequantizeLinear is kept.
    """

    name: ClassVar[str] = "fuse-conv-activation"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING
    looks_for: ClassVar[frozenset[str]] = frozenset({"Conv", "FusedConv"})

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many sums and activations were fused."""
        before = len(context.rewrites)
        facts = _Facts(context, model)
        faster = _Table(facts, context)
        for node, scope in candidates(model, *_PARAMETERS, "Add", "Mul"):
            if is_op(node, "Add"):
                _fuse_sum(node, scope, context, facts)
            else:
                _fuse_activation(node, scope, context, facts, faster)
        return len(context.rewrites) - before


@final
class _Facts:
    """What is known of values, found when it is first asked for; what FusedConv makes is known as before."""

    def __init__(self, context: Context, model: ir.Model) -> None:
        self._find: Callable[[], Shapes] = partial(context.shapes, model)
        self._shapes: Shapes | None = None

    def __getitem__(self, value: ir.Value) -> Fact:
        return self.shapes[value]

    @property
    def shapes(self) -> Shapes:
        """All of it."""
        if self._shapes is None:
            self._shapes = self._find()
        return self._shapes

    def hand_on(self, old: ir.Value, new: ir.Value) -> None:
        """A new value is what an old one was."""
        if self._shapes is not None:
            self._shapes[new] = self._shapes[old]


def _fuse_sum(add: ir.Node, scope: Scope, context: Context, facts: _Facts) -> None:
    rules = context.target.fused_conv
    if rules is None or not rules.adds:
        return
    for result, other in either_way(add):
        conv = made_by(result, "Conv")
        if conv is None or result is other or _untyped(conv) or obstacle([conv, add], add.outputs):
            continue
        fact = facts[result]
        if reads_quantised(conv, 0):
            context.miss(add, _QUANTISED)
        elif fact.shape is None or fact.shape != facts[other].shape:
            context.miss(add, "what is added is not proved to have the shape of the Conv's result")
        elif rules.in_blocks and is_image_conv(conv) and not is_in_blocks(other, facts.shapes):
            context.miss(add, "the Conv is faster in blocks of channels, which what is added is not in")
        elif context.permit(add):
            x, weight, bias = [*conv.inputs, None][:3]
            if bias is None and rules.in_blocks and is_image_conv(conv):
                bias = scope.constant(conv, f"{result.name}_no_bias", _zeros(conv))  # see blocked.py
            new = _emit(conv, [x, weight, bias, other], {})
            scope.replace([conv, add], [new], {add.outputs[0]: new.outputs[0]}, FuseConvActivation.name)
            facts.hand_on(add.outputs[0], new.outputs[0])
            return


def _fuse_activation(last: ir.Node, scope: Scope, context: Context, facts: _Facts, table: _Table) -> None:
    activation, result, nodes = _activation(last)
    if not nodes:
        return
    conv = made_by(result, "Conv") or made_by(result, "FusedConv", CONTRIB)
    if conv is None or "activation" in conv.attributes:
        return
    parameters = _PARAMETERS[activation](last)
    why = _refusal(conv, activation, parameters, context) or obstacle([conv, *nodes], last.outputs)
    why = why or table.refusal(conv, activation)
    if not context.permit_unless(why, last):
        return
    attributes: dict[str, ir.Attr] = {"activation": ir.AttrString("activation", activation)}
    if parameters:
        attributes["activation_params"] = ir.AttrFloat32s("activation_params", parameters)
    new = _emit(conv, conv.inputs, attributes)
    scope.replace([conv, *nodes], [new], {last.outputs[0]: new.outputs[0]}, FuseConvActivation.name)
    facts.hand_on(last.outputs[0], new.outputs[0])


def _activation(last: ir.Node) -> tuple[str, ir.Value | None, list[ir.Node]]:
    """Which activation ends at a node, of what, and its nodes."""
    if not is_op(last, "Mul"):
        return last.op_type, last.inputs[0], [last]
    for x, gate in either_way(last):
        sigmoid = made_by(gate, "HardSigmoid")
        if sigmoid is not None and sigmoid.inputs[0] is x and gates_swish(sigmoid):
            return "HardSwish", x, [sigmoid, last]
    return "", None, []


def _emit(conv: ir.Node, inputs: Sequence[ir.Value | None], more: Mapping[str, ir.Attr]) -> ir.Node:
    attributes = dict(conv.attributes) | dict(more)
    return ir.Node(CONTRIB, "FusedConv", list(inputs), attributes.values(), num_outputs=1)


def _zeros(conv: ir.Node) -> np.ndarray:
    """A bias for a Conv of constant weights: a zero for each of its channels."""
    weight = conv.inputs[1]
    tensor = None if weight is None else tensor_of(weight)
    return np.zeros(0 if tensor is None else tensor.shape.numpy()[0], np.float32)


def _untyped(conv: ir.Node) -> bool:
    """FusedConv takes float32 only."""
    return {value.dtype for value in conv.inputs if value is not None} != {ir.DataType.FLOAT}


def _refusal(conv: ir.Node, activation: str, parameters: Parameters, context: Context) -> str | None:
    rules = context.target.fused_conv
    if rules is None:
        return f"target {context.target.name} has no {CONTRIB}::FusedConv"
    if activation not in rules.activations:
        return f"the FusedConv of target {context.target.name} has no {activation}"
    if reads_quantised(conv, 0):
        return _QUANTISED
    if parameters is None:
        return "the bounds of the Clip are not constant"
    return "FusedConv takes float32 only, or the type is not known" if _untyped(conv) else None


@final
class _Table:
    """What the cost table says of a Conv with its activation inside, at the typical sizes."""

    def __init__(self, facts: _Facts, context: Context) -> None:
        self._facts = facts
        self._costs = context.costs if context.costs is not None and context.costs.known else None

    def refusal(self, conv: ir.Node, activation: str) -> str | None:
        """Why the two stay apart."""
        if self._costs is None:
            return None
        form = conv_form(conv, activation, typical_size_of(self._facts.shapes, self._costs))
        faster = form is not None and self._costs.prefers_other(form)
        return f"the cost table has {form.instead} as faster" if form is not None and faster else None


def _leaky_relu(node: ir.Node) -> Parameters:
    return [node.attributes.get_float("alpha", 0.01)]


def _hard_sigmoid(node: ir.Node) -> Parameters:
    return [node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)]


def _clip(node: ir.Node) -> Parameters:
    bounds = clip_bounds(node)
    return None if bounds is None else list(bounds)


_QUANTISED: Final = "its input is dequantised: runtimes have an integer Conv for that, and no FusedConv"
_PARAMETERS: Final[Mapping[str, Callable[[ir.Node], Parameters]]] = {
    "Relu": lambda _: [],
    "Sigmoid": lambda _: [],
    "Tanh": lambda _: [],
    "LeakyRelu": _leaky_relu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda _: [],
    "Clip": _clip,
}
