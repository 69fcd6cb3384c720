import pytest

from burnish import errors
from burnish.errors import BurnishError, ModelError, nearest

CLASSES = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, BurnishError)]


def test_two_lines_whatever_is_put_in() -> None:
    error = ModelError("a\nb  c", "do\nthis")
    assert str(error) == "a b c\ndo this"
    assert error.to_json() == {"code": "MODEL_INVALID", "what": "a b c", "hint": "do this"}


def test_the_code_can_be_more_specific_than_the_class() -> None:
    assert ModelError("x", "y", code="GRAPH_CYCLE").code == "GRAPH_CYCLE"


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_has_a_code_and_says_what_it_is_for(cls: type[BurnishError]) -> None:
    assert cls.default_code.isupper()
    assert cls.__doc__


def test_nearest_suggests_or_lists() -> None:
    assert nearest("fuse-gelo", ["fuse-gelu", "fold"]) == "Did you mean 'fuse-gelu'?"
    assert nearest("zzz", ["b", "a"]) == "Known are: a, b."
