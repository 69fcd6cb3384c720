"""Decides into which operator an attention can be fused without changing what it computes.

What onnxruntime 1.31.1 does (CPU, measured; `tests/passes/test_fuse_attention.py` keeps it measured):

- MultiHeadAttention and Attention of com.microsoft add `mask_filter_value` to the scores of a key whose
  mask is not positive, and then take an ordinary softmax. With the lowest float as filter a masked key has
  weight 0 exactly, and a row with nothing but masked keys gives the mean of all values; with -inf such a
  row is NaN. Both are what the arithmetic `scores + Where(mask, 0, filter)` gives.
- The standard Attention gives 0 for a row where everything is masked, by False, -inf or the lowest float;
  torch's scaled_dot_product_attention does so too.
- `unidirectional` is exact for as many queries as keys, also together with a mask whose filter is the lowest
  float (then nothing-but-masked rows average over later keys too, as the arithmetic does), not with -inf.
- The scale 0 means "the default" to the former, and is refused by the latter.
- Attention of com.microsoft without its bias crashes; the fused node always gets one.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final, Literal, final

import numpy as np
import onnx_ir as ir

from burnish.costs import Costs
from burnish.passes.base import is_op
from burnish.passes.forms import attention_form, evaluated
from burnish.passes.fusion.attention_mask import CAUSAL, Atom, Frame, MaskReader, Reading, Term
from burnish.passes.fusion.attention_operands import (
    CHANNELS,
    ROWS,
    SPLIT,
    Linear,
    Operand,
    repeated,
    split_bias,
    trace,
)
from burnish.passes.fusion.attention_pattern import Found
from burnish.passes.fusion.axes import ONE, View
from burnish.passes.fusion.scalars import number
from burnish.passes.shapes import Shapes
from burnish.target import Target

CONTRIB: Final = "com.microsoft"
_STANDARD_OPSET: Final = 23  # from where on ONNX has Attention
_LOWEST: Final = float(np.finfo(np.float32).min)
_COPIES: Final = frozenset({"Expand", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
_HOPELESS: Final = -1e9  # what is added to masked scores of trained models; none of them reaches this
# In float16 a kernel that adds masks in float32 gives other weights where everything is masked, and rounding
# alone is beyond what the pass promises.
_GROUPED: Final = f"grouped-query attention: {CONTRIB}::MultiHeadAttention has no heads that share keys"
_NOT_FLOAT: Final = "fusing single steps is not exact in any type but float32"


@final
@dataclasses.dataclass(frozen=True)
class Mask:
    """How the mask is given to the fused operator."""

    key: Atom | None = None
    """It is a mask of keys: [batch, keys], visible where positive."""
    filter: float = 0.0
    """What is added to the scores of masked keys."""
    causal: bool = False
    terms: tuple[Term, ...] = ()
    """It is a bias on the scores, or the standard operator's mask as it was."""
    guard: Literal["none", "key", "nan"] = "none"
    """Rows where everything is masked are 0: known from the key mask, or from the NaN that they become."""


Source = View | Linear
"""What a fused operator reads: rows, heads apart, or a projection that it makes again."""


@final
@dataclasses.dataclass(frozen=True)
class Plan:
    """What to put in the place of an attention."""

    form: Literal["packed", "contrib", "standard"]
    found: Found
    sources: tuple[Source, Source, Source]
    """Query, key and value; all three are projections of one input when the form is `packed`."""
    mask: Mask
    scale: float
    dying: frozenset[ir.Node]
    """Nodes that nothing needs any more once all attentions are fused, if nothing new reads them."""

    @property
    def is_apart(self) -> bool:
        """The operator reads and makes heads as an axis of their own."""
        return self.form == "standard" and any(map(_is_apart, self.sources))


def make_plan(
    found: Found,
    shapes: Shapes,
    target: Target,
    *,
    opset: int,
    dying: frozenset[ir.Node],
    packed: bool,
    costs: Costs | None = None,
) -> Plan | str:
    """The best operator for this attention on this target; a text says why there is none.

    `dying`: what nothing needs any more once all attentions of the graph are fused. `costs`: where they have
    the standard Attention faster than MultiHeadAttention, and neither takes in more, it is that.
    """
    views = ((found.query, True), (found.key, True), (found.value, False))
    operands = [trace(view, shapes, scaled=scaled) for view, scaled in views]
    why = "its scores have a soft-cap" if found.softcap else _mismatch(operands)
    if why is not None:
        return why
    grouped = opset >= 23 and target.has_kernel("", "Attention") and repeated(operands[1].heads, shapes)
    plan = _GROUPED if grouped else _contrib(found, operands, dying, shapes)
    if isinstance(plan, Plan) and packed and target.has_kernel(CONTRIB, "Attention"):
        plan = _packed(plan, operands)
    operator = "Attention" if isinstance(plan, Plan) and plan.form == "packed" else "MultiHeadAttention"
    if not target.has_kernel(CONTRIB, operator):
        plan = f"target {target.name} has no {CONTRIB}::{operator}"
    if opset < _STANDARD_OPSET or not target.has_kernel("", "Attention"):
        return plan
    if isinstance(plan, str):
        standard = _standard(found, operands, dying, shapes)
        return standard if isinstance(standard, Plan) else f"{plan}; {standard}"
    if not _prefers_standard(plan, shapes, costs):
        return plan
    standard = _standard(found, operands, dying, shapes)
    if isinstance(standard, str) and found.standard:
        return f"the cost table has the standard Attention as faster; {standard}"
    return standard if isinstance(standard, Plan) else plan


def _prefers_standard(plan: Plan, shapes: Shapes, costs: Costs | None) -> bool:
    """True when the standard Attention was measured faster at the typical sizes, and is no node more."""
    if costs is None or not costs.known or plan.form != "contrib" or _takes_a_bias(plan, shapes):
        return False
    frame, size, mask = plan.found.frame, plan.found.head_size, plan.mask
    dims = (frame.batch * frame.heads, frame.queries, frame.keys)
    sizes = [evaluated(dim, costs.sizes) for dim in dims]
    if not size or not all(sizes):
        return False
    words = {"mask": mask.key is not None, "scores bias": bool(mask.terms), "causal": mask.causal}
    variant = ", ".join(word for word, said in words.items() if said)
    form = attention_form(variant, (*(n or 0 for n in sizes), size))
    return costs.prefers_other(form) is True


def _takes_a_bias(plan: Plan, shapes: Shapes) -> bool:
    """True when MultiHeadAttention takes in constants that would stay in Adds before the standard one."""
    if any(map(_is_apart, plan.sources)):
        return False
    return any(
        source.bias is not None if isinstance(source, Linear) else split_bias(source, plan.dying, shapes)[1]
        for source in plan.sources
    )


def _mismatch(operands: list[Operand]) -> str | None:
    query, key, value = (operand.sizes for operand in operands)
    if not query["B"] == key["B"] == value["B"]:
        return "query, key and value are not provably of one batch size"
    if None in (query["N"].size, key["N"].size, query["D"].size, value["D"].size):
        return "the number of heads or their size is not constant"
    return None


def float_type(found: Found, shapes: Shapes) -> ir.DataType | None:
    """The type of query, key, value, scores and weights: it is one."""
    values = (value for node in found.nodes for value in (*node.inputs, *node.outputs))
    known = (shapes[value].dtype for value in values)
    return next((dtype for dtype in known if dtype is not None and dtype.is_floating_point()), None)


def _sources(operands: list[Operand], dying: frozenset[ir.Node]) -> tuple[Source, Source, Source] | None:
    """The best form of each; keys and values must have heads joined, or both apart."""
    query, key, value = (_source(operand, dying) for operand in operands)
    if _is_apart(key) != _is_apart(value):
        key, value = operands[1].heads, operands[2].heads
    apart = (source for source in (query, key, value) if isinstance(source, View) and _is_apart(source))
    usable = all(view.labels == ("B", "N", "S", "D") for view in apart)
    return (query, key, value) if usable else None


def _source(operand: Operand, dying: frozenset[ir.Node]) -> Source:
    if operand.rows is not None:
        return operand.rows
    if operand.linear is not None and operand.linear.node in dying:
        return operand.linear
    return operand.near or operand.heads


def _is_apart(source: Source) -> bool:
    return isinstance(source, View) and source.labels not in (ROWS, CHANNELS, SPLIT)


def _scaled(plan: Plan) -> Plan | str:
    scale = plan.found.scale * plan.sources[0].scale * plan.sources[1].scale
    fits = scale > 0 and math.isfinite(scale)
    return dataclasses.replace(plan, scale=scale) if fits else "the scale is not positive"


def _contrib(found: Found, operands: list[Operand], dying: frozenset[ir.Node], shapes: Shapes) -> Plan | str:
    if float_type(found, shapes) != ir.DataType.FLOAT:
        return _NOT_FLOAT
    query, key, value = (operand.sizes["N"] for operand in operands)
    if query != key or key != value:
        return _GROUPED
    sources = _sources(operands, dying)
    if sources is None or (found.standard and any(map(_is_apart, sources))):
        return "heads are apart where query, key and value are made"
    if _is_apart(sources[1]) and operands[1].sizes["D"] != operands[2].sizes["D"]:
        return "heads are apart, and those of keys and values differ in size"
    mask = _contrib_mask(found, shapes)
    return mask if isinstance(mask, str) else _scaled(Plan("contrib", found, sources, mask, 1.0, dying))


def _packed(plan: Plan, operands: list[Operand]) -> Plan | str:
    """The same with the projections inside, where they read one input and nobody else needs them."""
    query, key, value = (operand.linear for operand in operands)
    if query is None or key is None or value is None:
        return plan
    own = all(linear.node in plan.dying for linear in (query, key, value))
    if not own or not query.x is key.x is value.x or value.scale != 1.0:
        return plan
    return _scaled(dataclasses.replace(plan, form="packed", sources=(query, key, value)))


def _contrib_mask(found: Found, shapes: Shapes) -> Mask | str:
    """The mask as an input of com.microsoft's operators; a text says why it cannot be one."""
    frame = found.frame
    reader = MaskReader(shapes, frame)
    readings = [reader.read(term) for term in found.terms]
    mask = _readable(found, [r for r in readings if r]) if None not in readings else None
    if mask is not None:
        return mask
    if found.standard or found.causal:
        return "the mask is not provably one of keys, nor a causal one over as many queries as keys"
    fills = {term.number for term in found.terms if term.kind == "fill"}
    if not fills <= {-math.inf, _LOWEST}:
        return "what is filled into masked scores cannot be added instead"
    terms = [(term, shapes[term.value].shape) for term in found.terms]
    if not all(shape is not None and _fits(shape, frame) for _, shape in terms):
        return "the mask does not provably broadcast to [batch, heads, queries, keys]"
    # of what is neither read nor chosen from two numbers, nobody knows whether it holds -inf
    harmless = all(
        math.isfinite(reading.fill) if reading is not None else _is_finite(term, shapes)
        for term, reading in zip(found.terms, readings, strict=True)
    )
    return Mask(terms=found.terms, guard="nan" if found.guarded and not harmless else "none")


def _readable(found: Found, readings: list[Reading]) -> Mask | None:
    """The mask by its meaning: keys, or causal, or both; None where that would not be exact."""
    atoms = dict.fromkeys(atom for reading in readings for atom in reading.atoms)
    causal = found.causal or CAUSAL in atoms
    keys = [atom for atom in atoms if atom.kind == "key"]
    fills = {reading.fill for reading in readings if reading.atoms} or {-math.inf}
    if len(keys) > 1 or (causal and found.frame.queries != found.frame.keys):
        return None
    if len(fills) > 1 or (len(readings) > 1 and fills != {-math.inf}):
        return None
    fill = fills.pop()
    hopeless = fill <= _HOPELESS
    zeroed = found.guarded and (math.isinf(fill) or (found.standard and fill == _LOWEST))
    if not keys:
        return Mask(causal=causal) if hopeless or not causal else None
    if causal:
        return Mask(keys[0], _LOWEST, causal=True) if fill == _LOWEST and not zeroed else None
    if zeroed:
        return Mask(keys[0], _LOWEST, guard="key")
    if any(term.kind == "fill" for term in found.terms) and math.isfinite(fill):
        return Mask(keys[0], _LOWEST) if hopeless else None
    return Mask(keys[0], fill)


def _is_finite(term: Term, shapes: Shapes) -> bool:
    """True when nothing but finite numbers is added to the scores."""
    if term.kind != "add":
        return math.isfinite(term.number)
    value: ir.Value | None = term.value
    while (node := value.producer() if value is not None else None) is not None and node.op_type in _COPIES:
        value = node.inputs[0]
    numbers = [number(each, shapes) for each in node.inputs[1:]] if is_op(node, "Where") and node else [None]
    return all(each is not None and math.isfinite(each) for each in numbers)


def _fits(shape: tuple[object, ...], frame: Frame) -> bool:
    """True when a mask provably broadcasts, but for its last dim: the softmax's product settles that."""
    sizes = (frame.batch, frame.heads, frame.queries)[max(0, 4 - len(shape)) :]
    return 2 <= len(shape) <= 4 and all(dim in (ONE, size) for dim, size in zip(shape, sizes, strict=False))


def _standard(found: Found, operands: list[Operand], dying: frozenset[ir.Node], shapes: Shapes) -> Plan | str:
    """The standard Attention with heads joined, or with keys and values that are not repeated."""
    mask = Mask(causal=found.causal, terms=found.terms) if found.standard else _standard_mask(found, shapes)
    if isinstance(mask, str):
        return mask
    few = [repeated(operand.heads, shapes) for operand in operands[1:]]
    shared = [trace(view, shapes, scaled=i == 0) for i, view in enumerate(few) if view is not None]
    if len(shared) == 2:
        operands = [operands[0], *shared]
    sources = _sources(operands, dying)
    if sources is None or (any(map(_is_apart, sources)) and len(shared) < 2):
        return "the standard Attention would gain nothing: heads are apart where they are made"
    if any(map(_is_apart, sources)):
        sources = (operands[0].heads, operands[1].heads, operands[2].heads)
    if found.standard and len(shared) < 2 and not _is_apart(found.query):
        return "it is a standard Attention with heads joined already"
    return _scaled(Plan("standard", found, sources, mask, 1.0, dying))


def _standard_mask(found: Found, shapes: Shapes) -> Mask | str:
    """The mask of an attention in single steps, for an operator that gives 0 where all is masked."""
    if float_type(found, shapes) != ir.DataType.FLOAT:
        return _NOT_FLOAT
    if not found.terms:
        return Mask()
    frame = found.frame
    readings = [MaskReader(shapes, frame).read(term) for term in found.terms]
    atoms = {atom for reading in readings if reading for atom in reading.atoms}
    if None not in readings and (not atoms or (atoms == {CAUSAL} and frame.queries == frame.keys)):
        low = all(reading is not None and reading.fill <= _HOPELESS for reading in readings)
        return Mask(causal=bool(atoms)) if low else "what is masked is not surely out of sight"
    if not found.guarded or len(readings) > 1 or readings[0] is None or not math.isinf(readings[0].fill):
        return "where everything is masked the standard Attention gives 0, which this graph does not"
    shape = shapes[found.terms[0].value].shape
    if found.terms[0].kind != "add" or shape is None or shape[-2:] != (frame.queries, frame.keys):
        return "the mask is not provably of the size of the scores"
    return Mask(terms=found.terms) if _fits(shape, frame) else "the mask does not provably broadcast"
