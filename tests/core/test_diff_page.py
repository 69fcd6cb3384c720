"""`burnish diff --html`: well formed, harmless, and the same facts as the text."""

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result

import burnish
from burnish.cli import main
from burnish.diff_page import page
from burnish.diff_text import sections
from burnish.manifest import Receipt
from burnish.model import copy_model, node_count, save_model, signature
from burnish.provenance import Origin, write_origins
from burnish.side_by_side import SideBySide, side_by_side
from burnish.sources import ModelLike, Source, open_source
from burnish.structure import ModelDiff, compare
from burnish.testing import parse

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Checks that every element is closed in order; keeps texts, ids, links and tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.texts: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))
        assert {link.removeprefix("#") for link in self.links} <= set(self.ids)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        given = dict(attrs)
        assert not {name for name in given if name.startswith("on") or name == "src"}
        self.ids += [str(given["id"])] if "id" in given else []
        self.links += [str(given["href"])] if "href" in given else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)


def opened(a: ModelLike, b: ModelLike) -> tuple[Source, Source, ModelDiff]:
    first, second = open_source(a), open_source(b)
    return first, second, compare(first, second, macs=False)


def told(a: ModelLike, b: ModelLike) -> SideBySide:
    return side_by_side(*opened(a, b))


def written(a: ModelLike, b: ModelLike) -> str:
    return page(*opened(a, b))


def marked(model: ir.Model) -> ir.Model:
    for node in model.graph.all_nodes():
        path = "net.mlp" if node.op_type in ("Div", "Erf", "Mul") else f"net.{node.op_type.lower()}"
        write_origins(node.metadata_props, [Origin(path, node.op_type, f"net.py:{len(node.name or '')}")])
    return model


@pytest.fixture
def pair(encoder: ir.Model) -> tuple[ir.Model, ir.Model]:
    before = marked(encoder)
    return before, burnish.optimize(before, measured=False)


def test_it_is_well_formed_and_asks_for_nothing(pair: tuple[ir.Model, ir.Model]) -> None:
    text = written(*pair)
    read = Page(text)
    assert not {"script", "img", "link", "iframe", "object", "form", "base"} & read.tags.keys()
    assert "default-src 'none'" in text
    assert not re.search(r"https?:|url\(|@import|javascript:", text)
    assert read.links


def test_the_facts_of_the_text_are_on_it(pair: tuple[ir.Model, ir.Model]) -> None:
    first, second, found = opened(*pair)
    text = Page(page(first, second, found)).text
    for title, lines in sections(found):
        assert title in text
        for line in lines:
            assert line in text, line
    shown = side_by_side(first, second, found)
    assert sum(row.before for row in shown.ops) == found.nodes[0]
    assert sum(row.after for row in shown.ops) == found.nodes[1]
    changed = {row.op: (row.before, row.after) for row in shown.ops if row.before != row.after}
    assert changed == found.ops


def test_every_node_is_in_one_place(pair: tuple[ir.Model, ir.Model]) -> None:
    shown = told(*pair)
    blocks = [(block, len(layer.members)) for layer in shown.layers for block in layer.blocks]
    assert sum(len(block.left) * times for block, times in blocks) == node_count(pair[0])
    assert sum(len(block.right) * times for block, times in blocks) == node_count(pair[1])


def test_a_fused_node_stands_beside_what_it_was_and_names_its_modules(
    pair: tuple[ir.Model, ir.Model],
) -> None:
    shown = told(*pair)
    (block, layer) = next(
        (block, layer)
        for layer in shown.layers
        for block in layer.blocks
        if block.right and block.right[0].op_type == "BiasGelu"
    )
    assert block.kind == "became"
    assert layer.label == "net.mlp"
    assert Counter(node.op_type for node in block.left) == {"Div": 1, "Erf": 1, "Mul": 2}
    said = {each.what: each.of for each in block.said}
    assert "by fuse-bias-gelu" in said
    (others,) = (of for what, of in said.items() if what.startswith("from "))
    assert {node.op_type for node in others if isinstance(node, ir.Node)} == {"Add"}
    text = Page(written(*pair)).text
    assert "net.add · Add · net.py" in text


def test_the_same_models_give_the_same_page(pair: tuple[ir.Model, ir.Model]) -> None:
    again = burnish.optimize(pair[0], measured=False)
    assert written(*pair) == written(*pair) == written(pair[0], again)


HOSTILE = "</i></div><script>alert(1)</script><img src=x onerror=alert(2)> & \" ' $title ${style}"


def test_what_a_model_says_is_text(encoder: ir.Model) -> None:
    for node in encoder.graph:
        node.name = HOSTILE + (node.outputs[0].name or "")
        write_origins(node.metadata_props, [Origin(f"net.{HOSTILE}", HOSTILE, HOSTILE)])
    encoder.metadata_props[HOSTILE] = HOSTILE
    after = burnish.optimize(encoder, measured=False)
    after.producer_name = HOSTILE
    weight = after.graph.initializers["w1"]
    weight.name = f"{HOSTILE}\x00\u202e\n"
    first, second, found = opened(encoder, after)
    receipts = (Receipt(step=HOSTILE, rewrites=2, status="kept"),)
    second = msgspec_replace(second, receipts)
    read = Page(page(first, second, found))
    assert not {"script", "img"} & read.tags.keys()
    assert read.tags["title"] == read.tags["style"] == 1
    assert read.text.count(HOSTILE) > 10
    assert not {"\x00", "\u202e"} & set(read.text)


def msgspec_replace(source: Source, receipts: tuple[Receipt, ...]) -> Source:
    manifest = msgspec.structs.replace(source.manifest, receipts=receipts)
    return Source(source.given, source.model, manifest, source.attachments)


def layered(count: int, node: str) -> ir.Model:
    lines = [f"a{n} = MatMul (h{n}, w)  b{n} = Relu (a{n})  h{n + 1} = {node} (b{n})" for n in range(count)]
    text = f"g (float[N, 4] h0) => (float[N, 4] h{count}) {{ {'  '.join(lines)} }}"
    model = parse(text, weights={"w": np.eye(4, dtype=np.float32)})
    for number, each in enumerate(model.graph):
        write_origins(each.metadata_props, [Origin(f"net.layers.{number // 3}.mlp", "Mlp")])
    return model


def test_layers_that_are_alike_are_told_once_with_their_number() -> None:
    shown = told(layered(5, "Tanh"), layered(5, "Sigmoid"))
    assert [(layer.label, len(layer.members)) for layer in shown.layers] == [
        ("net.layers.0.mlp", 1),  # reads the input, the others what changed before them
        ("net.layers.1–4.mlp", 4),
    ]
    kinds = [block.kind for block in shown.layers[0].blocks]
    assert kinds == ["same", "same", "became"]
    assert "× 4" in Page(written(layered(5, "Tanh"), layered(5, "Sigmoid"))).text


def test_ten_thousand_nodes_are_a_page_that_can_be_read() -> None:
    text = written(layered(3400, "Tanh"), layered(3400, "Identity"))
    assert "× 3,399" in Page(text).text
    assert len(text) < 200_000


def test_without_origins_prefixes_of_names_are_layers_and_long_runs_are_folded() -> None:
    model = layered(4, "Tanh")
    for number, node in enumerate(model.graph):
        node.metadata_props.clear()
        node.name = f"/layers.{number // 6}/{node.op_type}_{number}"
    other = copy_model(model)
    other.graph.node(-1).attributes.add(ir.AttrInt64("foo", 1))
    shown = told(model, other)
    assert shown.grouped_by == "node name"
    assert [layer.label for layer in shown.layers] == ["layers.0", "layers.1"]
    (changed,) = [block for layer in shown.layers for block in layer.blocks if block.kind != "same"]
    assert [said.what for said in changed.said] == ["attribute foo is another"]
    assert "6 nodes stay: MatMul, Relu, Tanh" in Page(written(model, other)).text


def fates(before: str, after: str, **weights: np.ndarray) -> dict[str, list[str]]:
    shown = told(parse(before, weights=weights), parse(after, weights=weights))
    return {
        str(node.outputs[0].name): [said.what for said in block.said]
        for layer in shown.layers
        for block in layer.blocks
        if block.kind in ("went", "became")
        for node in block.left
    }


def test_what_became_of_what_went() -> None:
    head = "g (float[N] x) => (float[N] y, float[N] z)"
    found = fates(
        f"{head} {{ i = Identity (x)  y = Neg (i)  k = Abs (c)  z = Add (x, k)  u = Sin (x)  v = Cos (u) }}",
        f"{head} <float[1] k = {{1}}> {{ y = Neg (x)  z = Add (x, k) }}",
        c=np.ones(1, np.float32),
    )
    assert found == {
        "i": ["read directly"], "k": ["a constant now"], "u": ["nothing used it"], "v": ["nothing used it"],
    }  # fmt: skip


def test_an_if_that_went_and_a_node_that_stays_under_another_name() -> None:
    head = "g (bool c, float[N] x) => (float[N] y)"
    then, other = "t () => (float[N] p) { p = Neg (x) }", "e () => (float[N] q) { q = Abs (x) }"
    branches = f"then_branch = {then}, else_branch = {other}"
    found = fates(f"{head} {{ a = Sin (x)  y = If (c) <{branches}> }}", f"{head} {{ y = Neg (x) }}")
    assert found == {"a": ["nothing used it"], "y": ["read directly"], "q": ["read directly"]}
    before = parse("g (float[N] x) => (float[N] y) { a = Sin (x)  y = Cos (a) }")
    after = parse("g (float[N] x) => (float[N] y) { other = Sin (x)  y = Cos (other) }")
    shown = told(before, after)
    assert {block.kind for layer in shown.layers for block in layer.blocks} == {"same"}
    assert "other in B" in Page(written(before, after)).text


def test_functions_are_compared_too() -> None:
    text = """<ir_version: 10, opset_import: ["": 20, "own": 1]>
    g (float[4] x) => (float[4] y) { y = own.F (x) }
    <domain: "own", opset_import: ["": 20]> F (v) => (o) { w = Neg (v)  o = Sub (w, v) }"""
    shown = told(parse(text), parse(text.replace("Sub (w, v)", "Add (w, v)")))
    kinds = [block.kind for layer in shown.layers for block in layer.blocks]
    assert kinds == ["same", "same", "became"]


def test_receipts_of_the_result_tell_the_passes(encoder: ir.Model, tmp_path: Path) -> None:
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    save_model(marked(encoder), first, signature(encoder))
    burnish.optimize(first, recipe="remove-identity", output=second)
    shown = told(first, second)
    assert [(each.step, each.rewrites) for each in shown.receipts if each.rewrites] == [
        ("remove-identity", 1)
    ]
    (went,) = [block for layer in shown.layers for block in layer.blocks if block.kind == "went"]
    assert [said.what for said in went.said] == ["read directly", "by remove-identity"]
    assert "remove-identity" in Page(written(first, second)).text
    assert told(second, first).receipts == ()


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["diff", *map(str, arguments)])


@pytest.fixture
def paths(encoder: ir.Model, tmp_path: Path) -> tuple[Path, Path]:
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    save_model(marked(encoder), first, signature(encoder))
    burnish.optimize(first, measured=False, output=second)
    return first, second


def test_the_command_writes_the_page_and_says_so(paths: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "diff.html"
    result = command(*paths, "--html", target)
    assert result.exit_code == 0, result.output
    assert "nodes 15 → " in result.stdout
    assert "diff.html" in result.stderr
    assert str(paths[1]) in Page(target.read_text(encoding="utf-8")).text
    before = target.read_bytes()
    assert json.loads(command(*paths, "--html", target, "--json").stdout)["same"] is False
    assert target.read_bytes() == before
    assert command(paths[0], paths[0], "--html", target).exit_code == 0
    assert "Identical: 15 nodes" in Page(target.read_text(encoding="utf-8")).text


@pytest.mark.parametrize("name", ["b.onnx", "page", "missing/page.html"])
def test_no_model_is_written_over(paths: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    before = paths[1].read_bytes()
    result = command(*paths, "--html", tmp_path / name, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["code"] == "OUTPUT_PATH"
    assert paths[1].read_bytes() == before
