"""torch, or a typed error that says how to get it. Every module of this package imports it from here."""

from __future__ import annotations

import importlib
from types import ModuleType

from burnish.errors import MissingDependencyError


def need(package: str) -> ModuleType:
    """Import an optional package of the `export` extra.

    Raises:
        MissingDependencyError: it is not installed, or does not load here.
    """
    try:
        return importlib.import_module(package)
    except (ImportError, OSError) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == package
        raise MissingDependencyError(
            f"Export needs {package}, which is not installed."
            if missing
            else f"Export needs {package}, which does not load here: {error}.",
            'Install it: pip install "burnish[export]"',
        ) from error


need("torch")
import torch as torch  # noqa: E402 - after the check, so that its absence is a typed error
