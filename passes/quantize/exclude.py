"""The option `exclude` of both passes: a regular expression on node names."""

from __future__ import annotations

import re

import onnx_ir as ir

from burnish.errors import RecipeError


def check_exclude(name: str, exclude: str) -> None:
    """Refuse a pattern that is no regular expression.

    Raises:
        RecipeError: with code RECIPE_OPTION_VALUE.
    """
    try:
        re.compile(exclude)
    except re.error as error:
        raise RecipeError(
            f"Option {name}{{exclude}} cannot be {exclude!r}: {error}.",
            "Write a regular expression that matches whole node names.",
            code="RECIPE_OPTION_VALUE",
        ) from None


def is_excluded(node: ir.Node, exclude: str) -> bool:
    """True when the pattern is given and matches the node's whole name."""
    return bool(exclude) and re.fullmatch(exclude, node.name or "") is not None
