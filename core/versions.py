"""Which versions of which packages made an artifact."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Final

_VERSIONED: Final = (
    "burnish",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime-gpu",
    "onnxruntime",
)


def versions(more: Sequence[str] = ()) -> dict[str, str]:
    """Installed versions of what takes part in making an artifact, and of `more` packages."""
    found = {}
    for name in (*_VERSIONED, *more):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
