"""Rules of other packages: a pattern, a replacement, a check; and how they are found."""

import dataclasses
import importlib
import json
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result

import burnish
from burnish.cli import main
from burnish.errors import BurnishError, MismatchError, PassError, RecipeError
from burnish.model import save_model, signature
from burnish.passes.base import Context
from burnish.passes.recipe import Recipe
from burnish.passes.registry import PASSES, load_pass
from burnish.passes.third_party import package_of
from burnish.provenance import Origin, origins, write_origins
from burnish.rules import Match, Numerics, Rule
from burnish.target import TARGETS
from burnish.testing import check_pass, parse

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "writing-a-rule.md").read_text(encoding="utf-8")
MODULE, _ = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
(TABLE,) = re.findall(r"```toml\n(.*?)```", DOCS, re.DOTALL)
SILU = "g (float[N, 4] x) => (float[N, 4] y) { s = Sigmoid (x)  m = Mul (s, x)  y = Neg (m) }"


class FuseSilu(Rule):
    """Fuse x * sigmoid(x)."""

    name = "test-fuse-silu"
    numerics = Numerics.ROUNDING

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Mul(x, op.Sigmoid(x))

    def check(self, match: Match) -> str | None:
        return None if match.dtype("x") == "FLOAT" else "only float32"

    def replacement(self, op: Any, x: Any) -> Any:
        return op.QuickGelu(x, alpha=1.0, _domain="com.microsoft")


def rule(
    pattern: Callable[..., Any],
    replacement: Callable[..., Any],
    check: Callable[[Match], str | None] = lambda match: None,
) -> Rule:
    """A rule of plain functions."""
    body = {
        "name": "test-rule", "numerics": Numerics.ROUNDING, "pattern": staticmethod(pattern),
        "replacement": staticmethod(replacement), "check": lambda self, match: check(match),
    }  # fmt: skip
    made: Rule = type("Made", (Rule,), body)()
    return made


def misses(made: Rule, model: ir.Model) -> list[str]:
    context = Context()
    assert made.rewrite(model, context) == 0
    return [miss.why for miss in context.misses]


def test_a_pattern_is_replaced_in_both_orders_of_operands() -> None:
    for text in (SILU, SILU.replace("(s, x)", "(x, s)")):
        check_pass(
            FuseSilu(), text, after="m = com.microsoft.QuickGelu <alpha: float = 1> (x)\ny = Neg (m)", count=1
        )


def test_a_chain_is_replaced_link_by_link() -> None:
    text = SILU.replace("y = Neg (m)", "t = Sigmoid (m)  y = Mul (m, t)")
    check_pass(FuseSilu(), text, after=["QuickGelu", "QuickGelu"], count=2)


def test_what_is_known_of_a_value_stays_known_when_it_is_replaced() -> None:
    model = parse(SILU.replace("y = Neg (m)", "t = Sigmoid (m)  y = Mul (m, t)"))
    for node in model.graph:
        node.outputs[0].type = node.outputs[0].shape = None
    assert FuseSilu().rewrite(model, Context()) == 2


def test_the_check_says_why_not() -> None:
    assert misses(FuseSilu(), parse(SILU.replace("float[", "double["))) == ["only float32"]


def test_what_something_else_uses_stays() -> None:
    text = SILU.replace("y = Neg (m)", "y = Sub (m, s)")
    assert misses(FuseSilu(), parse(text)) == ["the Sigmoid inside is used elsewhere too"]


def test_bodies_and_functions_are_rewritten() -> None:
    model = parse(
        """<ir_version: 10, opset_import: ["": 20, "own": 1, "com.microsoft": 1]>
        g (bool c, float[4] x) => (float[4] y) {
            z = own.F (x)
            y = If (c) <then_branch = t () => (float[4] p) { s = Sigmoid (z)  p = Mul (z, s) },
                        else_branch = e () => (float[4] q) { q = Abs (z) }>
        }
        <domain: "own", opset_import: ["": 20]> F (v) => (o) { s = Sigmoid (v)  o = Mul (v, s) }"""
    )
    anything = rule(FuseSilu().pattern, FuseSilu().replacement)
    check_pass(anything, model, count=2)
    assert [function.opset_imports["com.microsoft"] for function in model.functions.values()] == [1]


def test_attributes_that_the_pattern_does_not_name_must_be_absent() -> None:
    def swap(op: Any, x: Any, **_: Any) -> Any:
        return op.Identity(x)

    text = 'g (float[N, 4] x) => (float[N, 4] y) { y = Gelu <approximate = "tanh"> (x) }'
    strict = rule(lambda op, x: op.Gelu(x), swap)
    assert misses(strict, parse(text)) == []
    named = rule(lambda op, x: op.Gelu(x, approximate="tanh"), swap)
    assert named.rewrite(parse(text), Context()) == 1
    other = rule(lambda op, x: op.Gelu(x, approximate="none"), swap)
    assert other.rewrite(parse(text), Context()) == 0
    lax = rule(lambda op, x: op.Gelu(x, _allow_other_attributes=True), swap)
    assert lax.rewrite(parse(text), Context()) == 1


def test_attributes_are_bound_and_given_on() -> None:
    seen = []

    def check(match: Match) -> str | None:
        seen.append((match.attribute("perm"), match.shape("x"), match.fact("x").rank, match.opset))
        return None

    made = rule(
        lambda op, x, perm: op.Neg(op.Transpose(x, perm=perm)),
        lambda op, x, perm: op.Transpose(op.Neg(x), perm=perm),
        check,
    )
    check_pass(
        made,
        "g (float[N, 4, 2] x) => (float[2, N, 4] y) { t = Transpose <perm = [2, 0, 1]> (x)  y = Neg (t) }",
        after=["Neg", "Transpose"],
        count=1,
    )
    assert set(seen) == {((2, 0, 1), ("N", 4, 2), 3, 20)}


def test_numbers_are_constants_and_arrays_become_some() -> None:
    made = rule(lambda op, x: op.Add(op.Mul(x, 2.0), 1.0), lambda op, x: op.Mul(x, np.float32(3)))
    model = parse(
        """g (float[N, 4] x) => (float[N, 4] y) <float two = {2.0}> {
            one = Constant <value = float {1.0}> ()
            a = Mul (two, x)
            y = Add (a, one)
        }"""
    )
    assert made.rewrite(model, Context()) == 1
    (node,) = model.graph
    assert node.inputs[1] is not None
    assert node.inputs[1].const_value.numpy() == 3
    off = parse(
        """g (float[N] x) => (float[N] y) <float two = {2.1}, float one = {1}> {
            a = Mul (x, two)  y = Add (a, one)
        }"""
    )
    assert made.rewrite(off, Context()) == 0


def test_constants_can_be_looked_at() -> None:
    made = rule(
        lambda op, x, k: op.Mul(x, k),
        lambda op, x, k: op.Identity(x),
        lambda match: None if match.constant("k") is not None else "k is no constant",
    )
    text = "g (float[N] x, float[N] k) => (float[N] y) { y = Mul (x, k) }"
    assert misses(made, parse(text)) == ["k is no constant"]
    for operands in ("(x, k)", "(k, x)"):
        constant = f"g (float[N] x) => (float[N] y) <float k = {{1.0}}> {{ y = Mul {operands} }}"
        check_pass(made, constant, after="y = Identity (x)", count=1)


def test_an_input_with_a_default_is_no_constant() -> None:
    made = rule(lambda op, x: op.Mul(x, 1.0), lambda op, x: op.Identity(x))
    model = parse("g (float[N] x) => (float[N] y) <float one = {1}> { y = Mul (x, one) }")
    model.graph.inputs.append(model.graph.initializers["one"])
    assert made.rewrite(model, Context()) == 0


def test_several_outputs_and_what_is_returned_as_it_is() -> None:
    made = rule(lambda op, x: (op.Neg(op.Abs(x)), op.Abs(x)), lambda op, x: (op.Neg(x), x))
    text = (
        "g (float[N] x) => (float[N] y, float[N] z) { r = Relu (x)  a = Abs (r)  y = Neg (a)  z = Exp (a) }"
    )
    with pytest.raises(RecipeError, match="ends in 2 nodes"):
        made.rewrite(parse(text), Context())

    def pattern(op: Any, x: Any) -> Any:
        inner = op.Abs(x)
        return op.Neg(inner), inner

    made = rule(pattern, lambda op, x: (op.Neg(x), x))
    model = parse(text)
    assert made.rewrite(model, Context()) == 1
    assert sorted(node.op_type for node in model.graph) == ["Exp", "Identity", "Neg", "Relu"]
    burnish.verify(parse(text), model)


def test_a_target_without_the_kernel_is_told_apart() -> None:
    made = rule(
        FuseSilu().pattern,
        FuseSilu().replacement,
        lambda match: None if match.target.has_kernel("com.microsoft", "QuickGelu") else "no kernel",
    )
    context = Context(target=TARGETS["openvino"])
    assert made.rewrite(parse(SILU), context) == 0
    assert [miss.why for miss in context.misses] == ["no kernel"]


def test_new_nodes_are_stamped_and_inherit_modules() -> None:
    model = parse(SILU)
    for node in model.graph:
        write_origins(node.metadata_props, [Origin(f"act.{node.outputs[0].name}")])
    result = burnish.optimize(model, recipe=Recipe((FuseSilu(),)), measured=False)
    first = result.graph.node(0)
    assert first.metadata_props["burnish.pass"] == "test-fuse-silu"
    assert [origin.module for origin in origins(first.metadata_props)] == ["act.s", "act.m"]


@pytest.mark.parametrize(
    ("replacement", "why"),
    [
        (lambda op, x: None, "return 1 value"),
        (lambda op, x: (op.Neg(x), x), "return 1 value"),
        (lambda op, x: op.Mul(x, 2.0), "an operand is a float"),
        (lambda op, x: op.Neg(x, _domain="com.microsoft", _version=7), "com.microsoft in version 1, not 7"),
        (lambda op, x: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_rule_that_raises_is_an_error_that_names_it(replacement: Callable[..., Any], why: str) -> None:
    made = rule(FuseSilu().pattern, replacement)
    with pytest.raises(PassError, match=re.escape(why)) as caught:
        burnish.optimize(parse(SILU), recipe=Recipe((made,)), measured=False)
    assert "'test-rule'" in caught.value.what
    _, receipts = burnish.optimize(
        parse(SILU), recipe=Recipe((made,)), measured=False, on_mismatch="rollback", return_receipts=True
    )
    assert receipts[0].status == "rolled-back"


def test_a_wrong_rule_is_refused_and_bisected() -> None:
    made = rule(FuseSilu().pattern, lambda op, x: op.Relu(x))
    with pytest.raises(MismatchError, match=r"'test-rule'.*value 'm'"):
        burnish.optimize(parse(SILU), recipe=Recipe((made,)), measured=False)


def burnish_command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a package on the path, as pip leaves it there."""

    def add(name: str, version: str, module: str, entries: dict[str, str]) -> None:
        site = tmp_path / f"site-{name}"
        information = site / f"{name.replace('-', '_')}-{version}.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = [f"{key} = {value}" for key, value in entries.items()]
        (information / "entry_points.txt").write_text("\n".join(["[burnish.passes]", *lines]))
        stem = next(iter(entries.values())).partition(":")[0]
        (site / f"{stem}.py").write_text(module)
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, stem, raising=False)
        importlib.invalidate_caches()

    return add


@pytest.fixture
def acme(install: Callable[..., None]) -> None:
    """The package of docs/writing-a-rule.md."""
    entries = tomllib.loads(TABLE)["project"]["entry-points"]["burnish.passes"]
    assert len(MODULE.split("\n\n\n")[1].strip().splitlines()) <= 15
    install("acme-rules", "1.2", MODULE, entries)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    model = parse(SILU)
    save_model(model, tmp_path / "m.onnx", signature(model))
    return tmp_path / "m.onnx"


@pytest.mark.usefixtures("acme")
def test_the_package_of_the_docs_runs(path: Path, tmp_path: Path) -> None:
    artifact = burnish.optimize(
        burnish.Artifact.from_onnx(path), recipe="remove-identity,acme-fuse-silu", measured=False
    )
    assert [node.op_type for node in artifact.model.graph] == ["QuickGelu", "Neg"]
    assert artifact.manifest.recipe == "acme-fuse-silu"
    assert artifact.manifest.versions["acme-rules"] == "1.2"
    assert package_of(load_pass("acme-fuse-silu")) == "acme-rules 1.2"
    assert package_of(load_pass("fuse-gelu")) == ""
    burnish.verify(path, artifact)
    done = burnish_command("optimize", path, "-o", tmp_path / "f.onnx", "-r", "acme-fuse-silu")
    assert done.exit_code == 0, done.output


@pytest.mark.usefixtures("acme")
def test_it_is_in_the_list_as_theirs() -> None:
    shown = " ".join(burnish_command("passes").stdout.split())
    assert "acme-fuse-silu rounding" in shown
    assert "[acme-rules 1.2]" in shown
    assert "(rounding), acme-rules 1.2" in burnish_command("passes", "acme-fuse-silu").stdout
    described = json.loads(burnish_command("passes", "--json").stdout)
    packages = {each["name"]: each["package"] for each in described}
    assert packages["acme-fuse-silu"] == "acme-rules 1.2"
    assert packages["fuse-gelu"] == f"burnish {burnish.__version__}"


@pytest.mark.usefixtures("acme")
def test_the_nearest_name_may_be_theirs() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse("acme-fuse-silo")
    assert caught.value.hint == "Did you mean 'acme-fuse-silu'?"


BROKEN = [
    ("acme-x", "import no_such_module", "PASS_LOAD", "ModuleNotFoundError: No module named 'no_such_module'"),
    ("acme-x", "raise OSError('no licence')", "PASS_LOAD", "OSError: no licence"),
    ("acme-x", "Made = 3", "PASS_LOAD", "no subclass of burnish.passes.base.Pass"),
    ("acme-x", "from burnish.rules import Rule as Made", "PASS_LOAD", "does not define pattern, replacement"),
    ("acme-x", MODULE + "\nMade = FuseSilu", "PASS_LOAD", "it calls itself 'acme-fuse-silu'"),
    ("acme-fuse-silu", MODULE.replace("    numerics", "    other") + "\nMade = FuseSilu", "PASS_LOAD",
     "does not declare its numerics"),
    ("fuse-gelu", MODULE, "RECIPE_PASS_NAME", "a name of burnish's own"),
    ("Acme_X", MODULE, "RECIPE_PASS_NAME", "lower-case letters"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "module", "code", "why"), BROKEN)
def test_one_that_cannot_be_used_is_an_error_that_names_the_package(
    install: Callable[..., None], name: str, module: str, code: str, why: str
) -> None:
    install("acme-rules", "1.2", module, {name: "acme_broken:Made"})
    with pytest.raises(BurnishError, match=re.escape(why)) as caught:
        load_pass(name)
    assert caught.value.code == code
    assert "acme-rules 1.2" in caught.value.what
    assert len(str(caught.value).splitlines()) == 2
    listed = burnish_command("passes")
    assert listed.exit_code == 0
    assert "cannot be used: " in " ".join(listed.stdout.split())
    assert burnish_command("passes", name).exit_code == 1
    assert "remove-identity" in listed.stdout
    if name not in PASSES:
        assert str(Recipe.parse("fuse-gelu")) == "fuse-gelu", "others are not affected"


def test_two_packages_with_one_name(install: Callable[..., None]) -> None:
    for package in ("acme-rules", "beta-rules"):
        install(package, "1.0", MODULE, {"acme-fuse-silu": f"{package.replace('-', '_')}:FuseSilu"})
    with pytest.raises(RecipeError, match="only one can have it") as caught:
        load_pass("acme-fuse-silu")
    assert "acme-rules 1.0" in caught.value.what
    assert "beta-rules 1.0" in caught.value.what


@pytest.mark.parametrize(
    ("source", "named"),
    [
        (
            "    def replacement(self, op, x):\n        raise OSError('no licence')\n",
            "failed: OSError: no licence",
        ),
        ("    def replacement(self, op, x):\n        return op.Relu(x)\n", "changed the result"),
    ],
)
def test_one_that_raises_or_is_wrong_is_named_with_its_package(
    install: Callable[..., None], path: Path, tmp_path: Path, source: str, named: str
) -> None:
    module = MODULE[: MODULE.index("    def replacement")] + source
    install("acme-rules", "1.2", module, {"acme-fuse-silu": "acme_rules:FuseSilu"})
    done = burnish_command("optimize", path, "-o", tmp_path / "f.onnx", "-r", "acme-fuse-silu")
    assert done.exit_code == 1
    assert f"Pass 'acme-fuse-silu' of package acme-rules 1.2 {named}" in done.stderr


def test_options_that_it_refuses(install: Callable[..., None]) -> None:
    options = """
    level: int = 1

    def __post_init__(self):
        if self.level > 9:
            raise ValueError("too high")
"""
    decorated = "import dataclasses\n\n\n@dataclasses.dataclass(frozen=True)\nclass FuseSilu"
    module = MODULE.replace("class FuseSilu", decorated)
    module = module.replace("\n    def pattern", f"{options}\n    def pattern")
    install("acme-rules", "1.2", module, {"acme-fuse-silu": "acme_rules:FuseSilu"})
    assert dataclasses.asdict(Recipe.parse("acme-fuse-silu{level=3}").passes[0]) == {"level": 3}
    with pytest.raises(RecipeError, match="'acme-fuse-silu' refuses its options: ValueError: too high"):
        Recipe.parse("acme-fuse-silu{level=10}")
