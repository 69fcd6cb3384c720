"""The recipes that burnish uses when none is given, by target and purpose."""

from __future__ import annotations

from typing import Final

from burnish.passes.recipe import Recipe

CLEAN_UP: Final = (
    "inline-functions,remove-unused,remove-identity,remove-sequences,fold-constants,remove-no-op,"
    "simplify-arithmetic,simplify-shapes,simplify-indices,fold-constants,drop-zero-states,"
    "merge-concats-splits,merge-reshapes,simplify-arithmetic,remove-expand,remove-no-op,"
    "eliminate-common-subexpressions,deduplicate-initializers,remove-unused,infer-shapes"
)
"""What every recipe starts and ends with. Arithmetic is looked at again, and an Expand only then, when parts
that are joined again and reshapes that cancel out no longer stand between what belongs together."""

_FUSE: Final = (
    "unflatten-linear,split-stacked,fold-into-conv,fold-batch-norm,fuse-gelu,fuse-hard-swish,"
    "fuse-layer-norm,fuse-rms-norm,lower-kv-cache,fuse-rotary,fuse-attention,pack-attention,fuse-repeat,"
    "fuse-skip-norm,fuse-bias-gelu,fuse-dynamic-quantize,fuse-group-norm,lower-group-norm,remove-guards,"
    "narrow-rows,merge-transposes,merge-constants,merge-slices"
)
"""Caches are lowered first: their layers are then no attentions for others to fuse. Rows are left out,
and transposes, constants and slices merged, last: when what they are part of has been recognised."""
_LAST: Final = "fuse-conv-activation,fuse-matmul"
"""What quantisation would not know any more."""

_GEMM: Final = (
    "make-gemm,fold-into-conv,fold-batch-norm,fold-before-conv,sink-resize,merge-reshapes,merge-reductions"
)
"""After everything that looks for a MatMul and an Add; a Gemm takes in what a MatMul cannot. Reshapes met
where transposes went; what is left of them is what a reduction may take in."""


def optimize_recipe(*, measured: bool) -> Recipe:
    """Clean up, fuse, drop what was `measured` as slower (now, or in the cost table), clean up."""
    drop = "drop-slower," if measured else ""
    return Recipe.parse(f"{CLEAN_UP},{_FUSE},{_GEMM},{drop}{CLEAN_UP},{_LAST}")


def quantize_recipe(scheme: str, *, measured: bool) -> Recipe:
    """Clean up, fuse what int8 leaves in float, quantise, and drop what is slower (see `optimize_recipe`)."""
    text = f"{CLEAN_UP},{_FUSE},unpack-attention,quantize-{scheme}"
    return Recipe.parse(f"{text},drop-slower,{CLEAN_UP}" if measured else f"{text},{CLEAN_UP}")
