"""Finds the attention layers that keep a cache: present = Concat(past, new) feeds keys and values.

A layer is read as what every fused operator needs to know: the queries, the new keys and values, past and
present, and the mask by its meaning. A mask is understood when it says nothing more than "a token, not later
than the query, within a window".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final, final

import onnx_ir as ir

from burnish.passes.base import is_op
from burnish.passes.dims import Dim
from burnish.passes.fusion.attention_mask import Atom, MaskReader, Reading, Term
from burnish.passes.fusion.attention_operands import dying_with, repeated, trace
from burnish.passes.fusion.attention_pattern import Found, find_attention, heads_apart, heads_joined
from burnish.passes.fusion.axes import View
from burnish.passes.matching import CONTRIB, made_by
from burnish.passes.shapes import Shapes

_HOPELESS: Final = -1e9  # what is added to masked scores of trained models; none of them reaches this
_UNKNOWN: Final = "no attention over batch, heads, tokens and features was recognised that reads this cache"
_GROWS: Final = (2, -2)  # the axis of [batch, kv_heads, tokens, features] along which a cache grows


@final
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys or values of one layer, each [batch, kv_heads, tokens, features]."""

    past: ir.Value
    new: ir.Value
    concat: ir.Node

    @property
    def present(self) -> ir.Value:
        """Past and new together; an output of the graph."""
        return self.concat.outputs[0]


@final
@dataclasses.dataclass(frozen=True)
class Layer:
    """An attention over a cache."""

    found: Found
    query: View
    """Rows [batch, tokens, heads * features], or heads apart [batch, heads, tokens, features]."""
    key: Cache
    value: Cache
    kv_heads: int
    scale: float
    mask: ir.Value
    """The input of tokens and padding, [batch, all tokens], integers."""
    window: int | None
    """A query sees that many keys at most, itself included; None: all before it."""

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """What is replaced."""
        return self.value.concat, self.key.concat, *self.found.nodes

    @property
    def pasts(self) -> tuple[ir.Value, ir.Value]:
        """Past keys and values."""
        return self.key.past, self.value.past

    @property
    def heads(self) -> int:
        """How many heads the queries have."""
        return _size(self.found.query, "N")

    @property
    def head_size(self) -> int:
        """Features of a head of queries and keys."""
        return _size(self.found.query, "D")

    @property
    def value_size(self) -> int:
        """Features of a head of values."""
        return _size(self.found.value, "D")


def cache_updates(graph: ir.Graph) -> list[ir.Node]:
    """The nodes that append to a cache: an input of the graph goes in, an output comes out."""
    return [node for node in graph if _appends(node)]


def _appends(node: ir.Node) -> bool:
    if not is_op(node, "Concat") or len(node.inputs) != 2 or node.inputs[0] is None:
        return False
    ends = node.inputs[0].is_graph_input() and node.outputs[0].is_graph_output()
    return ends and node.attributes.get_int("axis", 0) in _GROWS


def read_layers(graph: ir.Graph, shapes: Shapes) -> tuple[list[Layer], list[tuple[ir.Node, str]]]:
    """The layers with a cache in the order of the graph; and for what is not understood, why."""
    updates = cache_updates(graph)
    layers: list[Layer] = []
    misses: list[tuple[ir.Node, str]] = []
    nearly: list[tuple[ir.Node, str]] = []  # perhaps of attentions without a cache, which do no harm
    for node in graph if updates else ():
        found = find_attention(node, shapes) or _fused(node, shapes)
        layer = _layer(found, shapes) if isinstance(found, Found) else None
        if isinstance(found, str):
            nearly.append((node, found))
        elif isinstance(layer, Layer):
            layers.append(layer)
        elif layer is not None:
            misses.append((node, layer))
    read = [cache.concat for layer in layers for cache in (layer.key, layer.value)]
    unread = [node for node in updates if node not in read]
    return layers, misses or ((nearly or [(unread[0], _UNKNOWN)]) if unread else [])


def _fused(node: ir.Node, shapes: Shapes) -> Found | str | None:
    """What fuse-attention makes of an attention over a cache: onnxruntime's MultiHeadAttention."""
    if not is_op(node, "MultiHeadAttention", CONTRIB):
        return None
    given = [*node.inputs, *[None] * (8 - len(node.inputs))]
    query, heads = given[0], node.attributes.get_int("num_heads", 0) or 0
    ranks = [shapes[value].shape or () for value in given[:3]]
    if query is None or [len(shape) for shape in ranks] != [3, 4, 4] or any((given[3], *given[6:])):
        return "it is a MultiHeadAttention in a form that is not read"
    joined = heads_joined(query, ranks[0], heads) if heads else None
    if joined is None or given[4] is not None or bool(node.attributes.get_int("unidirectional", 0)):
        return "it is a MultiHeadAttention with a mask that is not read"
    key, value = (heads_apart(given[i] or query, ranks[i]) for i in (1, 2))
    size = joined.axes[2][1].size.size
    scale = node.attributes.get_float("scale", 0.0) or (size**-0.5 if size else 0.0)
    terms = () if given[5] is None else (Term("add", given[5]),)
    result = View(node.outputs[0], joined.axes)
    return Found((node,), joined, key, value, result, scale, terms)


def _layer(found: Found, shapes: Shapes) -> Layer | str | None:
    """A layer; a text says why it is not understood; None: it reads no cache that grows."""
    query = trace(found.query, shapes)
    key, value = _operand(found.key, shapes, scaled=True), _operand(found.value, shapes, scaled=False)
    caches = _cache(key, shapes), _cache(value, shapes)
    if caches == (None, None):
        return None
    if caches[0] is None or caches[1] is None:
        return "its keys or values are not what a Concat of past and new ones makes"
    if not all(_size(view, label) for view in (found.query, key, value) for label in "ND"):
        return "the number of heads or their size is not constant"
    kv_heads = _size(key, "N")
    if kv_heads != _size(value, "N") or _size(found.query, "N") % kv_heads:
        return "keys and values do not have heads that those of the queries can share"
    seen = _visible(found, shapes)
    if isinstance(seen, str):
        return seen
    rows = query.rows or query.heads
    scale = found.scale * rows.scale * key.scale
    if not scale > 0:
        return "the scale is not positive"
    layer = Layer(found, rows, caches[0], caches[1], kv_heads, scale, *seen)
    return layer if _is_alone(layer) else "its cache is used for something else, too"


def _is_alone(layer: Layer) -> bool:
    """Nothing else reads past or present: once they are buffers, they are longer than what is in them."""
    dead = dying_with(layer.nodes)
    values = [value for cache in (layer.key, layer.value) for value in (cache.past, cache.present)]
    return all(node in dead or is_op(node, "Shape") for value in values for node in value.consumers())


def _operand(view: View, shapes: Shapes, *, scaled: bool) -> View:
    """Keys or values before heads are repeated, [batch, kv_heads, tokens, features]."""
    heads = trace(view, shapes, scaled=scaled).heads
    few = repeated(heads, shapes)
    return heads if few is None else few


def _cache(view: View, shapes: Shapes) -> Cache | None:
    node = made_by(view.value, "Concat")
    if node is None or view.labels != ("B", "N", "S", "D") or not _appends(node):
        return None
    past, new = node.inputs
    kinds = [shapes[each].rank for each in (past, new)]
    return Cache(past, new, node) if past is not None and new is not None and kinds == [4, 4] else None


def _visible(found: Found, shapes: Shapes) -> tuple[ir.Value, int | None] | str:
    """The mask of tokens, and the window; a text says what is masked otherwise."""
    frame = found.frame
    if found.causal:
        return "it is causal without regard to the past"
    reader = MaskReader(shapes, frame, offsets=True)
    readings = [reader.read(term) for term in found.terms]
    known = [reading for reading in readings if reading is not None]
    if len(known) < len(readings):
        return "its mask is not provably one of tokens, causal, with or without a window"
    if any(reading.fill > _HOPELESS for reading in known):
        return "what is masked is not surely out of sight"
    return _meaning(known, frame.keys - frame.queries)


def _meaning(readings: Sequence[Reading], past: Dim) -> tuple[ir.Value, int | None] | str:
    atoms = list(dict.fromkeys(atom for reading in readings for atom in reading.atoms))
    causal = [atom for atom in atoms if atom.kind == "causal"]
    if [atom.slack for atom in causal] != [past]:
        return "its mask is not provably causal over past and new tokens"
    tokens = [atom for atom in atoms if atom.kind == "key"]
    mask = tokens[0].view.value if len(tokens) == 1 and tokens[0].view is not None else None
    if mask is None or not mask.is_graph_input() or tokens[0].inverted or len(mask.shape or ()) != 2:
        return "its mask does not provably come from an input that tells tokens from padding"
    widths = [_width(atom, past) for atom in atoms if atom.kind == "window"]
    if None in widths:
        return "the window of its mask is not constant"
    return mask, min((width for width in widths if width is not None), default=None)


def _width(window: Atom, past: Dim) -> int | None:
    """query <= key + slack, for queries that count without the past: how many keys one sees."""
    size = (window.slack + past).size
    return None if size is None or size < 0 else size + 1


def _size(view: View, label: str) -> int:
    return next((factor.size.size or 0 for factor in view.factors if factor.label == label), 0)
