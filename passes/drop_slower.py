"""fused(x)  ->  its standard ops, where those were measured faster

A fused op is not always the faster one: onnxruntime 1.31 needs 0.27 ms for SkipLayerNormalization on
[1, 128, 384] on a 2-core CPU, and 0.05 ms for Add and LayerNormalization.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import ClassVar, final

import onnx_ir as ir

from burnish.costs import MARGIN, Costs, Form, Ratio
from burnish.errors import BurnishError
from burnish.passes.base import Arrays, Context, Numerics, Pass
from burnish.passes.forms import Sizes, form_of, typical
from burnish.passes.fusion.alone import (
    NOTHING,
    Dims,
    Kind,
    alone,
    fused_nodes,
    inverse,
    is_constant,
    moving,
    write_out,
    written_out,
)
from burnish.passes.fusion.unfuse import is_used
from burnish.passes.matching import Scope


@final
@dataclasses.dataclass(frozen=True)
class DropSlower(Pass):
    """Write fused ops in standard ops again where those were measured faster on the target.

    The cost table decides where it knows the op at that class of sizes beyond noise. What it does not decide
    is timed, where models can be run: each distinct (op, shapes, types, attributes) once, alone, on the
    values of one typical input. An op whose difference is within noise stays: fewer nodes win. Fused ops in
    bodies and functions are not timed.
    """

    name: ClassVar[str] = "drop-slower"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING
    margin: float = MARGIN
    """How many times faster the standard ops must be, in every part of the rounds."""

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many fused ops were written in standard ops."""
        found = list(fused_nodes(model))
        if not found:
            return 0
        judge = _Judge(model, context, self.margin)
        places = [judge.place(node, scope) for node, scope in found]
        judge.time([place for place in places if judge.must_be_timed(place)])
        return sum(_drop(place, context) for place in places if place.is_slower)


@final
@dataclasses.dataclass
class _Place:
    """A fused node, and what is known of it."""

    node: ir.Node
    scope: Scope
    kinds: list[Kind]
    """Of each input: its type and shape as far as they are proved."""
    is_slower: bool | None = None
    """The standard ops are faster; None: not known."""


def _drop(place: _Place, context: Context) -> bool:
    if not context.permit(place.node):
        return False
    for value, kind in zip(place.node.inputs, place.kinds, strict=True):
        if value is not None and not value.is_graph_input():
            _annotate(value, *kind)
    write_out(place.node, place.scope, DropSlower.name)
    return True


def _annotate(value: ir.Value, dtype: ir.DataType | None, dims: Dims | None) -> None:
    """Write on a value what is known of it: an inverse reads it there."""
    if dims is not None:
        before = value.shape if value.shape is not None and len(value.shape) == len(dims) else dims
        value.shape = ir.Shape([b if d is None else d for b, d in zip(before, dims, strict=True)])
    if value.dtype is None and dtype is not None:
        value.dtype = dtype


@final
class _Judge:
    """Says which fused ops are slower: by the cost table, or by timing each distinct one once."""

    def __init__(self, model: ir.Model, context: Context, margin: float) -> None:
        self._model, self._context, self._margin = model, context, margin
        self._costs = context.costs or Costs()
        self._can_time = context.probe is not None and context.compare_speed is not None
        self._arrays: Arrays = {}
        self._ratios: dict[Hashable, Ratio] = {}

    def place(self, node: ir.Node, scope: Scope) -> _Place:
        """What is proved of a node, and what the cost table says at the typical sizes."""
        if not self._can_time and not self._costs.known:
            return _Place(node, scope, [NOTHING] * len(node.inputs))
        facts = [self._context.shapes(self._model)[value] for value in node.inputs]
        dims = [None if f.shape is None else tuple(dim.size for dim in f.shape) for f in facts]
        place = _Place(node, scope, [(f.dtype, each) for f, each in zip(facts, dims, strict=True)])
        self._look_up(place, [typical(fact, self._costs) for fact in facts])
        return place

    def must_be_timed(self, place: _Place) -> bool:
        """True when the table does not decide, and the clock can."""
        if place.is_slower is not None or not inverse(place.node).timed:
            return False
        why = None
        if not self._can_time:
            why = "not measured: nothing can run the model here"
            if self._context.costs is not None:
                why = "the cost table does not know what is faster at its size, and nothing is timed"
        elif place.scope.in_function or place.scope.graph is not place.scope.root:
            why = "not measured: it is in a body or function"
        if why is not None:
            self._context.miss(place.node, why)
        return why is None

    def time(self, places: Sequence[_Place]) -> None:
        """Decide by what the table knows at the sizes that are seen, else by the clock."""
        if not places or self._context.probe is None:
            return
        names = [value.name for place in places for value in moving(place.node) if value.name is not None]
        self._arrays = self._context.probe(self._model, list(dict.fromkeys(names)))
        for place in places:
            kinds = [self._seen(value) for value in place.node.inputs]
            place.kinds = [_believed(*pair) for pair in zip(place.kinds, kinds, strict=True)]
            why = self._refusal(place)
            if why is not None:
                self._context.miss(place.node, f"cannot be written in standard ops: {why}")
                continue
            self._look_up(place, [dims for _, dims in kinds])  # type: ignore[misc]
            if place.is_slower is None:
                self._by_the_clock(place, kinds)

    def _look_up(self, place: _Place, sizes: Sequence[Sizes | None]) -> None:
        form = self._form(place, sizes)
        known, slower = self._costs.of(form), self._costs.prefers_other(form, self._margin)
        if form is None or known is None or slower is None or (slower and self._refusal(place)):
            return
        place.is_slower = slower
        variant = f" ({form.variant})" if form.variant else ""
        self._tell(f"{place.node.op_type}{variant} about {list(form.size)}", known.ratio, form.instead,
                   f"by the {known.table} cost table")  # fmt: skip

    def _form(self, place: _Place, sizes: Sequence[Sizes | None]) -> Form | None:
        if not self._costs.known:
            return None
        at = dict(zip(place.node.inputs, sizes, strict=True))
        dtype = next((dtype for dtype, _ in place.kinds[:3] if dtype is not None), None)
        return form_of(place.node, at.get, dtype, place.scope.opset)

    def _refusal(self, place: _Place) -> str | None:
        """Why the node cannot be written in standard ops, by what is known of its inputs."""
        node = next(iter(alone(place.node, place.kinds, self._model).graph))
        return inverse(node).refuse(node, place.scope.opset)

    def _by_the_clock(self, place: _Place, kinds: Sequence[Kind]) -> None:
        try:
            ratio = self._ratio(place.node, kinds)
        except BurnishError as error:
            self._context.miss(place.node, f"not measured: {error.what}")
            return
        place.is_slower = ratio.exceeds(self._margin) is True
        shapes = " ".join(str(list(self._arrays[value.name or ""].shape)) for value in moving(place.node))
        self._tell(f"{place.node.op_type} {shapes}", ratio, "its standard form", "timed here")

    def _ratio(self, node: ir.Node, kinds: Sequence[Kind]) -> Ratio:
        """Time of the fused form by the time of the standard form.

        Raises:
            BurnishError: the timer cannot run one of them.
        """
        key = self._key(node, kinds)
        if key not in self._ratios and self._context.compare_speed is not None:
            fused = alone(node, kinds, self._model)
            feeds = {value.name or "": self._arrays[value.name or ""] for value in moving(node)}
            standard = written_out(fused, DropSlower.name)
            self._ratios[key] = self._context.compare_speed(fused, standard, feeds)
        return self._ratios[key]

    def _key(self, node: ir.Node, kinds: Sequence[Kind]) -> Hashable:
        inputs = tuple(
            None if value is None else (dims, str(dtype), is_constant(value))
            for value, (dtype, dims) in zip(node.inputs, kinds, strict=True)
        )
        outputs = tuple(is_used(output) for output in node.outputs)
        attributes = tuple(sorted(str(attribute) for attribute in node.attributes.values()))
        return node.domain, node.op_type, inputs, outputs, attributes

    def _seen(self, value: ir.Value | None) -> Kind:
        """Type and shape of an input in one run of the model."""
        tensor = None if value is None or not is_constant(value) else ir.convenience.get_const_tensor(value)
        if tensor is not None:
            return tensor.dtype, tuple(tensor.shape.numpy())
        if value is None or is_constant(value):
            return NOTHING
        array = self._arrays[value.name or ""]
        return ir.DataType.from_numpy(array.dtype), array.shape

    def _tell(self, what: str, ratio: Ratio, instead: str, by: str) -> None:
        text = f"{what}: {ratio} the time of {instead}, {by}"
        if text not in self._context.measured:
            self._context.measured.append(text)


def _believed(proved: Kind, seen: Kind) -> Kind:
    """What is proved; where nothing is, the type and rank that were seen."""
    dtype, dims = proved
    rank = None if seen[1] is None else (None,) * len(seen[1])
    return dtype or seen[0], rank if dims is None else dims
