"""Graphs of one attention, and how they are fused and compared."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from burnish.difference import worst
from burnish.model import copy_model, to_bytes
from burnish.passes.base import Context
from burnish.passes.fusion.fuse_attention import FuseAttention
from burnish.runtime.reference import Reference
from burnish.target import TARGETS
from burnish.testing import parse

HIDDEN, HEADS = 32, 4
LOWEST = float(np.finfo(np.float32).min)
_RANDOM = np.random.default_rng(7)
WEIGHTS: dict[str, np.ndarray] = {
    **{f"w{n}": _RANDOM.standard_normal((HIDDEN, HIDDEN), np.float32) / 6 for n in "qkvo"},
    **{f"b{n}": _RANDOM.standard_normal(HIDDEN, np.float32) for n in "qkv"},
    "split": np.array([0, 0, HEADS, HIDDEN // HEADS]),
    "join": np.array([0, 0, HIDDEN]),
    "zero": np.array(0), "one": np.array(1), "m1": np.array([-1]), "m2": np.array([-2]),
    "end": np.array([2**63 - 1]), "begin": np.array([-(2**63)]),
    "ax012": np.array([0, 1, 2]), "ax013": np.array([0, 1, 3]), "ax123": np.array([1, 2, 3]),
    "ax12": np.array([1, 2]), "root": np.float32(8.0**-0.25), "scale": np.float32(8.0**-0.5),
    "zerof": np.float32(0), "onef": np.float32(1), "lowest": np.float32(LOWEST),
    "ten": np.float32(-10000), "inf": np.float32(-np.inf), "true": np.array(True),
    "minus_one": np.float32(-1),
}  # fmt: skip

PROJECTED = """
    q0 = MatMul (x, wq)  q1 = Add (q0, bq)  q2 = Reshape (q1, split)
    k0 = MatMul (y, wk)  k1 = Add (k0, bk)  k2 = Reshape (k1, split)
    v0 = MatMul (y, wv)  v1 = Add (v0, bv)  v2 = Reshape (v1, split)
    q = Transpose <perm = [0, 2, 1, 3]> (q2)
    v = Transpose <perm = [0, 2, 1, 3]> (v2)
"""
KEY = "k = Transpose <perm = [0, 2, 1, 3]> (k2)"
KEY_TRANSPOSED = "kt = Transpose <perm = [0, 2, 3, 1]> (k2)"
JOINED = "o1 = Transpose <perm = [0, 2, 1, 3]> (o)  z = Reshape (o1, join)"
OUT = "float[batch, seq, 32] z"
X = "float[batch, seq, 32] x"
MASK = "int64[batch, seq] attention_mask"

# as torch 2.13 decomposes scaled_dot_product_attention below opset 23
SCALED = """
    sk = Shape (k)  s3 = Slice (sk, m1, end)  s2 = Slice (sk, m2, m1)  s01 = Slice (sk, begin, m2)
    flat = Concat <axis = 0> (m1, s2, s3)  kf = Reshape (k, flat)
    kr = Transpose <perm = [0, 2, 1]> (kf)
    wide = Concat <axis = 0> (s01, s3, s2)  kw = Reshape (kr, wide)
    qs = Mul (q, root)  ks = Mul (kw, root)  scores = MatMul (qs, ks)
"""
GUARDED = "nan = IsNaN (w)  weights = Where (nan, zerof, w)  o = MatMul (weights, v)"
# as transformers writes the padding mask
GATHERED = """
    seen = Cast <to = 9> (attention_mask)
    shape = Shape (attention_mask)
    bs = Slice (shape, ax0, ax1)  ss = Slice (shape, ax1, ax2)  b = Squeeze (bs)  s = Squeeze (ss)
    rb = Range (zero, b, one)  rs = Range (zero, s, one)
    ub = Unsqueeze (rb, ax123)  uk = Unsqueeze (rs, ax012)  uq = Unsqueeze (rs, ax013)
    ge = GreaterOrEqual (uq, zero)  all = And (true, ge)
    most = Max (ub, uk)  full = Shape (most)
    eb = Expand (ub, full)  ek = Expand (uk, full)  ib = Unsqueeze (eb, m1)  ik = Unsqueeze (ek, m1)
    index = Concat <axis = -1> (ib, ik)
    padding = GatherND (seen, index)
    mask = And (all, padding)
"""
WEIGHTS |= {f"ax{n}": np.array([n]) for n in range(3)}


def graph(inputs: str, body: str, outputs: str = OUT, *, cross: bool = False) -> str:
    projected = PROJECTED if cross else PROJECTED.replace("(y,", "(x,")
    return f"g ({inputs}) => ({outputs}) {{ {projected} {body} }}"


def dynamo(fill: str = "lowest", mask: str = GATHERED) -> str:
    body = f"""{KEY} {SCALED} {mask} bias = Where (mask, zerof, {fill})
        masked = Add (scores, bias)  w = Softmax <axis = -1> (masked) {GUARDED} {JOINED}"""
    return graph(f"{X}, {MASK}", body)


def eager(masked: str, inputs: str = f"{X}, {MASK}") -> str:
    body = f"""{KEY_TRANSPOSED} raw = MatMul (q, kt)  scores = Mul (raw, scale) {masked}
        w = Softmax <axis = -1> (masked)  o = MatMul (w, v) {JOINED}"""
    return graph(inputs, body)


ADDITIVE = """
    m4 = Unsqueeze (attention_mask, ax12)  mf = Cast <to = 1> (m4)  off = Sub (onef, mf)
    bias = Mul (off, {fill})  masked = Add (scores, bias)
"""
CAUSAL = """
    sx = Shape (x)  s1 = Slice (sx, ax1, ax2)  ss2 = Concat <axis = 0> (s1, s1)  ones = Expand (onef, ss2)
    below = Trilu <upper = 0> (ones)  ahead = Equal (below, zerof)
"""
STANDARD = f"{KEY} {{mask}} o = Attention {{attributes}} (q, k, v{{input}}) {JOINED}"


def masks(batch: int, length: int) -> dict[str, np.ndarray]:
    """0/1 masks [batch, length] of every kind."""
    random = np.random.default_rng(batch * 100 + length)
    at = np.arange(length)
    found = {
        "right padded": at < random.integers(1, length + 1, (batch, 1)),
        "left padded": at >= random.integers(0, length, (batch, 1)),
        "random": random.random((batch, length)) < 0.5,
        "nothing visible": np.zeros((batch, length)),
        "one sentence hidden": np.arange(batch)[:, None] + np.ones(length) > 1,
    }
    return {name: mask.astype(np.int64) for name, mask in found.items()}


def fused(model: ir.Model, *, count: int = 1, target: str = "cpu", packed: bool = True) -> ir.Model:
    copy = copy_model(model)
    context = Context(TARGETS[target])
    assert FuseAttention(packed=packed).rewrite(copy, context) == count, context.misses
    return copy


def assert_same_for_all_masks(
    before: ir.Model,
    after: ir.Model,
    feed: Callable[[np.ndarray], Mapping[str, np.ndarray]] = lambda mask: {"attention_mask": mask},
) -> None:
    run, rerun = Reference(to_bytes(before)), Reference(to_bytes(after))
    random = np.random.default_rng(3)
    for batch, length in ((1, 1), (1, 7), (2, 16), (3, 7), (3, 1)):
        for name, mask in masks(batch, length).items():
            x = random.standard_normal((batch, length, HIDDEN), np.float32)
            feeds = {"x": x, **feed(mask)}
            apart = worst(run(feeds), rerun(feeds))
            assert apart.within(1e-5), (batch, length, name, str(apart))


def misses(text: str, *, opset: int = 20, target: str = "cpu") -> str:
    """Why it does not fuse."""
    model = parse(text, opset=opset, weights=WEIGHTS)
    before, context = to_bytes(model), Context(TARGETS[target])
    assert FuseAttention().rewrite(model, context) == 0
    assert to_bytes(model) == before
    return " ".join(miss.why for miss in context.misses)


def the(model: ir.Model, op_type: str) -> ir.Node:
    (node,) = [node for node in model.graph.all_nodes() if node.op_type == op_type]
    return node
