"""`burnish optimize --explain`: what was fused in each layer, and why the rest was not."""

import dataclasses
import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

import burnish
from burnish.cli import main
from burnish.explaining import Explanation, Missed, folded
from burnish.model import save_model, signature
from burnish.passes.base import Context, Numerics, Pass
from burnish.passes.drop_slower import DropSlower
from burnish.passes.matching import MADE_BY
from burnish.passes.recipe import Recipe
from burnish.provenance import Origin, write_origins
from burnish.testing import parse

LAYERS = 3
RECIPE = "remove-identity,fuse-gelu,fuse-layer-norm,fuse-attention"


def net(*, marked: bool = True, spoilt: int | None = None) -> ir.Model:
    """Three layers: Gelu written out, then a softmax that weighs what is no value of an attention."""
    lines, value = [], "x"
    for n in range(LAYERS):
        lines += [
            f"d{n} = Div ({value}, root)  e{n} = Erf (d{n})  s{n} = Add (e{n}, one)",
            f"m{n} = Mul ({value}, s{n})  g{n} = Mul (m{n}, {'half' if n != spoilt else 'third'})",
            f"p{n} = Softmax (g{n})  x{n} = MatMul (p{n}, w)",
        ]
        value = f"x{n}"
    numbers = "<float root = {1.4142135}, float one = {1.0}, float half = {0.5}, float third = {0.3}>"
    head = "g (float[batch, 4] x) => (float[batch, 4] x2)"
    model = parse(f"{head} {numbers} {{ {' '.join(lines)} }}", weights={"w": np.eye(4, dtype=np.float32)})
    for node in model.graph if marked else ():
        name = node.outputs[0].name or ""
        part = "attention" if name[0] in "px" else "mlp.act"
        write_origins(node.metadata_props, [Origin(f"model.layers.{name[-1]}.{part}")])
    return model


def told(model: ir.Model, recipe: str = RECIPE) -> Explanation:
    found: list[Explanation] = []
    burnish.optimize(model, recipe=recipe, measured=False, explain=found.append)
    (explanation,) = found
    return explanation


def test_identical_layers_are_one_line() -> None:
    explanation = told(net())
    assert explanation.grouped_by == "module"
    assert [(layer.label, layer.fused) for layer in explanation.layers] == [
        ("model.layers.0–2.mlp.act", {"Gelu": 1}),
        ("model.layers.0–2.attention", {}),
    ]
    assert explanation.layers[1].modules == tuple(f"model.layers.{n}.attention" for n in range(LAYERS))
    assert explanation.layers[1].missed == (
        Missed("fuse-attention", "Softmax", "no attention was recognised around it"),
    )


def test_a_layer_that_is_another_has_its_own_line_with_the_reason() -> None:
    layers = {layer.label: layer for layer in told(net(spoilt=1)).layers}
    assert layers["model.layers.0,2.mlp.act"].fused == {"Gelu": 1}
    (missed,) = layers["model.layers.1.mlp.act"].missed
    assert (missed.pass_, missed.op, missed.count) == ("fuse-gelu", "Erf", 1)
    assert missed.why == "looks like GELU inside, but not around it"


def test_what_a_later_pass_made_good_is_left_out() -> None:
    model = parse(
        """g (float[N, 4] x) => (float[N, 4] y)
        <float root = {1.4142135}, float one = {1.0}, float half = {0.5}> {
            d = Div (x, root)  e = Erf (d)  i = Identity (e)  u = Identity (e)  s = Add (i, one)
            m = Mul (x, s)  y = Mul (m, half)
        }"""
    )
    (missed,) = told(model, "fuse-gelu").layers[0].missed
    assert "looks like GELU inside" in missed.why
    found = told(model, "fuse-gelu,remove-unused,remove-identity,fuse-gelu").layers
    assert [(layer.fused, layer.missed) for layer in found] == [({"Gelu": 1}, ())]
    assert told(model, "fuse-gelu,remove-unused,remove-identity").layers[0].missed != ()


def test_names_stand_for_modules_where_there_are_none() -> None:
    model = net(marked=False)
    for node in model.graph:
        name = node.outputs[0].name or ""
        node.name = f"/layers.{name[-1]}/{'attention' if name[0] in 'px' else 'act'}/{name}"
    explanation = told(model)
    assert explanation.grouped_by == "node name"
    assert "prefixes of node names" in explanation.notes[0]
    assert [layer.label for layer in explanation.layers] == ["layers.0–2.act", "layers.0–2.attention"]


def test_single_nodes_are_named_where_not_even_names_have_prefixes() -> None:
    model = net(marked=False)
    for node in model.graph:
        node.name = f"node_{node.outputs[0].name}"
    explanation = told(model)
    assert explanation.grouped_by == "nothing"
    assert [(layer.label, layer.fused) for layer in explanation.layers] == [
        ("", {"Gelu": 3}), ("node_p0 and 2 more", {}),
    ]  # fmt: skip


def test_what_was_taken_back_is_said() -> None:
    model = parse("g (float[N, 4] x) => (float[N, 4] y) { y = Neg (x) }")
    model.graph.node(0).metadata_props[MADE_BY] = DropSlower.name
    assert told(model).layers[0].missed == (
        Missed("drop-slower", "Neg", "measured faster than the fused operator"),
    )


def test_a_pass_that_was_rolled_back_is_said() -> None:
    @dataclasses.dataclass(frozen=True)
    class Fails(Pass):
        """A bug."""

        name: ClassVar[str] = "fails"
        numerics: ClassVar[Numerics] = Numerics.EXACT

        def rewrite(self, model: ir.Model, context: Context) -> int:
            raise KeyError("axis")

    found: list[Explanation] = []
    burnish.optimize(
        net(), recipe=Recipe((Fails(),)), on_mismatch="rollback", measured=False, explain=found.append
    )
    assert found[0].notes == ("Taken back, as it changed the result or failed: fails.",)


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (["a.0.b", "a.1.b", "a.3.b"], ["a.0–1,3.b"]),
        (["a.0.b.0", "a.0.b.1", "a.1.b.0", "a.1.b.1"], ["a.0–1.b.0–1"]),
        (["a.0.b.0", "a.0.b.1", "a.1.b.0"], ["a.0.b.0–1", "a.1.b.0"]),
        (["a.0", "b.1", "c"], ["a.0", "b.1", "c"]),
        ([""], [""]),
    ],
)
def test_folding(paths: list[str], labels: list[str]) -> None:
    found = folded(paths)
    assert sorted(found) == sorted(labels)
    assert sorted(path for members in found.values() for path in members) == sorted(paths)


def test_the_command_line(tmp_path: Path) -> None:
    model = net(spoilt=1)
    save_model(model, tmp_path / "m.onnx", signature(model))
    arguments = ["optimize", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "f.onnx"), "-r", RECIPE]
    shown = CliRunner().invoke(main, [*arguments, "--explain"])
    assert shown.exit_code == 0, shown.output
    assert "model.layers.0,2.mlp.act: Gelu\n" in shown.stdout
    assert "model.layers.1.mlp.act: nothing fused\n    fuse-gelu at Erf: looks like GELU" in shown.stdout
    assert "fuse-gelu: " not in shown.stdout, "the same is not said by pass, too"
    data = json.loads(CliRunner().invoke(main, [*arguments, "--explain", "--json"]).stdout)
    first = data["explanation"]["layers"][0]
    assert first["label"] == "model.layers.0,2.mlp.act"
    assert first["modules"] == ["model.layers.0.mlp.act", "model.layers.2.mlp.act"]
    assert data["explanation"]["layers"][2]["missed"][0]["pass"] == "fuse-gelu"
    nothing = CliRunner().invoke(main, [*arguments[:-1], "remove-identity", "--explain"])
    assert "No layer has anything that was fused, or nearly.\n" in nothing.stdout
    plain = CliRunner().invoke(main, [*arguments, "--json"])
    assert "explanation" not in json.loads(plain.stdout)
    assert "fuse-gelu: " in plain.stderr


@pytest.mark.torch
@pytest.mark.parametrize(
    "opset", [23, pytest.param(20, marks=pytest.mark.slow), pytest.param(24, marks=pytest.mark.slow)]
)
def test_every_attention_of_a_llama(opset: int, tmp_path: Path) -> None:
    import torch
    import transformers

    from burnish.exporter.quiet import quiet

    torch.manual_seed(0)
    with quiet():
        config = transformers.AutoConfig.for_model(
            "llama", vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=96,
        )  # fmt: skip
        transformers.AutoModelForCausalLM.from_config(config).eval().save_pretrained(tmp_path)
    artifact = burnish.export(tmp_path, opset=opset, decode_tokens=2)
    found: list[Explanation] = []
    burnish.optimize(artifact, measured=False, explain=found.append)
    layers = {layer.label: layer for layer in found[0].layers}
    attention = layers["model.layers.0–1.self_attn"]
    assert attention.fused["com.microsoft::GroupQueryAttention"] == 1
    assert sum(count for op, count in attention.fused.items() if op.endswith("RotaryEmbedding")) == 2
    assert attention.missed == ()
    assert layers["model.layers.0–1.mlp.act_fn"].fused == {"com.microsoft::QuickGelu": 1}
    burnish.optimize(artifact, recipe="fold-constants,fuse-attention", measured=False, explain=found.append)
    (kept,) = [layer for layer in found[1].layers if layer.label == "model.layers.0–1.self_attn"]
    best = {20: ["com.microsoft::MultiHeadAttention"], 23: ["Attention"], 24: ["Attention"]}[opset]
    assert list(kept.fused) == best
    assert [missed.pass_ for missed in kept.missed] == ([] if opset == 20 else ["fuse-attention"])
