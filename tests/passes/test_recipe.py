import dataclasses
from typing import ClassVar, Literal, final

import onnx_ir as ir
import pytest

from burnish.errors import RecipeError
from burnish.passes import recipe as recipe_module
from burnish.passes.base import Context, Numerics, Pass
from burnish.passes.recipe import Recipe
from burnish.passes.registry import PASSES, load_pass


@final
@dataclasses.dataclass(frozen=True)
class Probe(Pass):
    """A pass with an option of every type."""

    name: ClassVar[str] = "probe"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    size: int = 3
    ratio: float = 0.5
    packed: bool = True
    how: Literal["channel", "tensor"] = "channel"
    only: str | None = None
    form: Literal["round", "square"] | None = None

    def rewrite(self, model: ir.Model, context: Context) -> int:
        return 0


@pytest.fixture(autouse=True)
def _probe(monkeypatch: pytest.MonkeyPatch) -> None:
    original = load_pass
    monkeypatch.setattr(recipe_module, "load_pass", lambda name: Probe if name == "probe" else original(name))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "probe",
        "remove-identity,probe",
        "probe{size=4}",
        "probe{size=-1,ratio=0.25,packed=false,how=tensor,only=fc.*}",
        "probe{form=square}",
    ],
)
def test_round_trip(text: str) -> None:
    assert str(Recipe.parse(text)) == text
    assert Recipe.parse(str(Recipe.parse(text))) == Recipe.parse(text)


def test_space_lines_and_comments_are_free() -> None:
    text = """
        remove-identity,   # first
        probe { size = 4, only = none },
    """
    assert str(Recipe.parse(text)) == "remove-identity,probe{size=4}"


def test_a_default_is_not_printed() -> None:
    assert str(Recipe.parse("probe{size=3,packed=True}")) == "probe"


@pytest.mark.parametrize(
    ("text", "code", "what", "hint"),
    [
        ("fold-constant", "RECIPE_UNKNOWN_PASS", "'fold-constant'", "Did you mean 'fold-constants'?"),
        ("probe{sise=3}", "RECIPE_UNKNOWN_OPTION", "'sise'", "Did you mean 'size'?"),
        ("remove-identity{x=1}", "RECIPE_UNKNOWN_OPTION", "'x'", "It takes no options."),
        ("probe{size}", "RECIPE_UNKNOWN_OPTION", "has no value", "Did you mean 'size'?"),
        ("probe{size=big}", "RECIPE_OPTION_VALUE", "'big'", "It takes a int."),
        ("probe{packed=maybe}", "RECIPE_OPTION_VALUE", "'maybe'", "It takes a bool."),
        ("probe{how=block}", "RECIPE_OPTION_VALUE", "'block'", "It is one of: channel, tensor."),
        ("probe{form=oval}", "RECIPE_OPTION_VALUE", "'oval'", "It is one of: round, square."),
        ("probe{", "RECIPE_SYNTAX", "character 0", "Write passes as"),
        ("probe probe", "RECIPE_SYNTAX", "character 0", "Write passes as"),
        ("Fuse!", "RECIPE_SYNTAX", "'Fuse!'", "Write passes as"),
    ],
)
def test_every_way_to_be_wrong(text: str, code: str, what: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(text)
    assert caught.value.code == code
    assert what in caught.value.what
    assert hint in caught.value.hint


def test_recipes_add() -> None:
    assert str(Recipe.parse("probe") + Recipe.parse("remove-identity")) == "probe,remove-identity"


@pytest.mark.parametrize("name", PASSES)
def test_every_entry_of_the_registry_is_complete(name: str) -> None:
    cls = load_pass(name)
    assert cls.name == name
    assert cls.__doc__
    assert isinstance(cls.numerics, Numerics)
    assert dataclasses.is_dataclass(cls)
    assert getattr(cls, "__final__", False), "passes are final"
    assert str(cls()) == name, "the defaults of a pass print as its name alone"
    assert Recipe.parse(name).passes == (cls(),)
