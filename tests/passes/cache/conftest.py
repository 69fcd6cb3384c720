"""A decoder of two layers with a cache, written as exporters write it, and what lowers and checks it."""

from collections.abc import Callable

import msgspec
import numpy as np
import onnx_ir as ir
import pytest

from burnish.checking import DifferentialChecker
from burnish.manifest import DimRange
from burnish.model import copy_model, signature
from burnish.passes.base import Context, Pass
from burnish.passes.cache.lower_kv_cache import LowerKvCache
from burnish.passes.recipe import Recipe
from burnish.passes.runner import Outcome, run_recipe
from burnish.testing import parse

LAYER = """
    q{n}_rows = MatMul (h{n}, wq{n})
    q{n}_split = Reshape (q{n}_rows, q_heads)
    q{n} = Transpose <perm = [0, 2, 1, 3]> (q{n}_split)
    k{n}_rows = MatMul (h{n}, wk{n})
    k{n}_split = Reshape (k{n}_rows, kv_split)
    k{n} = Transpose <perm = [0, 2, 1, 3]> (k{n}_split)
    v{n}_rows = MatMul (h{n}, wv{n})
    v{n}_split = Reshape (v{n}_rows, kv_split)
    v{n} = Transpose <perm = [0, 2, 1, 3]> (v{n}_split)
    present_{n}_key = Concat <axis = 2> (past_{n}_key, k{n})
    present_{n}_value = Concat <axis = 2> (past_{n}_value, v{n})
    {repeated}
    k{n}_turned = Transpose <perm = [0, 1, 3, 2]> ({k_all})
    product{n} = MatMul (q{n}, k{n}_turned)
    scores{n} = Mul (product{n}, scale)
    {softcap}
    masked{n} = Add ({capped}{n}, {mask})
    weights{n} = Softmax <axis = -1> (masked{n})
    heads{n} = MatMul (weights{n}, {v_all})
    swapped{n} = Transpose <perm = [0, 2, 1, 3]> (heads{n})
    joined{n} = Reshape (swapped{n}, rows)
    out{n} = MatMul (joined{n}, wo{n})
    h{next} = Add (h{n}, out{n})
"""
REPEATED = """
    k{n}_five = Unsqueeze (present_{n}_key, axis2)
    k{n}_wide = Expand (k{n}_five, twice)
    k{n}_all = Reshape (k{n}_wide, merged)
    v{n}_five = Unsqueeze (present_{n}_value, axis2)
    v{n}_wide = Expand (v{n}_five, twice)
    v{n}_all = Reshape (v{n}_wide, merged)
"""
SOFTCAP = """
    less{n} = Div (scores{n}, cap)
    bent{n} = Tanh (less{n})
    soft{n} = Mul (bent{n}, cap)
"""
WINDOWED = """
    reach = Add (keys, window)
    near = Greater (reach, queries)
    all_ok = And (tokens_ok, near)
"""
SLOPE = """
    ramp = Cast <to = 1> (old)
    sloped = Add (mask, ramp)
"""
OTHER = """
    parts = Reshape (h2, kv_split)
    apart = Transpose <perm = [0, 2, 1, 3]> (parts)
    turned = Transpose <perm = [0, 2, 3, 1]> (parts)
    alike = MatMul (apart, turned)
    shares = Softmax <axis = -1> (alike)
    mixed = MatMul (shares, apart)
    back = Transpose <perm = [0, 2, 1, 3]> (mixed)
    end = Reshape (back, narrow)
"""
MODEL = """
    g (int64[batch, sequence] input_ids, int64[batch, past_sequence + sequence] attention_mask {pasts})
        => (float[batch, sequence, 20] logits {presents})
    {{
        past_shape = Shape <start = 2, end = 3> (past_0_key)
        all_shape = Shape <start = 1, end = 2> (attention_mask)
        past_size = Squeeze (past_shape)
        all_size = Squeeze (all_shape)
        counted = CumSum (attention_mask, one)
        places = Sub (counted, one)
        above = Max (places, zero)
        now = Slice (above, past_shape, far, axis1)
        words = Gather (table, input_ids)
        spots = Gather (positions, now)
        h0 = Add (words, spots)
        new = Range (past_size, all_size, one)
        old = Range (zero, all_size, one)
        queries = Unsqueeze (new, column)
        keys = Unsqueeze (old, row)
        causal = {causal} (keys, queries)
        real = Cast <to = 9> (attention_mask)
        shown = Unsqueeze (real, middle)
        tokens_ok = And (causal, shown)
        {window}
        mask = Where ({allowed}, nothing, lowest)
        {slope}
        {layers}
        {other}
        logits = MatMul ({end}, head)
    }}
"""


def make_decoder(
    *,
    layers: int = 2,
    window: int | None = None,
    softcap: float | None = None,
    opset: int = 20,
    head: int = 8,
    kv: int = 2,
    causal: str = "LessOrEqual",
    sloped: bool = False,
    other: bool = False,
) -> ir.Model:
    """A neutral decoder: 4 heads of queries over 2 of keys, positions counted by the mask."""
    text = "".join(
        LAYER.replace("{repeated}", REPEATED if kv == 2 else "")
        .replace("{k_all}", "k{n}_all" if kv == 2 else "present_{n}_key")
        .replace("{v_all}", "v{n}_all" if kv == 2 else "present_{n}_value")
        .replace("{softcap}", SOFTCAP if softcap else "")
        .replace("{capped}", "soft" if softcap else "scores")
        .replace("{mask}", "sloped" if sloped else "mask")
        .replace("{next}", str(n + 1))
        .replace("{n}", str(n))
        for n in range(layers)
    )
    caches = [(n, kind) for n in range(layers) for kind in ("key", "value")]
    size = f"batch, {kv}, %s, {head}"
    whole = MODEL.format(
        pasts="".join(f", float[{size % 'past_sequence'}] past_{n}_{kind}" for n, kind in caches),
        presents="".join(
            f", float[{size % 'past_sequence + sequence'}] present_{n}_{kind}" for n, kind in caches
        ),
        causal=causal, slope=SLOPE if sloped else "", window=WINDOWED if window else "",
        allowed="all_ok" if window else "tokens_ok",
        layers=text, other=OTHER if other else "", end="end" if other else f"h{layers}",
    )  # fmt: skip
    # dims with signs are no words of the text form
    whole = whole.replace("past_sequence + sequence", "total")
    model = parse(whole, opset=opset, weights=weights(layers, head, kv, window, softcap))
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = ir.Shape(
            ["past_sequence + sequence" if str(dim) == "total" else dim for dim in value.shape or ()]
        )
    return model


def weights(
    layers: int, head: int, kv: int, window: int | None, softcap: float | None
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)

    def random(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32) * 0.4

    found: dict[str, np.ndarray] = {
        "table": random(20, 16), "positions": random(200, 16), "head": random(16, 20),
        "scale": np.array(head**-0.5, np.float32), "nothing": np.array(0, np.float32),
        "lowest": np.array(np.finfo(np.float32).min), "cap": np.array(softcap or 1, np.float32),
        "window": np.array(window or 1), "one": np.array(1), "zero": np.array(0), "far": np.array([1 << 40]),
        "axis1": np.array([1]), "axis2": np.array([2]), "column": np.array([0, 1, 3]),
        "row": np.array([0, 1, 2]), "middle": np.array([1, 2]), "q_heads": np.array([0, 0, 4, head]),
        "kv_split": np.array([0, 0, kv, head]), "twice": np.array([1, 1, 2, 1, 1]),
        "narrow": np.array([0, 0, 2 * head]), "merged": np.array([0, 4, -1, head]),
        "rows": np.array([0, 0, 4 * head]),
    }  # fmt: skip
    for n in range(layers):
        found |= {f"wq{n}": random(16, 4 * head), f"wk{n}": random(16, kv * head)}
        found |= {f"wv{n}": random(16, kv * head), f"wo{n}": random(4 * head, 16)}
    return found


def lower(model: ir.Model, form: str | None = None) -> ir.Model:
    model = copy_model(model)
    context = Context()
    assert LowerKvCache(form=form).rewrite(model, context) == 2, context.misses  # type: ignore[arg-type]
    assert context.misses == []
    return model


def check(model: ir.Model, *passes: Pass) -> Outcome:
    interface = msgspec.structs.replace(
        signature(model), dims={"past_sequence": DimRange(0), "sequence": DimRange(1), "batch": DimRange(1)}
    )
    checker = DifferentialChecker(interface)
    return run_recipe(Recipe(passes), model, Context(), checker)


@pytest.fixture
def decoder() -> Callable[..., ir.Model]:
    """`make_decoder`."""
    return make_decoder


@pytest.fixture
def lowered() -> Callable[..., ir.Model]:
    """`lower`: a copy whose two layers are lowered."""
    return lower


@pytest.fixture
def checked() -> Callable[..., Outcome]:
    """`check`: passes run and compared, at every size of past, sequence and batch."""
    return check
