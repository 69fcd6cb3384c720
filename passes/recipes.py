"""The recipes that burnish uses when none is given, by target and purpose."""

from __future__ import annotations

from typing import Final

from burnish.passes.recipe import Recipe

CLEAN_UP: Final = (
    "remove-unused,remove-identity,remove-sequences,fold-constants,remove-no-op,simplify-arithmetic,"
    "simplify-shapes,simplify-indices,fold-constants,remove-expand,merge-concats-splits,merge-reshapes,"
    "remove-no-op,eliminate-common-subexpressions,deduplicate-initializers,remove-unused,infer-shapes"
)
"""What every recipe starts and ends with."""

_FUSE: Final = (
    "fold-into-conv,fold-batch-norm,fuse-gelu,fuse-layer-norm,fuse-rms-norm,lower-kv-cache,fuse-rotary,"
    "fuse-attention,fuse-skip-norm,fuse-bias-gelu,remove-guards,merge-transposes,merge-constants"
)
"""Caches are lowered first: their layers are then no attentions for others to fuse. Transposes and
constants are merged last, when what they are part of has been recognised."""
_LAST: Final = "fuse-conv-activation"
"""What quantisation would not know any more."""

_GEMM: Final = "make-gemm,fold-into-conv,fold-batch-norm"
"""After everything that looks for a MatMul and an Add; a Gemm takes in what a MatMul cannot."""


def optimize_recipe(*, measured: bool) -> Recipe:
    """Clean up, fuse, clean up; `measured`: then drop what is slower on this machine."""
    text = f"{CLEAN_UP},{_FUSE},{_GEMM},{CLEAN_UP},{_LAST}"
    return Recipe.parse(f"{text},drop-slower,{CLEAN_UP}" if measured else text)


def quantize_recipe(scheme: str, *, measured: bool) -> Recipe:
    """Clean up, fuse what int8 leaves in float, quantise, and drop what is slower."""
    text = f"{CLEAN_UP},{_FUSE},unpack-attention,quantize-{scheme}"
    return Recipe.parse(f"{text},drop-slower,{CLEAN_UP}" if measured else f"{text},{CLEAN_UP}")
