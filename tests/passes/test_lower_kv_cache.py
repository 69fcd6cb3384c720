"""Decoders with a cache: one operator a layer, in place; equal on what is promised, refused or explained."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, final

import msgspec
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

import burnish
from burnish.checking import DifferentialChecker
from burnish.errors import MismatchError
from burnish.kv_cache import KV_CACHE, WINDOW
from burnish.manifest import DimRange
from burnish.model import copy_model, histogram, signature, to_bytes
from burnish.passes.base import Context, Numerics, Pass
from burnish.passes.cache.lower_kv_cache import LowerKvCache
from burnish.passes.fusion.fuse_attention import FuseAttention
from burnish.passes.recipe import Recipe
from burnish.passes.runner import Outcome, run_recipe
from burnish.runtime.reference import Reference
from burnish.target import TARGETS
from burnish.testing import parse, text_of

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


def decoder(
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


def lowered(model: ir.Model, form: str | None = None) -> ir.Model:
    model = copy_model(model)
    context = Context()
    assert LowerKvCache(form=form).rewrite(model, context) == 2, context.misses  # type: ignore[arg-type]
    assert context.misses == []
    return model


def checked(model: ir.Model, *passes: Pass) -> Outcome:
    interface = msgspec.structs.replace(
        signature(model), dims={"past_sequence": DimRange(0), "sequence": DimRange(1), "batch": DimRange(1)}
    )
    checker = DifferentialChecker(interface)
    return run_recipe(Recipe(passes), model, Context(), checker)


def attentions(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type in ("GroupQueryAttention", "Attention")]


def test_what_is_made() -> None:
    before = decoder()
    after = lowered(before)
    ops = histogram(after)
    assert ops["com.microsoft::GroupQueryAttention"] == 2
    assert not {"Softmax", "Concat", "Expand", "Where", "And", "LessOrEqual"} & set(ops), "masks are gone"
    assert ops["ReduceSum"] == 1, "lengths are shared"
    first, second = attentions(after)
    assert first.inputs[5:7] == second.inputs[5:7]
    assert [value.dtype for value in first.inputs[5:7] if value is not None] == [ir.DataType.INT32] * 2
    attributes = {name: attribute.value for name, attribute in first.attributes.items()}
    assert attributes == {"num_heads": 4, "kv_num_heads": 2, "scale": pytest.approx(8**-0.5)}
    assert [value.name for value in first.inputs[3:5] if value is not None] == ["past_0_key", "past_0_value"]
    assert [value.name for value in first.outputs[1:]] == ["present_0_key", "present_0_value"]
    assert after.metadata_props[KV_CACHE] == "group-query"
    assert WINDOW not in after.metadata_props


def test_the_interface_is_kept_but_for_the_length_of_caches() -> None:
    before = decoder()
    old, new = signature(before), signature(lowered(before))
    assert [(s.name, s.dtype, s.meaning) for s in new.inputs] == [
        (s.name, s.dtype, s.meaning) for s in old.inputs
    ]
    assert [(s.name, s.dtype) for s in new.outputs] == [(s.name, s.dtype) for s in old.outputs]
    assert new.inputs[:2] == old.inputs[:2]
    caches = {spec.shape for spec in (*new.inputs[2:], *new.outputs[1:])}
    assert caches == {("batch", 2, "past_sequence + sequence + room", 8)}


def test_window_and_softcap_become_attributes() -> None:
    model = lowered(decoder(window=5, softcap=3.0))
    for node in attentions(model):
        assert node.attributes.get_int("local_window_size") == 5
        assert node.attributes.get_float("softcap") == 3.0
    assert model.metadata_props[WINDOW] == "5"


def test_twice_changes_nothing() -> None:
    once = lowered(decoder())
    twice = copy_model(once)
    assert LowerKvCache().rewrite(twice, Context()) == 0
    assert text_of(twice) == text_of(once)


@pytest.mark.parametrize("options", [{}, {"window": 5}, {"softcap": 2.0}, {"window": 40, "layers": 1}])
@pytest.mark.parametrize("form", ["group-query", "tensor-scatter"])
def test_equal_on_what_is_promised(form: str, options: dict[str, int]) -> None:
    """Full masks at every past, prompts padded on the right, one token each after pasts of any length."""
    model = decoder(opset=24, **options)  # type: ignore[arg-type]
    outcome = checked(model, LowerKvCache(form=form))  # type: ignore[arg-type]
    (receipt,) = outcome.receipts
    assert receipt.status == "kept"
    assert receipt.max_rel_error is not None
    assert receipt.max_rel_error < 1e-5
    sizes = [(a["batch"], a["sequence"], a["past_sequence"]) for a in receipt.assignments]
    assert sizes[:4] == [(1, 7, 0), (2, 1, 16), (3, 16, 0), (1, 2, 7)]
    assert sizes[4:] == ([(1, 1, 41)] if options.get("window") == 40 else []), "a window is left somewhere"


@final
@dataclasses.dataclass(frozen=True)
class Broken(Pass):
    """A lowering that is wrong in one way."""

    name: ClassVar[str] = "lower-kv-cache"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING
    harm: Callable[[ir.Model], None]
    form: str = "group-query"

    def rewrite(self, model: ir.Model, context: Context) -> int:
        made = LowerKvCache(form=self.form).rewrite(model, context)  # type: ignore[arg-type]
        if made == 2:
            self.harm(model)
        return made


def attribute(name: str, value: float) -> Callable[[ir.Model], None]:
    def harm(model: ir.Model) -> None:
        attentions(model)[1].attributes[name] = (
            ir.AttrInt64(name, value) if isinstance(value, int) else ir.AttrFloat32(name, value)
        )

    return harm


def longer(model: ir.Model) -> None:
    """One token more than there are."""
    one = next(
        node for node in model.graph if node.op_type == "Sub" and "last_token" in str(node.outputs[0].name)
    )
    one.op_type = "Max"


def swapped(model: ir.Model) -> None:
    """Keys and values of the second layer change places."""
    node = attentions(model)[1]
    key, value = node.inputs[1], node.inputs[2]
    node.replace_input_with(1, value)
    node.replace_input_with(2, key)


@pytest.mark.parametrize(
    ("options", "harm"),
    [
        ({}, attribute("scale", 0.3)),
        ({}, attribute("local_window_size", 6)),
        ({}, attribute("kv_num_heads", 1)),
        ({}, longer),
        ({}, swapped),
        ({"softcap": 2.0}, attribute("softcap", 2.2)),
        ({"window": 5}, attribute("local_window_size", 6)),
        ({"window": 5}, attribute("local_window_size", -1)),
        ({"window": 40}, attribute("local_window_size", 41)),
    ],
)
def test_a_wrong_lowering_is_refused(options: dict[str, int], harm: Callable[[ir.Model], None]) -> None:
    with pytest.raises(MismatchError, match="'lower-kv-cache' changed the result in the rewrite of node"):
        checked(decoder(**options), Broken(harm))  # type: ignore[arg-type]


def test_a_wrong_scatter_is_refused() -> None:
    def early(model: ir.Model) -> None:
        node = next(
            node for node in model.graph if node.op_type == "Max" and "row_new" in str(node.outputs[0].name)
        )
        node.op_type = "Min"

    with pytest.raises(MismatchError, match="'lower-kv-cache' changed the result"):
        checked(decoder(opset=24), Broken(early, "tensor-scatter"))


def test_one_layer_at_a_time_for_bisection() -> None:
    model = decoder()
    part = copy_model(model)
    assert LowerKvCache().rewrite(part, Context(limit=1)) == 1
    assert histogram(part)["com.microsoft::GroupQueryAttention"] == 1
    verdict = DifferentialChecker(signature(model))(model, part, Numerics.ROUNDING)
    assert verdict.failure == ""
    assert verdict.difference.max_rel < 1e-5


@pytest.mark.parametrize(
    ("options", "settings", "why"),
    [
        ({"causal": "Less"}, {}, "not provably causal over past and new tokens"),
        ({"sloped": True}, {}, "its mask is not provably one of tokens, causal"),
        ({"head": 12}, {}, "heads of a multiple of 8 features, not 12"),
        ({"opset": 13}, {}, "opset 13 is too old"),
        ({}, {"form": "tensor-scatter"}, "TensorScatter is of opset 24, and the model of 20"),
    ],
)
def test_why_not(options: dict[str, object], settings: dict[str, str], why: str) -> None:
    model = decoder(**options)  # type: ignore[arg-type]
    context = Context()
    before = text_of(model)
    assert LowerKvCache(**settings).rewrite(model, context) == 0  # type: ignore[arg-type]
    assert context.misses
    assert why in context.misses[0].why
    assert text_of(model) == before
    assert KV_CACHE not in model.metadata_props


def test_a_cache_that_two_layers_read_is_left() -> None:
    model = decoder()
    values = {value.name: value for node in model.graph for value in node.outputs}
    for kind in ("key", "value"):
        reader = values[f"{kind[0]}1_five"].producer()
        assert reader is not None
        reader.replace_input_with(0, values[f"present_0_{kind}"])
    context = Context()
    assert LowerKvCache().rewrite(model, context) == 0
    assert {miss.why for miss in context.misses} == {"its cache is used for something else, too"}


def test_a_cache_that_something_else_reads_is_left() -> None:
    model = decoder()
    key = next(value for value in model.graph.inputs if value.name == "past_0_key")
    node = ir.node("ReduceMax", [key], {"keepdims": 0})
    node.outputs[0].name, node.outputs[0].dtype, node.outputs[0].shape = (
        "most",
        ir.DataType.FLOAT,
        ir.Shape([]),
    )
    model.graph.append(node)
    model.graph.outputs.append(node.outputs[0])
    context = Context()
    assert LowerKvCache().rewrite(model, context) == 0
    assert context.misses[0].why == "its cache is used for something else, too"


def test_dims_that_say_nothing_of_each_other_are_left() -> None:
    model = decoder()
    mask = model.graph.inputs[1]
    mask.shape = ir.Shape(["batch", "total"])
    context = Context()
    assert LowerKvCache().rewrite(model, context) == 0
    assert context.misses


def test_an_attention_without_a_cache_stays_beside() -> None:
    model = lowered(decoder(other=True))
    ops = histogram(model)
    assert (ops["com.microsoft::GroupQueryAttention"], ops["Softmax"]) == (2, 1)


def test_after_attention_was_fused() -> None:
    fused = checked(decoder(window=5, kv=4), FuseAttention()).model
    assert histogram(fused)["com.microsoft::MultiHeadAttention"] == 2
    outcome = checked(fused, LowerKvCache())
    assert outcome.receipts[0].status == "kept"
    assert histogram(outcome.model)["com.microsoft::GroupQueryAttention"] == 2
    assert {node.attributes.get_int("local_window_size") for node in attentions(outcome.model)} == {5}


def test_a_target_without_the_operator_says_so() -> None:
    context = Context(target=TARGETS["openvino"])
    assert LowerKvCache().rewrite(decoder(), context) == 0
    assert "openvino has no operator that updates a cache in place" in context.misses[0].why


def test_no_cache_is_no_miss() -> None:
    context = Context()
    model = parse("g (float[n] x) => (float[n] y) { y = Softmax (x) }")
    assert LowerKvCache().rewrite(model, context) == 0
    assert context.misses == []


def in_place(model: ir.Model, prompts: list[list[int]], steps: int) -> np.ndarray:
    """Greedy tokens [rows, steps]; past and present of each layer are one buffer."""
    session = ort.InferenceSession(to_bytes(model), providers=["CPUExecutionProvider"])
    width, rows = max(map(len, prompts)), len(prompts)
    pasts = [value for value in session.get_inputs() if value.name.startswith("past")]
    buffers = {
        value.name: ort.OrtValue.ortvalue_from_numpy(
            np.full((rows, value.shape[1], width + steps + 2, value.shape[3]), 9, np.float32)
        )
        for value in pasts
    }
    ids = np.array([prompt + [0] * (width - len(prompt)) for prompt in prompts])
    mask = np.array([[1] * len(prompt) + [0] * (width - len(prompt)) for prompt in prompts])
    tokens = []
    for step in range(steps):
        binding = session.io_binding()
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("attention_mask", mask)
        for name, buffer in buffers.items():
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(name.replace("past", "present"), buffer)
        binding.bind_output("logits")
        session.run_with_iobinding(binding)
        logits = binding.get_outputs()[-1].numpy()
        last = np.array([len(prompt) - 1 if step == 0 else 0 for prompt in prompts])
        ids = logits[np.arange(rows), last].argmax(-1)[:, None]
        tokens.append(ids[:, 0])
        mask = np.concatenate([mask, np.ones((rows, 1), np.int64)], axis=1)
    return np.stack(tokens, axis=1)


def alone(model: ir.Model, prompt: list[int], steps: int) -> list[int]:
    """The same by the neutral graph, everything anew at each step."""
    run = Reference(to_bytes(model))
    caches = [value for value in model.graph.inputs if str(value.name).startswith("past")]
    empty = {str(value.name): np.zeros((1, 2, 0, 8), np.float32) for value in caches}
    tokens = list(prompt)
    for _ in range(steps):
        ids = np.array([tokens])
        tokens.append(
            int(
                run({"input_ids": ids, "attention_mask": np.ones_like(ids)} | empty)["logits"][0, -1].argmax()
            )
        )
    return tokens[len(prompt) :]


@pytest.mark.parametrize("form", ["group-query", "tensor-scatter"])
@pytest.mark.parametrize("window", [None, 5])
def test_a_ragged_batch_decodes_in_place_as_rows_alone(form: str, window: int | None) -> None:
    model = decoder(opset=24, window=window)
    prompts = [[3, 7, 1, 12, 5], [4], [9, 9, 2]]
    found = in_place(lowered(model, form), prompts, 24)
    for row, prompt in zip(found, prompts, strict=True):
        assert row.tolist() == alone(model, prompt, 24)


def test_optimize_lowers_by_default_and_checks_the_end() -> None:
    model, receipts = burnish.optimize(decoder(), measured=False, return_receipts=True)
    assert histogram(model)["com.microsoft::GroupQueryAttention"] == 2
    by_step = {receipt.step: receipt for receipt in receipts}
    assert by_step["lower-kv-cache"].rewrites == 2
    assert by_step["deployed"].max_rel_error < 1e-5
    assert len(by_step["deployed"].assignments) == 4
    assert by_step["deployed"].notes[-1].startswith("the cache is updated in place: not compared were")
    again, receipts = burnish.optimize(model, measured=False, return_receipts=True)
    assert histogram(again)["com.microsoft::GroupQueryAttention"] == 2
    assert [note for note in receipts[-1].notes if note.startswith("not compared at")] == []


def test_verify_compares_what_is_promised() -> None:
    model = decoder()
    after = lowered(model)
    assert burnish.verify(model, after).difference.max_rel < 1e-5
    assert burnish.verify(after, model).difference.max_rel < 1e-5
    swapped(after)
    with pytest.raises(MismatchError):
        burnish.verify(model, after)


def test_quantize_lowers_too() -> None:
    for options in ({"scheme": "dynamic"}, {"scheme": "static", "data": "random"}):
        model = burnish.quantize(decoder(), measured=False, **options)
        assert histogram(model)["com.microsoft::GroupQueryAttention"] == 2
