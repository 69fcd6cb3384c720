"""Finds attention: softmax(query @ key * scale + mask) @ value, however it is written."""

from __future__ import annotations

import dataclasses
import math
from typing import Final, final

import onnx_ir as ir

from burnish.passes.base import is_op
from burnish.passes.dims import Dim
from burnish.passes.fusion.attention_mask import Frame, Term
from burnish.passes.fusion.axes import Factor, View
from burnish.passes.fusion.scalars import number
from burnish.passes.matching import close, either_way, made_by
from burnish.passes.shapes import Shape, Shapes

_MAX_STEPS: Final = 12  # between the product of query and key and the softmax
_ARITHMETIC: Final = frozenset({"Add", "Mul", "Div", "Where", "Identity", "Tanh"})


@final
@dataclasses.dataclass(frozen=True)
class Found:
    """An attention in the graph; query, key and value are views whose factors are B, N, S and D."""

    nodes: tuple[ir.Node, ...]
    """What computes it, first to last; the last makes the result."""
    query: View
    key: View
    value: View
    result: View
    scale: float
    terms: tuple[Term, ...] = ()
    """What masks the scores, in the order in which it is applied."""
    causal: bool = False
    """The standard Attention was told to let no query look ahead."""
    guarded: bool = False
    """A row of scores that is -inf throughout gives 0 (otherwise NaN)."""
    standard: bool = False
    """It is the standard Attention already (with heads as an axis of their own, or not)."""
    softcap: float = 0.0
    """Scores are `softcap * tanh(scores / softcap)` before they are masked; 0: as they are."""

    @property
    def frame(self) -> Frame:
        """Sizes of the scores."""
        query, key = _by_label(self.query), _by_label(self.key)
        return Frame(query["B"], query["N"], query["S"], key["S"])

    @property
    def head_size(self) -> int | None:
        """Features of a query's head."""
        return _by_label(self.query)["D"].size


def _by_label(view: View) -> dict[str, Dim]:
    return {factor.label: factor.size for factor in view.factors}


def find_attention(node: ir.Node, shapes: Shapes) -> Found | str | None:
    """The attention that `node` (a Softmax or a standard Attention) is part of.

    A text says why it is nearly one; None: it is nothing like one.
    """
    if is_op(node, "Attention"):
        return _standard(node, shapes)
    return _decomposed(node, shapes) if is_op(node, "Softmax") else None


def heads_apart(value: ir.Value, shape: Shape, order: str = "BNSD") -> View:
    """A tensor of rank 4 whose axes are batch, heads, positions and features in that order."""
    return View(value, tuple((Factor(label, size),) for label, size in zip(order, shape, strict=True)))


def heads_joined(value: ir.Value, shape: Shape, heads: int) -> View | None:
    """A tensor [batch, positions, heads * features]; None when the last dim does not divide."""
    features = shape[2].divided_by(Dim.of(heads))
    if features is None:
        return None
    last = (Factor("N", Dim.of(heads)), Factor("D", features))
    return View(value, ((Factor("B", shape[0]),), (Factor("S", shape[1]),), last))


def _standard(node: ir.Node, shapes: Shapes) -> Found | str | None:
    attributes = node.attributes
    scores = [value for value in node.outputs[1:] if value.uses() or value.is_graph_output()]
    if scores or any(value is not None for value in node.inputs[4:]):
        return "it has a key and value cache, or gives out its scores"
    if attributes.get_float("softcap", 0.0) or "softmax_precision" in attributes:
        return "it has a softcap, or a precision for its softmax"
    names = ("q_num_heads", "kv_num_heads", "kv_num_heads")
    views = [
        _operand(value, shapes, attributes.get_int(name, 0) or 0)
        for value, name in zip(node.inputs[:3], names, strict=True)
    ]
    query, key, value = views
    if query is None or key is None or value is None:
        return "the shape of query, key or value is not known"
    scale = attributes.get_float("scale", None) or _default_scale(query)
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    terms = () if mask is None else (Term("keep" if shapes[mask].dtype == ir.DataType.BOOL else "add", mask),)
    return Found(
        (node,), query, key, value, _result(node.outputs[0], query, value), scale or 0.0,
        terms=tuple(dataclasses.replace(term, number=-math.inf) for term in terms),
        causal=bool(attributes.get_int("is_causal", 0)), guarded=True, standard=True,
    )  # fmt: skip


def _operand(value: ir.Value | None, shapes: Shapes, heads: int) -> View | None:
    shape = shapes[value].shape
    if value is None or shape is None or len(shape) not in (3, 4):
        return None
    if len(shape) == 4:
        return heads_apart(value, shape)
    return heads_joined(value, shape, heads) if heads else None


def _result(output: ir.Value, query: View, value: View) -> View:
    """The axes of the query, with the features of the value."""
    features = next(factor for factor in value.factors if factor.label == "D")
    axes = (tuple(features if f.label == "D" else f for f in axis) for axis in query.axes)
    return View(output, tuple(axes))


def _default_scale(query: View) -> float | None:
    size = _by_label(query)["D"].size
    return 1.0 / math.sqrt(size) if size else None


def _decomposed(softmax: ir.Node, shapes: Shapes) -> Found | str | None:
    scores = _scores(softmax.inputs[0], shapes)
    outcome = _weighted(softmax, shapes)
    if scores is None or outcome is None:
        return None
    if isinstance(scores, str) or isinstance(outcome, str):
        return scores if isinstance(scores, str) else str(outcome)
    product, chain, scale, terms, softcap = scores
    guard, weighted = outcome
    rank = shapes[softmax.outputs[0]].rank
    if rank is not None and softmax.attributes.get_int("axis", -1) not in (-1, rank - 1):
        return "the softmax is not over the keys"
    operands = (product.inputs[0], product.inputs[1], weighted.inputs[1])
    known = [(v, shapes[v].shape) for v in operands if v is not None]
    if any(shape is None or len(shape) != 4 for _, shape in known) or len(known) < 3:
        return "query, key and value do not provably have 4 dims: batch, heads, positions, features"
    query, key, value = (
        heads_apart(value, shape or (), order)
        for (value, shape), order in zip(known, ("BNSD", "BNDS", "BNSD"), strict=True)
    )
    nodes = (product, *chain, softmax, *guard, weighted)
    result = _result(weighted.outputs[0], query, value)
    return Found(nodes, query, key, value, result, scale, tuple(terms), guarded=bool(guard), softcap=softcap)


def _weighted(softmax: ir.Node, shapes: Shapes) -> tuple[tuple[ir.Node, ...], ir.Node] | str | None:
    """The guard against NaN after a softmax, and the product with the values."""
    weights = softmax.outputs[0]
    guard = _nan_guard(weights, shapes)
    if guard is not None:
        weights = guard[-1].outputs[0]
    users = [use.node for use in weights.uses()]
    near = [node for node in users if _is_product(node) and node.inputs[0] is weights]
    if any(is_op(node, "Dropout") for node in users):
        return "there is a Dropout between the softmax and the values"
    if not near:
        return None
    if len(users) > 1 or weights.is_graph_output() or softmax.outputs[0].is_graph_output():
        return "the attention weights are used elsewhere too"
    return guard or (), near[0]


def _nan_guard(weights: ir.Value, shapes: Shapes) -> tuple[ir.Node, ir.Node] | None:
    """Where(IsNaN(weights), 0, weights)."""
    nodes = {use.node for use in weights.uses()}
    for test in nodes:
        for choice in nodes:
            if (
                len(nodes) == 2 and is_op(test, "IsNaN") and is_op(choice, "Where")
                and choice.inputs[0] is test.outputs[0] and choice.inputs[2] is weights
                and number(choice.inputs[1], shapes) == 0.0 and len(test.outputs[0].uses()) == 1
            ):  # fmt: skip
                return test, choice
    return None


_Scores = tuple[ir.Node, tuple[ir.Node, ...], float, list[Term], float]


def _scores(value: ir.Value | None, shapes: Shapes) -> _Scores | str | None:
    """The product behind the scores; the nodes after it, the factor on it, what masks it, and its cap."""
    nodes: list[ir.Node] = []
    scale, terms, softcap = 1.0, list[Term](), 0.0
    while value is not None:
        node = value.producer()
        if node is None or len(nodes) > _MAX_STEPS or not _leads_to_product(value):
            return None
        if len(value.uses()) > 1 or value.is_graph_output():
            return "the scores are used elsewhere too"
        if _is_product(node):
            return node, tuple(reversed(nodes)), scale, terms[::-1], softcap
        capped = _capped(node, shapes)
        if capped is not None:
            if softcap or scale != 1.0:
                return "the scores are scaled after their soft-cap"
            value, softcap, inside = capped
            nodes.extend(inside)
            continue
        nodes.append(node)
        step = _step(node, shapes)
        if step is None:
            return None
        value, factor, term = step
        if term is not None and (scale != 1.0 or softcap):
            return "the mask is added before the scale or the soft-cap"
        scale *= factor
        terms.extend([term] if term is not None else [])
    return None


def _capped(node: ir.Node, shapes: Shapes) -> tuple[ir.Value, float, tuple[ir.Node, ...]] | None:
    """cap * Tanh(scores / cap): the scores, the cap, and the three nodes, last first."""
    for bent, cap in either_way(node) if is_op(node, "Mul") else ():
        tanh = made_by(bent, "Tanh")
        divide = made_by(tanh.inputs[0], "Div") if tanh else None
        limit = number(cap, shapes, max_rank=4)
        if tanh is None or divide is None or divide.inputs[0] is None or not limit or limit <= 0:
            continue
        alone = all(len(value.uses()) == 1 for value in (*tanh.outputs, *divide.outputs))
        if alone and close(number(divide.inputs[1], shapes, max_rank=4), limit):
            return divide.inputs[0], limit, (node, tanh, divide)
    return None


def _step(node: ir.Node, shapes: Shapes) -> tuple[ir.Value, float, Term | None] | None:
    """One step back from masked or scaled scores: (scores, factor, mask)."""
    if node.op_type == "Where":
        return _filled(node, shapes)
    if node.op_type == "Identity" and node.inputs[0] is not None:
        return node.inputs[0], 1.0, None
    for scores, other in either_way(node) if len(node.inputs) == 2 else ():
        factor = number(other, shapes, max_rank=4)
        if node.op_type == "Add" and _leads_to_product(scores):
            return scores, 1.0, Term("add", other)
        if node.op_type == "Mul" and factor is not None:
            return scores, factor, None
        if node.op_type == "Div" and factor and other is node.inputs[1]:
            return scores, 1.0 / factor, None
    return None


def _filled(node: ir.Node, shapes: Shapes) -> tuple[ir.Value, float, Term | None] | None:
    condition, yes, no = node.inputs
    for scores, other, inverted in ((no, yes, False), (yes, no, True)):
        fill = number(other, shapes, max_rank=4)
        if scores is not None and condition is not None and fill is not None:
            return scores, 1.0, Term("fill", condition, fill, inverted)
    return None


def _leads_to_product(value: ir.Value, depth: int = _MAX_STEPS) -> bool:
    node = value.producer()
    if node is None or depth == 0 or node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "MatMul":
        return _is_product(node)
    if node.op_type not in _ARITHMETIC:
        return False
    return any(_leads_to_product(v, depth - 1) for v in node.inputs if v is not None)


def _is_product(node: ir.Node) -> bool:
    """A MatMul of two tensors that are both computed."""
    return is_op(node, "MatMul") and all(
        value is not None and value.const_value is None and made_by(value, "Constant") is None
        for value in node.inputs
    )
