"""Typed errors: two lines each, what is wrong and what to do, with a stable code.

The same `code` appears in the Python API, in `--json` output and over HTTP, so that callers can branch
on it. Subclasses exist for what a caller may want to catch; the code says the rest.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import ClassVar


class BurnishError(Exception):
    """Base of every error that burnish raises on purpose.

    Args:
        what: One line that names the culprit (node, tensor, file, option).
        hint: One line that says what to do.
        code: Stable, machine-readable; defaults to the class's own.

    Example::

        raise ModelError("model.onnx is empty.", "Export it again.", code="MODEL_PARSE")
    """

    default_code: ClassVar[str] = "BURNISH"

    def __init__(self, what: str, hint: str, *, code: str | None = None) -> None:
        self.what = " ".join(what.split())
        self.hint = " ".join(hint.split())
        self.code = code or self.default_code
        super().__init__(f"{self.what}\n{self.hint}")

    def to_json(self) -> dict[str, str]:
        """The error as `--json` prints it: code, what, hint."""
        return {"code": self.code, "what": self.what, "hint": self.hint}


class ModelError(BurnishError):
    """A model file or graph that cannot be used: MODEL_*, GRAPH_*, TENSOR_*, NODE_*, OPSET_*."""

    default_code = "MODEL_INVALID"


class ExternalDataError(ModelError):
    """External data that is missing, out of bounds or outside the model's folder: EXT_*."""

    default_code = "EXT_PATH"


class ArtifactError(BurnishError):
    """An artifact folder whose manifest or files do not fit: ARTIFACT_*."""

    default_code = "ARTIFACT_INVALID"


class RecipeError(BurnishError):
    """A recipe or pass option that cannot be understood: RECIPE_*."""

    default_code = "RECIPE_INVALID"


class TargetError(BurnishError):
    """A target that does not exist, contradicts itself or cannot hold what was asked."""

    default_code = "TARGET_INVALID"


class MismatchError(BurnishError):
    """A rewrite that changed the results beyond what its pass declares.

    Args:
        sizes: of the dynamic dims at which that was seen, where the error knows.
    """

    default_code = "MISMATCH"

    def __init__(
        self, what: str, hint: str, *, code: str | None = None, sizes: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(what, hint, code=code)
        self.sizes = sizes


class PassError(BurnishError):
    """A pass that fails on a model instead of leaving it alone: a bug in the pass."""

    default_code = "PASS_FAILED"


class ProviderError(BurnishError):
    """An execution provider that is not there, does not load or fell back: EP_*."""

    default_code = "EP_UNAVAILABLE"


class InputError(BurnishError):
    """Values given to a model that do not fit its inputs: INPUT_*."""

    default_code = "INPUT_INVALID"


class SessionError(BurnishError):
    """A session that cannot do what is asked of it: SESSION_CLOSED, BIND_UNSUPPORTED, EP_OPAQUE."""

    default_code = "SESSION_CLOSED"


class CalibrationError(BurnishError):
    """Calibration data that cannot be used: CALIB_*."""

    default_code = "CALIB_INVALID"


class ExportError(BurnishError):
    """A PyTorch source that cannot be exported or does not match its export: EXPORT_*."""

    default_code = "EXPORT_FAILED"


class OutputError(BurnishError):
    """A file that cannot be written: OUTPUT_PATH, DISK_FULL."""

    default_code = "OUTPUT_PATH"


class MissingDependencyError(BurnishError):
    """An optional package that the asked-for feature needs and that is not installed."""

    default_code = "DEPENDENCY_MISSING"


def shown(name: object, limit: int = 240) -> str:
    """A name from outside as a message may show it: printable, on one line, bounded in length."""
    text = str(name)
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[-limit // 2 :]}"


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the closest of `known`, or lists them all when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Known are: {', '.join(names)}."
