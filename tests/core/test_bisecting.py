"""`burnish bisect`: the one rewrite that is wrong, as two small models and what both start from."""

import json
import shlex
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result

import burnish
from burnish.bisecting import Bisection
from burnish.checking import DifferentialChecker
from burnish.cli import main
from burnish.difference import difference
from burnish.errors import InputError, MismatchError, OutputError
from burnish.model import load_model, save_model, signature
from burnish.passes.base import Context, Numerics, Pass, all_graphs, is_op
from burnish.passes.recipe import Recipe
from burnish.passes.registry import PASSES
from burnish.rules import Rule
from burnish.runtime.reference import Reference
from burnish.testing import parse

LAYERS = 5
RNG = np.random.default_rng(0)
WEIGHTS = {f"w{n}": (RNG.standard_normal((16, 16)) / 2).astype(np.float32) for n in range(LAYERS)}


def layers(spoilt: int | None = 2) -> ir.Model:
    """Five layers with a Gelu written out, one of them with another constant."""
    lines, value = [], "x"
    for n in range(LAYERS):
        lines.append(
            f"p{n} = MatMul ({value}, w{n})  d{n} = Div (p{n}, root)  e{n} = Erf (d{n})  "
            f"s{n} = Add (e{n}, {'one' if n != spoilt else 'most'})  m{n} = Mul (p{n}, s{n})  "
            f"x{n} = Mul (m{n}, half)"
        )
        value = f"x{n}"
    numbers = "<float root = {1.4142135}, float one = {1.0}, float most = {0.9}, float half = {0.5}>"
    head = f"g (float[batch, 16] x) => (float[batch, 16] x{LAYERS - 1})"
    return parse(f"{head} {numbers} {{ {' '.join(lines)} }}", weights=WEIGHTS)


class Hasty(Rule):
    """Wrong on purpose: it does not look at the constants."""

    name = "hasty-gelu"
    numerics = Numerics.ROUNDING

    def pattern(self, op: Any, x: Any, root: Any, one: Any, half: Any) -> Any:
        return op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, root)), one)), half)

    def replacement(self, op: Any, x: Any, **_: Any) -> Any:
        return op.Gelu(x)


class ReluToAbs(Pass):
    """Wrong on purpose, for what is negative."""

    name = "relu-to-abs"
    numerics = Numerics.EXACT

    def rewrite(self, model: ir.Model, context: Context) -> int:
        found = [node for graph in all_graphs(model) for node in graph if is_op(node, "Relu")]
        done = 0
        for node in found:
            if context.permit(node):
                node.op_type = "Abs"
                done += 1
        return done


def becomes(text: str, **given: Any) -> Recipe:
    """A pass that makes one rewrite: the model becomes another one."""

    class Becomes(Pass):
        """As a whole."""

        name = "becomes"
        numerics = Numerics.ROUNDING

        def rewrite(self, model: ir.Model, context: Context) -> int:
            if not context.permit("all"):
                return 0
            model.graph = parse(text, **given).graph
            return 1

    return Recipe((Becomes(),))


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both wrong passes can be named in recipes."""
    module = types.ModuleType("wrong_passes")
    for cls in (Hasty, ReluToAbs):
        setattr(module, cls.__name__, cls)
        monkeypatch.setitem(PASSES, cls.name, f"wrong_passes:{cls.__name__}")
    monkeypatch.setitem(sys.modules, "wrong_passes", module)


def found(model: ir.Model, recipe: Recipe | str, **options: Any) -> Bisection:
    result = burnish.bisect(model, recipe, measured=False, **options)
    assert result is not None
    return result


def run(path: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    reference = Reference(Path(path))
    onnx.checker.check_model(onnx.load(path))
    return reference(inputs)


def burnish_command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_wrong_rewrite_of_many_is_cut_out(tmp_path: Path) -> None:
    result = found(layers(), Recipe((Hasty(),)), output=tmp_path / "bug.onnx")
    assert (result.pass_, result.rewrite, result.rewrites) == ("hasty-gelu", 3, LAYERS)
    assert (result.value, result.nodes, result.output) == ("x2", (5, 1), "x4")
    assert result.difference > result.allowed == 1e-4
    assert [Path(name).name for name in result.files] == ["bug.onnx", "bug.after.onnx", "bug.npz", "bug.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        Path(name).name for name in result.files
    )
    with np.load(result.files[2]) as loaded:
        inputs = dict(loaded)
    assert list(inputs) == ["p2"]
    before, after = (run(name, inputs)["x2"] for name in result.files[:2])
    assert difference("x2", before, after).max_rel == result.at_value > 1e-3
    assert [node.op_type for node in load_model(result.files[1]).graph] == ["Gelu"]


def test_the_report_says_all_of_it(tmp_path: Path) -> None:
    result = found(layers(), Recipe((Hasty(),)), output=tmp_path / "bug.onnx")
    assert Path(result.files[3]).read_text() == result.report
    sizes = ", ".join(f"{name}={size}" for name, size in result.sizes.items())
    for said in (
        "Pass 'hasty-gelu' changes the result by its rewrite 3 of 5: node ", "(value 'x2')",
        f"Output 'x4' differs by {result.difference:.3g} at {sizes}, allowed is 0.0001.",
        f"Value 'x2' differs by {result.at_value:.3g}: 5 nodes before, 1 after.",
        f"Again: burnish bisect {tmp_path}/bug.onnx --recipe hasty-gelu --inputs {tmp_path}/bug.npz",
        "x2 = Gelu (p2)", "onnxruntime", "root = float 1.41421", "p2: float32[1, 16]",
    ):  # fmt: skip
        assert said in result.report


@pytest.mark.usefixtures("registered")
def test_the_command_in_the_report_shows_it_again(tmp_path: Path) -> None:
    model = layers()
    save_model(model, tmp_path / "m.onnx", signature(model))
    recipe = "remove-identity,hasty-gelu"
    first = burnish_command(
        "bisect", tmp_path / "m.onnx", "-r", recipe, "-o", tmp_path / "bug.onnx", "--json"
    )
    assert first.exit_code == 1, first.output
    told = json.loads(first.stdout)
    assert told["differs"]
    assert told["found"]["pass"] == "hasty-gelu"
    again = burnish_command(*shlex.split(told["found"]["command"])[1:])
    assert again.exit_code == 1, again.output
    assert "by its rewrite 1 of 1" in again.stdout
    assert "Value 'x2' differs" in again.stdout
    unwritten = burnish_command("bisect", tmp_path / "m.onnx", "-r", recipe)
    assert f"Again: burnish bisect {tmp_path}/m.onnx --recipe {recipe}\n" in unwritten.stdout


def test_a_right_recipe(encoder_path: Path) -> None:
    assert burnish.bisect(encoder_path, measured=False) is None
    shown = burnish_command("bisect", encoder_path, "--recipe", "remove-identity,fuse-gelu")
    assert (shown.exit_code, shown.stdout) == (0, "Nothing differs.\n")
    data = burnish_command("bisect", encoder_path, "--recipe", "fuse-gelu", "--json")
    assert json.loads(data.stdout) == {"differs": False, "found": None}


RELUS = (
    "g (float[batch, 4] x) => (float[batch, 4] y) { z = Abs (x)  a = Relu (z)  b = Relu (x)  y = Add (a, b) }"
)


@pytest.mark.usefixtures("registered")
def test_it_judges_on_the_inputs_that_are_given(tmp_path: Path) -> None:
    model = parse(RELUS)
    save_model(model, tmp_path / "m.onnx", signature(model))
    ones = np.ones((3, 4), np.float32)
    np.savez(tmp_path / "positive.npz", x=ones)
    np.savez(tmp_path / "negative.npz", x=-ones)
    base = ("bisect", tmp_path / "m.onnx", "-r", "relu-to-abs", "--inputs")
    assert burnish_command(*base, tmp_path / "positive.npz").exit_code == 0
    wrong = burnish_command(*base, tmp_path / "negative.npz")
    assert wrong.exit_code == 1
    assert "by its rewrite 2 of 2" in wrong.stdout
    assert "Output 'y' differs by 1 at batch=3, sample=0, allowed is 0." in wrong.stdout
    assert f"--inputs {tmp_path}/negative.npz" in wrong.stdout
    result = found(model, Recipe((ReluToAbs(),)), inputs=[{"x": ones}, {"x": -ones}])
    assert (result.value, result.sizes) == ("b", {"batch": 3, "sample": 1})


def test_lossy_passes_are_judged_by_the_norm() -> None:
    class Lossy(ReluToAbs):
        """Allowed to lose something, but not that much."""

        name = "lossy"
        numerics = Numerics.LOSSY

    negative = [{"x": np.array([[-1, -1, -1, 2]], np.float32)}]
    result = found(parse(RELUS), Recipe((Lossy(),)), inputs=negative)
    assert result.value == "b"
    assert result.allowed == Numerics.LOSSY.tolerance
    assert result.at_value == pytest.approx(np.sqrt(3 / 4))
    assert result.difference == pytest.approx(np.sqrt(3 / 19))


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="'x'"):
        burnish.bisect(parse(RELUS), "remove-identity", inputs=[{"x": np.ones((3, 4), np.int64)}])


def test_an_output_that_cannot_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no such folder"):
        burnish.bisect(tmp_path / "missing.onnx", "fuse-gelu", output=tmp_path / "no" / "bug.onnx")


def test_a_model_that_no_longer_runs(tmp_path: Path) -> None:
    recipe = becomes(RELUS.replace("b = Relu", "b = NoSuchOp").replace("y = Add", "y = Sub"))
    result = found(parse(RELUS), recipe, output=tmp_path / "bug.onnx")
    assert "NoSuchOp" in result.failure
    assert (result.value, result.nodes, result.output) == ("b", (1, 1), "")
    assert result.difference == float("inf")
    assert "It does not run: " in result.report


def test_a_value_of_another_layout_is_looked_through() -> None:
    before = parse("g (float[batch, 4] x) => (float[batch, 4] y) { t = Relu (x)  y = Neg (t) }")
    recipe = becomes(
        "g (float[batch, 4] x) => (float[batch, 4] y) "
        "{ r = Relu (x)  t = Transpose (r)  u = Exp (t)  y = Transpose (u) }"
    )
    result = found(before, recipe)
    assert (result.value, result.nodes) == ("y", (2, 4))


def test_what_one_node_makes_stays_together() -> None:
    head = "g (float[batch, 4] x, float[batch, 4] r) => (float[batch, 4] s, float[batch, 4] y)"
    ones = {"k": np.ones(4, np.float32)}
    before = parse(
        f"{head} {{ s = Add (x, r)  n = SimplifiedLayerNormalization <axis = -1> (s, k)  y = Neg (n) }}",
        weights=ones,
    )
    recipe = becomes(
        f"{head} {{ n, , , s = com.microsoft.SkipSimplifiedLayerNormalization (r, r, k)  y = Neg (n) }}",
        weights=ones,
    )
    result = found(before, recipe)
    assert (result.value, result.nodes) == ("s", (2, 1))
    assert "s = Add (x, r)" in result.report
    assert "n = SimplifiedLayerNormalization" in result.report


def test_bodies_are_part_of_their_node() -> None:
    text = """
        g (float[batch, 4] x, bool c) => (float[batch, 4] y) {{
            a = Neg (x)
            b = If (c) <
                then_branch = t () => (float[batch, 4] p) {{ p = {op} (a) }},
                else_branch = e () => (float[batch, 4] q) {{ q = {op} (x) }}
            >
            y = Exp (b)
        }}
    """
    result = found(parse(text.format(op="Relu")), Recipe((ReluToAbs(),)))
    assert result.value == "b"
    assert result.nodes == (3, 3)


@pytest.mark.parametrize("name", ["c", "file"])
def test_a_wrong_constant_is_a_place(tmp_path: Path, name: str) -> None:
    head = "g (float[batch, 4] x) => (float[batch, 4] y)"
    before = parse(
        f"{head} <float a = {{2.0}}, float b = {{3.0}}> {{ {name} = Mul (a, b)  y = Mul (x, {name}) }}"
    )
    recipe = becomes(f"{head} <float {name} = {{5.0}}> {{ y = Mul (x, {name}) }}")
    result = found(before, recipe, output=tmp_path / "bug.onnx")
    assert (result.value, result.nodes) == (name, (1, 1))
    first, second = (run(path, {}) for path in result.files[:2])
    assert (first[name], second[name]) == (6.0, 5.0)


def test_a_small_difference_that_grows_is_shown_where_it_starts() -> None:
    text = """g (float[batch, 4] x) => (float[batch, 4] y) <float k = {{{k}}}, float big = {{10000.0}}> {{
        a = Mul (x, k)  s = Sub (a, x)  y = Mul (s, big)
    }}"""
    result = found(parse(text.format(k=1.0)), becomes(text.format(k=1.00002)))
    assert result.value == "a"
    assert 0 < result.at_value < result.allowed < result.difference


def test_functions_cannot_be_cut(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 20, "own": 1]>
    g (float[batch, 4] x) => (float[batch, 4] y) { a = own.F (x)  y = Relu (a) }
    <domain: "own", opset_import: ["": 20]> F (v) => (o) { o = Neg (v) }"""
    result = found(parse(text), Recipe((ReluToAbs(),)), output=tmp_path / "bug.onnx")
    assert (result.value, result.nodes) == ("y", (3, 3))
    assert "No smaller part could be cut out" in result.report
    assert "--recipe relu-to-abs" in result.command
    with np.load(result.files[2]) as loaded:
        inputs = dict(loaded)
    before, after = (run(path, inputs)["y"] for path in result.files[:2])
    assert not np.array_equal(before, after)


def test_what_onnxruntime_makes_of_a_right_result_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def deployed(self: DifferentialChecker, a: ir.Model, b: ir.Model, numerics: Numerics) -> Any:
        return self(a, parse(RELUS.replace("Add", "Sub")), numerics)

    monkeypatch.setattr(DifferentialChecker, "deployed", deployed)
    with pytest.raises(MismatchError, match="With onnxruntime's optimiser on") as caught:
        burnish.bisect(parse(RELUS), "remove-identity", measured=False)
    assert caught.value.code == "MISMATCH_DEPLOYED"


def test_the_same_finding_gives_the_same_files(tmp_path: Path) -> None:
    def contents(folder: str) -> list[bytes]:
        (tmp_path / folder).mkdir()
        result = found(layers(), Recipe((Hasty(),)), output=tmp_path / folder / "bug")
        return [Path(name).read_bytes() for name in result.files[:3]]

    assert contents("a") == contents("b")
