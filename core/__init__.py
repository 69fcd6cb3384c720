"""burnish: PyTorch → ONNX → fast. Every rewrite checked.

Names are imported on use, so that `import burnish` costs nothing and `burnish.load` brings in only numpy
and onnxruntime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from burnish._version import __version__ as __version__

if TYPE_CHECKING:
    from burnish.api import export as export
    from burnish.api import optimize as optimize
    from burnish.api import quantize as quantize
    from burnish.api import verify as verify
    from burnish.artifact import Artifact as Artifact
    from burnish.bisecting import bisect as bisect
    from burnish.errors import BurnishError as BurnishError
    from burnish.loading import load as load
    from burnish.passes.recipe import Recipe as Recipe
    from burnish.runtime.session import Session as Session
    from burnish.structure import diff as diff
    from burnish.target import Target as Target

_HOMES: Final = {
    "export": "burnish.api",
    "optimize": "burnish.api",
    "quantize": "burnish.api",
    "verify": "burnish.api",
    "bisect": "burnish.bisecting",
    "diff": "burnish.structure",
    "load": "burnish.loading",
    "Artifact": "burnish.artifact",
    "BurnishError": "burnish.errors",
    "Recipe": "burnish.passes.recipe",
    "Session": "burnish.runtime.session",
    "Target": "burnish.target",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'burnish' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
