"""Rules that come from other packages."""

import dataclasses
import importlib
import json
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import burnish
from burnish.cli import main
from burnish.errors import BurnishError, RecipeError
from burnish.model import save_model, signature
from burnish.passes.recipe import Recipe
from burnish.passes.registry import PASSES, load_pass
from burnish.passes.third_party import package_of
from burnish.testing import parse

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "writing-a-rule.md").read_text(encoding="utf-8")
MODULE, _ = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
(TABLE,) = re.findall(r"```toml\n(.*?)```", DOCS, re.DOTALL)
SILU = "g (float[N, 4] x) => (float[N, 4] y) { s = Sigmoid (x)  m = Mul (s, x)  y = Neg (m) }"


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
