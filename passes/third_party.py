"""Passes of other packages: found by the entry point group `burnish.passes`, loaded when they are asked for.

[project.entry-points."burnish.passes"]
acme-fuse-silu = "acme_rules:FuseSilu"
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import re
import sys
from importlib.metadata import EntryPoint
from typing import Final

from burnish.errors import BurnishError, PassError, RecipeError
from burnish.passes.base import Numerics, Pass

GROUP: Final = "burnish.passes"
_NAME: Final = re.compile(r"[a-z][a-z0-9-]*")


def third_party() -> dict[str, tuple[EntryPoint, ...]]:
    """What installed packages offer, by the name of the pass; more than one of a name cannot be used."""
    return dict(_found(tuple(sys.path)))


@functools.lru_cache(maxsize=1)
def _found(_path: tuple[str, ...]) -> dict[str, tuple[EntryPoint, ...]]:
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: entry.name):
        found[entry.name] = (*found.get(entry.name, ()), entry)
    return found


def load_third_party(name: str, *, ours: bool) -> type[Pass]:
    """The pass that a package offers by that name.

    Args:
        name: of an entry point.
        ours: burnish has a pass of that name, too.

    Raises:
        RecipeError: RECIPE_PASS_NAME: the name is taken, or cannot be written in a recipe; the message names
            the package, here and below.
        PassError: PASS_LOAD: it cannot be imported, or is no pass.
    """
    entries = third_party()[name]
    packages = " and ".join(map(package, entries))
    if ours or len(entries) > 1:
        taken = "a name of burnish's own" if ours else "only one can have it"
        raise RecipeError(
            f"Package {packages} offer{'s' if len(entries) == 1 else ''} a pass {name!r}: {taken}.",
            f"Uninstall {'it' if len(entries) == 1 else 'one'}, or ask its authors for another name.",
            code="RECIPE_PASS_NAME",
        )
    if not _NAME.fullmatch(name):
        raise RecipeError(
            f"Package {packages} offers a pass {name!r}: a name has lower-case letters, digits and hyphens.",
            "Ask its authors for another name, or uninstall it.",
            code="RECIPE_PASS_NAME",
        )
    try:
        cls = entries[0].load()
        why = _obstacle(cls, name)
    except Exception as error:
        raise _not_loaded(entries[0], f"{type(error).__name__}: {error}") from error
    if why is not None:
        raise _not_loaded(entries[0], why)
    found: type[Pass] = cls
    return found


def _obstacle(cls: object, name: str) -> str | None:
    """Why what an entry point names is no pass of that name."""
    if not (isinstance(cls, type) and issubclass(cls, Pass)):
        return "it is no subclass of burnish.passes.base.Pass"
    if inspect.isabstract(cls):
        return f"it does not define {', '.join(sorted(cls.__abstractmethods__))}"
    if getattr(cls, "name", None) != name:
        return f"it calls itself {getattr(cls, 'name', None)!r}"
    declared = isinstance(getattr(cls, "numerics", None), Numerics)
    return None if declared else "it does not declare its numerics"


def _not_loaded(entry: EntryPoint, why: str) -> BurnishError:
    return PassError(
        f"Pass {entry.name!r} of package {package(entry)} ({entry.value}) cannot be used: {why}.",
        f"Repair or uninstall {package(entry)}, or leave the pass out.",
        code="PASS_LOAD",
    )


def package(entry: EntryPoint) -> str:
    """Name and version of the package that an entry point belongs to."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.module


def package_of(cls: type[Pass]) -> str:
    """Name and version of the package that offers a pass; empty: burnish, or nobody by an entry point."""
    entries = third_party().get(getattr(cls, "name", ""), ())
    return next((package(entry) for entry in entries if _top(entry.module) == _top(cls.__module__)), "")


def _top(module: str) -> str:
    return module.partition(".")[0]
