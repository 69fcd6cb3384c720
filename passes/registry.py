"""Every pass by name: one line each, imported on use. A test walks the table.

Passes of other packages come by entry points: `burnish.passes.third_party`.
"""

from __future__ import annotations

import importlib
from typing import Final

from burnish.errors import RecipeError, nearest
from burnish.passes.base import Pass
from burnish.passes.third_party import load_third_party, third_party

# fmt: off
PASSES: Final[dict[str, str]] = {
    "remove-identity": "burnish.passes.cleanup.remove_identity:RemoveIdentity",
    "inline-functions": "burnish.passes.cleanup.inline_functions:InlineFunctions",
    "remove-sequences": "burnish.passes.cleanup.remove_sequences:RemoveSequences",
    "remove-unused": "burnish.passes.cleanup.remove_unused:RemoveUnused",
    "fold-constants": "burnish.passes.cleanup.fold_constants:FoldConstants",
    "deduplicate-initializers": "burnish.passes.cleanup.deduplicate_initializers:DeduplicateInitializers",
    "eliminate-common-subexpressions":
        "burnish.passes.cleanup.eliminate_common_subexpressions:EliminateCommonSubexpressions",
    "simplify-shapes": "burnish.passes.cleanup.simplify_shapes:SimplifyShapes",
    "simplify-indices": "burnish.passes.cleanup.simplify_indices:SimplifyIndices",
    "merge-reshapes": "burnish.passes.cleanup.merge_reshapes:MergeReshapes",
    "remove-expand": "burnish.passes.cleanup.remove_expand:RemoveExpand",
    "simplify-arithmetic": "burnish.passes.cleanup.simplify_arithmetic:SimplifyArithmetic",
    "merge-constants": "burnish.passes.cleanup.merge_constants:MergeConstants",
    "merge-transposes": "burnish.passes.cleanup.merge_transposes:MergeTransposes",
    "merge-concats-splits": "burnish.passes.cleanup.merge_concats_splits:MergeConcatsSplits",
    "merge-slices": "burnish.passes.cleanup.merge_slices:MergeSlices",
    "merge-reductions": "burnish.passes.cleanup.merge_reductions:MergeReductions",
    "drop-zero-states": "burnish.passes.cleanup.drop_zero_states:DropZeroStates",
    "split-stacked": "burnish.passes.cleanup.split_stacked:SplitStacked",
    "remove-no-op": "burnish.passes.cleanup.remove_no_op:RemoveNoOp",
    "remove-guards": "burnish.passes.cleanup.remove_guards:RemoveGuards",
    "infer-shapes": "burnish.passes.cleanup.infer_shapes:InferShapes",
    "fold-into-conv": "burnish.passes.fusion.fold_into_conv:FoldIntoConv",
    "fold-before-conv": "burnish.passes.fusion.fold_before_conv:FoldBeforeConv",
    "sink-resize": "burnish.passes.fusion.sink_resize:SinkResize",
    "fold-batch-norm": "burnish.passes.fusion.fold_batch_norm:FoldBatchNorm",
    "unflatten-linear": "burnish.passes.fusion.unflatten_linear:UnflattenLinear",
    "fuse-gelu": "burnish.passes.fusion.fuse_gelu:FuseGelu",
    "fuse-hard-swish": "burnish.passes.fusion.fuse_hard_swish:FuseHardSwish",
    "fuse-layer-norm": "burnish.passes.fusion.fuse_layer_norm:FuseLayerNorm",
    "fuse-group-norm": "burnish.passes.fusion.fuse_group_norm:FuseGroupNorm",
    "lower-group-norm": "burnish.passes.fusion.lower_group_norm:LowerGroupNorm",
    "fuse-dynamic-quantize": "burnish.passes.fusion.fuse_dynamic_quantize:FuseDynamicQuantize",
    "fuse-conv-activation": "burnish.passes.fusion.fuse_conv_activation:FuseConvActivation",
    "fuse-matmul": "burnish.passes.fusion.fuse_matmul:FuseMatMul",
    "fuse-rms-norm": "burnish.passes.fusion.fuse_rms_norm:FuseRmsNorm",
    "fuse-rotary": "burnish.passes.fusion.fuse_rotary:FuseRotary",
    "fuse-attention": "burnish.passes.fusion.fuse_attention:FuseAttention",
    "pack-attention": "burnish.passes.fusion.pack_attention:PackAttention",
    "pack-products": "burnish.passes.fusion.pack_products:PackProducts",
    "fuse-repeat": "burnish.passes.fusion.fuse_repeat:FuseRepeat",
    "fuse-skip-norm": "burnish.passes.fusion.fuse_skip_norm:FuseSkipNorm",
    "fuse-bias-gelu": "burnish.passes.fusion.fuse_bias_gelu:FuseBiasGelu",
    "lower-kv-cache": "burnish.passes.cache.lower_kv_cache:LowerKvCache",
    "make-gemm": "burnish.passes.fusion.make_gemm:MakeGemm",
    "narrow-rows": "burnish.passes.fusion.narrow_rows:NarrowRows",
    "unpack-attention": "burnish.passes.fusion.unpack_attention:UnpackAttention",
    "quantize-dynamic": "burnish.passes.quantize.quantize_dynamic:QuantizeDynamic",
    "quantize-static": "burnish.passes.quantize.quantize_static:QuantizeStatic",
    "drop-slower": "burnish.passes.drop_slower:DropSlower",
}
# fmt: on


def load_pass(name: str) -> type[Pass]:
    """The class of a pass by name.

    Raises:
        RecipeError: no pass has that name; the hint suggests the nearest. Or a package took a name that is
            taken.
        PassError: the pass of a package cannot be imported, or is none.
    """
    foreign = third_party()
    if name in foreign:
        return load_third_party(name, ours=name in PASSES)
    if name not in PASSES:
        known = (*PASSES, *foreign)
        raise RecipeError(f"No pass named {name!r}.", nearest(name, known), code="RECIPE_UNKNOWN_PASS")
    module, _, attribute = PASSES[name].partition(":")
    cls: type[Pass] = getattr(importlib.import_module(module), attribute)
    return cls
