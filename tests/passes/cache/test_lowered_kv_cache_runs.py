"""Decoders with a cache, lowered: equal on what is promised, and a lowering that is wrong is refused."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, final

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

import burnish
from burnish.checking import DifferentialChecker
from burnish.errors import MismatchError
from burnish.model import copy_model, histogram, signature, to_bytes
from burnish.passes.base import Context, Numerics, Pass
from burnish.passes.cache.lower_kv_cache import LowerKvCache
from burnish.passes.fusion.fuse_attention import FuseAttention
from burnish.passes.runner import Outcome
from burnish.runtime.reference import Reference

Decoder = Callable[..., ir.Model]
Lowered = Callable[..., ir.Model]
Checked = Callable[..., Outcome]


def attentions(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type in ("GroupQueryAttention", "Attention")]


@pytest.mark.parametrize("options", [{}, {"window": 5}, {"softcap": 2.0}, {"window": 40, "layers": 1}])
@pytest.mark.parametrize("form", ["group-query", "tensor-scatter"])
def test_equal_on_what_is_promised(
    decoder: Decoder, checked: Checked, form: str, options: dict[str, int]
) -> None:
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
def test_a_wrong_lowering_is_refused(
    decoder: Decoder, checked: Checked, options: dict[str, int], harm: Callable[[ir.Model], None]
) -> None:
    with pytest.raises(MismatchError, match="'lower-kv-cache' changed the result in the rewrite of node"):
        checked(decoder(**options), Broken(harm))  # type: ignore[arg-type]


def test_a_wrong_scatter_is_refused(decoder: Decoder, checked: Checked) -> None:
    def early(model: ir.Model) -> None:
        node = next(
            node for node in model.graph if node.op_type == "Max" and "row_new" in str(node.outputs[0].name)
        )
        node.op_type = "Min"

    with pytest.raises(MismatchError, match="'lower-kv-cache' changed the result"):
        checked(decoder(opset=24), Broken(early, "tensor-scatter"))


def test_one_layer_at_a_time_for_bisection(decoder: Decoder) -> None:
    model = decoder()
    part = copy_model(model)
    assert LowerKvCache().rewrite(part, Context(limit=1)) == 1
    assert histogram(part)["com.microsoft::GroupQueryAttention"] == 1
    verdict = DifferentialChecker(signature(model))(model, part, Numerics.ROUNDING)
    assert verdict.failure == ""
    assert verdict.difference.max_rel < 1e-5


def test_after_attention_was_fused(decoder: Decoder, checked: Checked) -> None:
    fused = checked(decoder(window=5, kv=4), FuseAttention()).model
    assert histogram(fused)["com.microsoft::MultiHeadAttention"] == 2
    outcome = checked(fused, LowerKvCache())
    assert outcome.receipts[0].status == "kept"
    assert histogram(outcome.model)["com.microsoft::GroupQueryAttention"] == 2
    assert {node.attributes.get_int("local_window_size") for node in attentions(outcome.model)} == {5}


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
def test_a_ragged_batch_decodes_in_place_as_rows_alone(
    decoder: Decoder, lowered: Lowered, form: str, window: int | None
) -> None:
    model = decoder(opset=24, window=window)
    prompts = [[3, 7, 1, 12, 5], [4], [9, 9, 2]]
    found = in_place(lowered(model, form), prompts, 24)
    for row, prompt in zip(found, prompts, strict=True):
        assert row.tolist() == alone(model, prompt, 24)


def test_optimize_lowers_by_default_and_checks_the_end(decoder: Decoder) -> None:
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


def test_verify_compares_what_is_promised(decoder: Decoder, lowered: Lowered) -> None:
    model = decoder()
    after = lowered(model)
    assert burnish.verify(model, after).difference.max_rel < 1e-5
    assert burnish.verify(after, model).difference.max_rel < 1e-5
    swapped(after)
    with pytest.raises(MismatchError):
        burnish.verify(model, after)


def test_quantize_lowers_too(decoder: Decoder) -> None:
    for options in ({"scheme": "dynamic"}, {"scheme": "static", "data": "random"}):
        model = burnish.quantize(decoder(), measured=False, **options)
        assert histogram(model)["com.microsoft::GroupQueryAttention"] == 2
