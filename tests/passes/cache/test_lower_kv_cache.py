"""Decoders with a cache: one operator a layer, in place; what is written, and what is left alone and why."""

from collections.abc import Callable

import onnx_ir as ir
import pytest

from burnish.kv_cache import KV_CACHE, WINDOW
from burnish.model import copy_model, histogram, signature
from burnish.passes.base import Context
from burnish.passes.cache.lower_kv_cache import LowerKvCache
from burnish.target import TARGETS
from burnish.testing import parse, text_of

Decoder = Callable[..., ir.Model]
Lowered = Callable[..., ir.Model]


def attentions(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type in ("GroupQueryAttention", "Attention")]


def test_what_is_made(decoder: Decoder, lowered: Lowered) -> None:
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


def test_the_interface_is_kept_but_for_the_length_of_caches(decoder: Decoder, lowered: Lowered) -> None:
    before = decoder()
    old, new = signature(before), signature(lowered(before))
    assert [(s.name, s.dtype, s.meaning) for s in new.inputs] == [
        (s.name, s.dtype, s.meaning) for s in old.inputs
    ]
    assert [(s.name, s.dtype) for s in new.outputs] == [(s.name, s.dtype) for s in old.outputs]
    assert new.inputs[:2] == old.inputs[:2]
    caches = {spec.shape for spec in (*new.inputs[2:], *new.outputs[1:])}
    assert caches == {("batch", 2, "past_sequence + sequence + room", 8)}


def test_window_and_softcap_become_attributes(decoder: Decoder, lowered: Lowered) -> None:
    model = lowered(decoder(window=5, softcap=3.0))
    for node in attentions(model):
        assert node.attributes.get_int("local_window_size") == 5
        assert node.attributes.get_float("softcap") == 3.0
    assert model.metadata_props[WINDOW] == "5"


def test_twice_changes_nothing(decoder: Decoder, lowered: Lowered) -> None:
    once = lowered(decoder())
    twice = copy_model(once)
    assert LowerKvCache().rewrite(twice, Context()) == 0
    assert text_of(twice) == text_of(once)


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
def test_why_not(decoder: Decoder, options: dict[str, object], settings: dict[str, str], why: str) -> None:
    model = decoder(**options)  # type: ignore[arg-type]
    context = Context()
    before = text_of(model)
    assert LowerKvCache(**settings).rewrite(model, context) == 0  # type: ignore[arg-type]
    assert context.misses
    assert why in context.misses[0].why
    assert text_of(model) == before
    assert KV_CACHE not in model.metadata_props


def test_a_cache_that_two_layers_read_is_left(decoder: Decoder) -> None:
    model = decoder()
    values = {value.name: value for node in model.graph for value in node.outputs}
    for kind in ("key", "value"):
        reader = values[f"{kind[0]}1_five"].producer()
        assert reader is not None
        reader.replace_input_with(0, values[f"present_0_{kind}"])
    context = Context()
    assert LowerKvCache().rewrite(model, context) == 0
    assert {miss.why for miss in context.misses} == {"its cache is used for something else, too"}


def test_a_cache_that_something_else_reads_is_left(decoder: Decoder) -> None:
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


def test_dims_that_say_nothing_of_each_other_are_left(decoder: Decoder) -> None:
    model = decoder()
    mask = model.graph.inputs[1]
    mask.shape = ir.Shape(["batch", "total"])
    context = Context()
    assert LowerKvCache().rewrite(model, context) == 0
    assert context.misses


def test_an_attention_without_a_cache_stays_beside(decoder: Decoder, lowered: Lowered) -> None:
    model = lowered(decoder(other=True))
    ops = histogram(model)
    assert (ops["com.microsoft::GroupQueryAttention"], ops["Softmax"]) == (2, 1)


def test_a_target_without_the_operator_says_so(decoder: Decoder) -> None:
    context = Context(target=TARGETS["openvino"])
    assert LowerKvCache().rewrite(decoder(), context) == 0
    assert "openvino has no operator that updates a cache in place" in context.misses[0].why


def test_no_cache_is_no_miss() -> None:
    context = Context()
    model = parse("g (float[n] x) => (float[n] y) { y = Softmax (x) }")
    assert LowerKvCache().rewrite(model, context) == 0
    assert context.misses == []
