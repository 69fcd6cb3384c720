"""A recipe: passes in order, which round-trip with one line of text.

    fold-constants,fuse-attention,quantize-static{granularity=tensor}

White space, line breaks and `#` comments are free, so that a file may hold the same.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from typing import Any, Final, Self, final

from burnish.errors import BurnishError, RecipeError, nearest
from burnish.passes.base import Pass
from burnish.passes.registry import load_pass

_PASS: Final = re.compile(r"\s*([a-z][a-z0-9-]*)\s*(?:\{([^{}]*)\})?\s*(,|$)")


@final
@dataclasses.dataclass(frozen=True)
class Recipe:
    """A tuple of passes; `str(recipe)` parses back to it.

    Example::

        Recipe.parse("remove-identity, fold-constants{max_bytes=1024}")
    """

    passes: tuple[Pass, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a recipe from its text.

        Raises:
            RecipeError: a pass or option is unknown, or the text is malformed; the position is named.
        """
        text = re.sub(r"#.*", "", text).strip().strip(",")
        passes, at = [], 0
        while at < len(text):
            match = _PASS.match(text, at)
            if match is None:
                raise RecipeError(
                    f"Recipe does not parse at character {at}: {text[at : at + 30]!r}.",
                    "Write passes as name or name{option=value,...}, separated by commas.",
                    code="RECIPE_SYNTAX",
                )
            passes.append(_build(match[1], match[2] or ""))
            at = match.end()
        return cls(tuple(passes))

    def __str__(self) -> str:
        return ",".join(map(str, self.passes))

    def __add__(self, other: Recipe) -> Recipe:
        return Recipe(self.passes + other.passes)


def _build(name: str, options: str) -> Pass:
    cls = load_pass(name)
    hints = typing.get_type_hints(cls) if options else {}  # it compiles each annotation: slow
    known = {field.name for field in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for option in filter(None, (part.strip() for part in options.split(","))):
        key, equals, text = (part.strip() for part in option.partition("="))
        if key not in known or not equals:
            raise RecipeError(
                f"Pass {name!r} has no option {key!r}."
                if equals
                else f"Option {option!r} of {name!r} has no value.",
                nearest(key, known) if known else "It takes no options.",
                code="RECIPE_UNKNOWN_OPTION",
            )
        values[key] = _value(f"{name}{{{key}}}", text, hints[key])
    try:
        return cls(**values)
    except BurnishError:
        raise
    except Exception as error:  # the pass of a package may check its options as it likes
        raise RecipeError(
            f"Pass {name!r} refuses its options: {type(error).__name__}: {error}.",
            f"Look at them by `burnish passes {name}`.",
            code="RECIPE_OPTION_VALUE",
        ) from error


def _value(where: str, text: str, kind: Any) -> Any:
    """Read `text` as the annotated type of an option: bool, int, float, str, a Literal, or X | None."""
    choices = typing.get_args(kind)
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        if text.lower() == "none" and type(None) in choices:
            return None
        return _value(where, text, next(choice for choice in choices if choice is not type(None)))
    if typing.get_origin(kind) is typing.Literal:
        if text in choices:
            return text
        raise RecipeError(
            f"Option {where} cannot be {text!r}.",
            f"It is one of: {', '.join(map(str, choices))}.",
            code="RECIPE_OPTION_VALUE",
        )
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise RecipeError(
            f"Option {where} cannot be {text!r}.",
            f"It takes a {kind.__name__}.",
            code="RECIPE_OPTION_VALUE",
        ) from None
