"""Comparing two models where they differ only: right about what is right, never right about what is wrong."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from burnish.checking import DifferentialChecker
from burnish.feeds import assignments, make_feeds
from burnish.kv_cache import Case
from burnish.lending import judge
from burnish.model import copy_model, load_model, signature
from burnish.numbering import Unnumbered
from burnish.passes.base import Context, Numerics
from burnish.passes.editing import Editor
from burnish.passes.fusion.fuse_gelu import FuseGelu
from burnish.region_check import compare_regions
from burnish.regions import Regions
from burnish.runtime.reference import Reference
from burnish.testing import parse
from burnish.waypoints import Results

LAYERS = 4
TOLERANCE = Numerics.ROUNDING.tolerance
RNG = np.random.default_rng(0)
WEIGHTS = {f"w{n}": RNG.standard_normal((20, 20)).astype(np.float32) / 2 for n in range(LAYERS)}


def layers(batch: str = "batch") -> ir.Model:
    """Four layers: a projection, then Gelu written out."""
    lines, value = [], "x"
    for n in range(LAYERS):
        out = f"x{n}" if n < LAYERS - 1 else "y"
        lines += [
            f"p{n} = MatMul ({value}, w{n})",
            f"d{n} = Div (p{n}, root)",
            f"e{n} = Erf (d{n})",
            f"s{n} = Add (e{n}, one)",
            f"m{n} = Mul (p{n}, s{n})",
            f"{out} = Mul (m{n}, half)",
        ]
        value = out
    text = "\n".join(lines)
    head = f"g (float[{batch}, 20] x) => (float[{batch}, 20] y)"
    numbers = "<float root = {1.4142135}, float one = {1.0}, float half = {0.5}>"
    model = parse(f"{head} {numbers} {{ {text} }}", opset=20, weights=WEIGHTS)
    for node in model.graph:
        node.outputs[0].shape = ir.Shape([batch, 20])
        node.outputs[0].dtype = ir.DataType.FLOAT
    return model


def cases(model: ir.Model) -> list[Case]:
    interface = signature(model)
    return [(sizes, make_feeds(interface.inputs, sizes, seed=1)) for sizes in assignments(interface.inputs)]


def fused(model: ir.Model) -> ir.Model:
    after = copy_model(model)
    assert FuseGelu().rewrite(after, Context()) == LAYERS
    return after


def node_of(model: ir.Model, value: str) -> ir.Node:
    return next(node for node in model.graph if node.outputs[0].name == value)


def test_one_kind_for_all_layers() -> None:
    before = layers()
    regions = Regions(before, fused(before))
    assert [[region.root for region in kind.regions] for kind in regions.kinds()] == [["x0", "x1", "x2", "y"]]
    verdict = compare_regions(before, fused(before), cases(before), TOLERANCE)
    assert verdict is not None
    assert 0 < verdict.difference.max_rel < 1e-5
    assert verdict.places == "at 4 changed values of 1 kinds, once a kind"


def test_an_unchanged_model_has_no_changed_values() -> None:
    before = layers()
    assert Regions(before, copy_model(before)).all == ()


@pytest.mark.parametrize("layer", range(LAYERS))
def test_a_wrong_attribute_in_one_layer_is_found(layer: int) -> None:
    before = layers()
    after = fused(before)
    wrong = [node for node in after.graph if node.op_type == "Gelu"][layer]
    wrong.attributes["approximate"] = ir.AttrString("approximate", "tanh")
    assert len(Regions(before, after).kinds()) == 2
    assert compare_regions(before, after, cases(before), TOLERANCE) is None


@pytest.mark.parametrize("layer", range(LAYERS))
def test_a_wrong_weight_in_one_layer_is_found(layer: int) -> None:
    before = layers()
    after = fused(before)
    node = node_of(after, f"p{layer}")
    swapped = after.graph.initializers[f"w{(layer + 1) % LAYERS}"]
    node.replace_input_with(1, swapped)
    assert compare_regions(before, after, cases(before), TOLERANCE) is None


@pytest.mark.parametrize("layer", range(LAYERS))
def test_new_weights_are_compared_in_every_layer(layer: int) -> None:
    before = layers()
    after = copy_model(before)
    for n in range(LAYERS):  # the projection doubled in its weight, and halved behind it: right but for one
        factor = 2.5 if n == layer else 2.0
        editor, node = Editor(after), node_of(after, f"p{n}")
        node.replace_input_with(1, editor.constant(node, f"double{n}", WEIGHTS[f"w{n}"] * np.float32(factor)))
        half = after.graph.initializers["half"]
        halved = editor.insert(node_of(after, f"d{n}"), "Mul", [node.outputs[0], half], name="t")
        node.outputs[0].name, halved.outputs[0].name = f"doubled{n}", f"p{n}"
        for user, index in node.outputs[0].uses():
            if user is not halved:
                user.replace_input_with(index, halved.outputs[0])
    assert compare_regions(before, after, cases(before), TOLERANCE) is None
    assert all(kind.own_weights for kind in Regions(before, after).kinds())


@pytest.mark.parametrize("batch", ["batch", "s72"])
def test_places_that_differ_in_new_weights_are_compared_once_more_and_the_receipt_says_so(batch: str) -> None:
    before = layers(batch)
    after = copy_model(before)
    for n in range(LAYERS):
        node = node_of(after, f"p{n}")
        copy = WEIGHTS[f"w{n}"].copy()
        node.replace_input_with(1, Editor(after).constant(node, f"copy{n}", copy))
    verdict = compare_regions(before, after, cases(before), TOLERANCE)
    assert verdict is not None
    assert verdict.places == (
        "at 4 changed values of 1 kinds, once a kind; 3 of them, equal but for their weights, "
        f"at {batch}=2 alone"
    )
    assert len(verdict.assignments) == 4


@pytest.mark.parametrize(("width", "kinds"), [(128, 1), (8, LAYERS)])
def test_biases_of_narrow_layers_are_weights(width: int, kinds: int) -> None:
    arrays = {f"b{n}": RNG.standard_normal(width).astype(np.float32) for n in range(LAYERS)}
    lines, value = [], "x"
    for n in range(LAYERS):
        lines += [f"a{n} = Add ({value}, b{n})", f"r{n} = Relu (a{n})"]
        value = f"r{n}"
    text = " ".join(lines)
    head = f"g (float[batch, {width}] x) => (float[batch, {width}] r{LAYERS - 1})"
    before = parse(f"{head} {{ {text} }}", opset=20, weights=arrays)
    after = copy_model(before)
    for n in range(LAYERS):
        node = node_of(after, f"a{n}")
        node.replace_input_with(1, Editor(after).constant(node, f"minus{n}", -arrays[f"b{n}"]))
        node.op_type = "Sub"
    assert len(Regions(before, after).kinds()) == kinds
    assert compare_regions(before, after, cases(before), TOLERANCE) is not None
    after.graph.initializers[f"minus{LAYERS - 1}"].const_value = ir.tensor(arrays["b0"])
    assert compare_regions(before, after, cases(before), TOLERANCE) is None


def test_where_no_size_tells_all_are_compared() -> None:
    before = layers()
    after = copy_model(before)
    for n in range(LAYERS):
        node = node_of(after, f"p{n}")
        factor = np.float32(1.5 if n == LAYERS - 1 else 1.0)
        node.replace_input_with(1, Editor(after).constant(node, f"copy{n}", WEIGHTS[f"w{n}"] * factor))
    one = [case for case in cases(before) if case[0]["batch"] == 1]
    assert compare_regions(before, after, one, TOLERANCE) is None
    for n in range(LAYERS):
        after.graph.initializers[f"copy{n}"].const_value = ir.tensor(WEIGHTS[f"w{n}"].copy())
    verdict = compare_regions(before, after, one, TOLERANCE)
    assert verdict is not None
    assert verdict.places.endswith("; 3 of them, equal but for their weights, each")


@pytest.mark.parametrize("layer", range(LAYERS))
def test_weights_that_are_no_longer_read_are_compared_in_every_layer(layer: int) -> None:
    before = layers()
    for n in range(LAYERS):  # ones, whose MatMul with a row of ones is dropped: right but for one
        array = np.eye(20, dtype=np.float32) * np.float32(1.5 if n == layer else 1.0)
        before.graph.initializers[f"w{n}"].const_value = ir.tensor(array)
    after = copy_model(before)
    for n in range(LAYERS):
        node = node_of(after, f"p{n}")
        (source, _), product = node.inputs, node.outputs[0]
        assert source is not None
        product.replace_all_uses_with(source)
        after.graph.remove(node, safe=True)
    assert compare_regions(before, after, cases(before), TOLERANCE) is None


def test_a_model_that_no_longer_loads_is_no_success() -> None:
    before = layers()
    after = copy_model(before)
    del after.graph.opset_imports[""]
    assert compare_regions(before, after, cases(before), TOLERANCE) is None
    after = copy_model(before)
    node_of(after, "p1").outputs[0].dtype = ir.DataType.INT64
    assert compare_regions(before, after, cases(before), TOLERANCE) is None


def test_an_input_with_a_default_is_left_to_the_whole() -> None:
    before = layers()
    before.graph.inputs.append(before.graph.initializers["half"])
    after = copy_model(before)
    node_of(after, "y").op_type = "Add"
    with pytest.raises(Unnumbered, match="default"):
        Regions(before, after)


def test_operands_in_another_order_are_found() -> None:
    text = "g (float[batch, 4] x) => (float[batch, 4] y) { a = Relu (x)  y = Sub (x, a) }"
    before, after = parse(text), parse(text.replace("(x, a)", "(a, x)"))
    assert compare_regions(before, after, cases(before), TOLERANCE) is None


def test_a_value_that_keeps_its_name_but_not_its_layout_is_looked_through() -> None:
    before = parse("g (float[batch, 4] x) => (float[batch, 4] y) { t = Relu (x)  y = Neg (t) }")
    after = parse(
        "g (float[batch, 4] x) => (float[batch, 4] y) "
        "{ r = Relu (x)  t = Transpose (r)  u = Neg (t)  y = Transpose (u) }"
    )
    verdict = compare_regions(before, after, cases(before), TOLERANCE)
    assert verdict is not None
    assert verdict.difference.max_abs == 0


def test_a_value_that_became_a_constant_is_compared() -> None:
    head = "g (float[batch, 4] x) => (float[batch, 4] y)"
    before = parse(f"{head} <float a = {{2.0}}, float b = {{3.0}}> {{ c = Mul (a, b)  y = Mul (x, c) }}")
    right, wrong = (parse(f"{head} <float c = {{{n}}}> {{ y = Mul (x, c) }}") for n in (6.0, 5.0))
    verdict = compare_regions(before, right, cases(before), TOLERANCE)
    assert verdict is not None
    assert verdict.difference.max_abs == 0
    assert compare_regions(before, wrong, cases(before), TOLERANCE) is None


BRANCHES = """
    g (float[batch, 4] x, bool c) => (float[batch, 4] y) {{
        a = Relu (x)
        b = Neg (a)
        y = If (c) <
            then_branch = t () => (float[batch, 4] p) {{ p = {op} (b) }},
            else_branch = e () => (float[batch, 4] q) {{ q = Identity (a) }}
        >
    }}
"""


def test_bodies_count_as_part_of_their_node() -> None:
    before = parse(BRANCHES.format(op="Abs"))
    same = compare_regions(before, parse(BRANCHES.format(op="Abs")), cases(before), TOLERANCE)
    assert same is not None
    assert same.difference.max_abs == 0
    assert compare_regions(before, parse(BRANCHES.format(op="Relu")), cases(before), TOLERANCE) is None
    (region,) = Regions(before, parse(BRANCHES.format(op="Relu"))).all
    assert region.root == "y"
    assert set(region.leaves) == {"c", "a", "b"}


def test_what_cannot_be_cut_is_left_to_the_whole() -> None:
    before = parse("g (float[batch, 4] x) => (float[batch, 4] y) { y = Relu (x) }")
    other = parse("g (float[batch, 4] x) => (float[batch, 4] z) { z = Relu (x) }")
    with pytest.raises(Unnumbered, match="inputs or outputs"):
        Regions(before, other)
    assert compare_regions(before, other, cases(before), TOLERANCE) is None


def test_the_checker_says_how_it_compared_and_falls_back() -> None:
    before = layers()
    checker = DifferentialChecker(signature(before), by_region=True)
    assert "once a kind" in checker(before, fused(before), Numerics.ROUNDING).places
    wrong = fused(before)
    node_of(wrong, "y").attributes.clear()
    node_of(wrong, "y").op_type = "Relu"
    verdict = checker(before, wrong, Numerics.ROUNDING)
    assert verdict.places == ""
    assert verdict.difference.name == "y"
    assert not verdict.difference.within(TOLERANCE)


def test_small_tensors_in_a_data_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    ir.save(layers(), path, external_data="m.data", size_threshold_bytes=0)
    before = load_model(path)
    assert isinstance(before.graph.initializers["half"].const_value, ir.ExternalTensor)
    assert compare_regions(before, fused(before), cases(before), TOLERANCE) is not None


def test_the_number_of_sizes_is_known_to_resize() -> None:
    before = parse("""
        g (float[N, 3, H, W] x, float[N, 3, H, W] z) => (float[A, B, C, D] y) {
            s = Shape (x)
            t = Identity (s)
            r = Resize <mode = "nearest"> (z, , , t)
            n = Neg (r)
            y = Abs (n)
        }
    """)
    after = copy_model(before)
    resize = node_of(after, "r")
    absolute = ir.node("Identity", [resize.inputs[0]])
    absolute.outputs[0].name = "same"
    after.graph.insert_before(resize, absolute)
    resize.replace_input_with(0, absolute.outputs[0])
    assert compare_regions(before, after, cases(before), TOLERANCE) is not None


def test_results_are_known_again_in_a_copy_and_in_nothing_else() -> None:
    model = layers()
    known = Results(model, [{"y": np.zeros(1)}])
    assert known.of(copy_model(model)) is not None
    for change in ("weight", "attribute", "operator", "output", "input", "opset"):
        other = copy_model(model)
        if change == "weight":
            other.graph.initializers["w1"].const_value = ir.tensor(WEIGHTS["w1"].copy())
        elif change == "attribute":
            node_of(other, "s1").attributes["unknown"] = ir.AttrInt64("unknown", 1)
        elif change == "operator":
            node_of(other, "s1").op_type = "Sub"
        elif change == "output":
            other.graph.outputs.append(node_of(other, "s1").outputs[0])
        elif change == "input":
            other.graph.inputs[0].dtype = ir.DataType.DOUBLE
        else:
            other.graph.opset_imports[""] = 21
        assert known.of(other) is None, change


def test_results_of_a_model_that_is_changed_afterwards_are_not_those_of_the_new_one() -> None:
    model = layers()
    known, copy = Results(model, [{"y": np.zeros(1)}]), copy_model(model)
    FuseGelu().rewrite(model, Context())
    assert known.of(model) is None
    assert known.of(copy) is not None


def test_the_source_runs_once_for_all_passes_and_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[ir.Model] = []

    def counted(model: ir.Model) -> Reference:
        opened.append(model)
        return judge(model)

    monkeypatch.setattr("burnish.checking.judge", counted)
    source = layers()
    checker = DifferentialChecker(signature(source), by_region=True)
    assert checker(copy_model(source), fused(source), Numerics.ROUNDING).places
    assert checker.deployed(source, fused(source), Numerics.ROUNDING).difference.max_rel < 1e-5
    assert len(opened) == 1
    wrong = fused(source)
    node_of(wrong, "p1").replace_input_with(1, wrong.graph.initializers["w2"])
    assert checker.deployed(source, wrong, Numerics.ROUNDING).difference.max_rel > TOLERANCE
