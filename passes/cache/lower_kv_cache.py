"""present = Concat(past, new), attention over present  ->  one operator that updates the cache in place

Sources: GroupQueryAttention in docs/ContribOperators.md of onnxruntime; Ainslie et al., "GQA" (2023), for
shared heads; Beltagy et al., "Longformer" (2020), for the window.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import ClassVar, Final, final

import onnx_ir as ir

from burnish.dim_sums import names_of
from burnish.kv_cache import KV_CACHE, TOKENS, WINDOW
from burnish.passes.base import Context, Numerics, Pass
from burnish.passes.cache.group_query import GroupQuery, group_query_obstacle
from burnish.passes.cache.layers import Layer, cache_updates, read_layers
from burnish.passes.cache.lengths import Lengths
from burnish.passes.cache.tensor_scatter import TensorScatter, tensor_scatter_obstacle
from burnish.passes.editing import Editor
from burnish.passes.matching import scopes
from burnish.passes.shapes import Shapes
from burnish.target import CacheForm, Target

_OLDEST_OPSET: Final = 15  # Shape of some axes


@final
@dataclasses.dataclass(frozen=True)
class LowerKvCache(Pass):
    """Let one operator in each layer append to the cache and attend to it, as the target runs it best.

    Found are decoders whose layers append to their cache with Concat, from an input `past` to an output
    `present`, both [batch, kv_heads, tokens, head_size]; the attention over it may be in single steps (as
    the clean-up passes leave them), the standard Attention, or what fuse-attention made of it. The mask is
    read from its arithmetic: it must say nothing more than "a token, not later than the query, perhaps
    within a window". Repeated key heads, the mask and the guard against NaN go; rotary embeddings, norms of
    queries and keys, and projections stay as they are.

    Made is, by `form`,

    - `group-query`: com.microsoft::GroupQueryAttention with heads shared in groups, `softcap`,
      `local_window_size`, and two lengths that all layers share: of each row, its tokens in the mask; of
      all, that of the mask;
    - `tensor-scatter`: TensorScatter twice and the standard Attention, of opset 24. A row's new tokens are
      written behind its past, and `nonpad_kv_seqlen` says how many places are written; a window becomes a
      mask of the new tokens' size times the buffer's.

    Inputs and outputs keep names, types and order. `past` and `present` may be one buffer with room for
    more tokens than there are, which is then updated in place: both get the dim `past + new + room`, and
    what the graph computed from the length of `past` is computed from the mask and the new tokens instead.

    What is the same, and what is not: the neutral graph keeps the columns of a batch aligned, and padding
    stays a masked hole in the cache. The lowered one keeps every row without gaps: a row of n tokens has
    them at places 0 to n - 1, its next token comes to place n, and its rotary position, which is counted by
    the mask, is n as well. Hence equal, up to rounding, are

    1. every output, where the mask is full, whatever the past;
    2. for prompts with padding on the right and no past: logits of tokens, and caches at the places of
       tokens; what is computed for padding is not defined;
    3. one new token for each row after pasts of different lengths: logits. In the cache the new token
       comes to the end of its row, not to the end of the longest. With a window it is the lowered graph
       that computes what the row alone would give: in the neutral one, holes take places in the window.

    The mask may show padding as holes, as the neutral graph takes it, or at the end of rows: only how
    many tokens a row has is read. Not possible are prompts with padding on the left, many tokens for many
    rows that have a past (onnxruntime's GroupQueryAttention refuses it), and rows without a token. The
    model's metadata say so (`burnish.kv_cache`, see `burnish.kv_cache.InPlace`), and whoever compares
    models keeps to it.

    All layers with a cache are lowered, or none.
    """

    name: ClassVar[str] = "lower-kv-cache"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING
    looks_for: ClassVar[frozenset[str]] = frozenset({"Concat"})

    form: CacheForm | None = None
    """The operator that updates the cache; None: as the target runs it best."""

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many layers were lowered: all that have a cache, or none."""
        if not cache_updates(model.graph):
            return 0
        shapes = context.shapes(model)
        layers, misses = read_layers(model.graph, shapes)
        if layers and not misses:
            misses = list(self._obstacles(model, layers, shapes, context.target))
        for node, why in misses:
            context.miss(node, why)
        return 0 if misses or not layers else self._lower(model, layers, shapes, context)

    def _obstacles(
        self, model: ir.Model, layers: Sequence[Layer], shapes: Shapes, target: Target
    ) -> Iterator[tuple[ir.Node, str]]:
        first = layers[0].found.nodes[-1]
        opset = model.graph.opset_imports.get("", 1)
        if self._form(target) is None:
            yield first, f"target {target.name} has no operator that updates a cache in place"
        if opset < _OLDEST_OPSET:
            yield first, f"opset {opset} is too old, {_OLDEST_OPSET} is needed"
        if any(layer.mask is not layers[0].mask for layer in layers):
            yield first, "layers have masks from different inputs"
        new = _new_tokens(model, layers[0], shapes)
        if new is None:
            yield first, "no input is as long as the new tokens"
        elif any(_total(layer.mask) != _sum(past, new) for layer in layers for past in layer.pasts):
            yield first, "the dims of its inputs do not say that the mask covers past and new tokens"
        for layer in layers:
            if self._form(target) == "tensor-scatter":
                why = tensor_scatter_obstacle(layer, shapes, target, opset)
            else:
                why = group_query_obstacle(layer, shapes, target)
            if why is not None:
                yield layer.found.nodes[-1], why

    def _form(self, target: Target) -> CacheForm | None:
        return self.form or (target.kv_cache.form if target.kv_cache else None)

    def _lower(self, model: ir.Model, layers: Sequence[Layer], shapes: Shapes, context: Context) -> int:
        editor, scope = Editor(model), next(scopes(model))
        new = _new_tokens(model, layers[0], shapes)
        if new is None:
            return 0
        lengths = Lengths(model.graph, editor, layers[0].mask, new, self.name)
        room = _free_dim(model, "room")
        form = TensorScatter if self._form(context.target) == "tensor-scatter" else GroupQuery
        loose = [value for layer in layers for node in layer.nodes for value in node.inputs]
        done = 0
        for layer in layers:
            if not context.permit(layer.found.nodes[-1]):
                break
            presents = form(layer, scope, shapes, lengths).replace(self.name)
            for past, present in zip(layer.pasts, presents, strict=True):
                lengths.rewire(past, present=False)
                lengths.rewire(present, present=True)
                for value in (past, present):
                    value.shape = _roomy(past, layer.mask, room)
            done += 1
        scope.settle()
        editor.sweep(loose)
        if done:
            _promise(model, layers, self._form(context.target))
        return done


def _new_tokens(model: ir.Model, layer: Layer, shapes: Shapes) -> tuple[ir.Value, int] | None:
    """An input and the axis of it that is as long as the new tokens."""
    wanted = layer.found.frame.queries
    for value in model.graph.inputs:
        for axis, size in enumerate(shapes[value].shape or ()):
            if size == wanted:
                return value, axis
    return None


def _total(mask: ir.Value) -> str:
    return str(mask.shape[1]) if mask.shape is not None and len(mask.shape) == 2 else ""


def _sum(past: ir.Value, new: tuple[ir.Value, int]) -> str:
    """How long a mask of past and new tokens is, in words."""
    value, axis = new
    return f"{(past.shape or [0] * 4)[TOKENS]} + {(value.shape or [0] * 4)[axis]}"


def _free_dim(model: ir.Model, wish: str) -> str:
    """The name of a dim that no input has."""
    used = {name for value in model.graph.inputs for dim in value.shape or () for name in names_of(str(dim))}
    names = itertools.chain([wish], (f"{wish}_{number}" for number in itertools.count(1)))
    return next(name for name in names if name not in used)


def _roomy(cache: ir.Value, mask: ir.Value, room: str) -> ir.Shape:
    """The shape of a buffer: as long as the mask, and more."""
    dims = list(cache.shape or ())
    dims[TOKENS] = ir.SymbolicDim(f"{_total(mask)} + {room}")
    return ir.Shape(dims)


def _promise(model: ir.Model, layers: Sequence[Layer], form: CacheForm | None) -> None:
    """Say in the metadata how the cache is to be used."""
    windows = [layer.window for layer in layers if layer.window is not None]
    model.metadata_props[KV_CACHE] = str(form)
    if windows:
        model.metadata_props[WINDOW] = str(min(windows))
