"""onnxruntime's exceptions, which have no common base, as burnish's typed errors."""

from __future__ import annotations

import re
from typing import Final

from onnxruntime.capi import onnxruntime_pybind11_state as _state

from burnish.errors import BurnishError, ExternalDataError, ModelError


def _own_exceptions() -> tuple[type[Exception], ...]:
    members = vars(_state).values()
    found = [m for m in members if isinstance(m, type) and issubclass(m, Exception)]
    # What pybind11 turns C++ exceptions into, and what the Python layer raises itself.
    return (*found, RuntimeError, ValueError, TypeError, MemoryError)


ORT_ERRORS: Final = _own_exceptions()
"""What onnxruntime raises, for use in `except`."""

_PREFIX: Final = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
# A place in its source with the C++ signature behind it: of no use to the reader of an error.
_PLACE: Final = re.compile(
    r"/onnxruntime_src/\S+:\d+ (?:(?:virtual |static |[\w:<>*&]+ )*[\w:<>~{}]+\([^()]*\)(?: const)? )?"
)
_MEMORY: Final = re.compile(r"bad[ _]alloc|failed to allocate|out of memory|cannot allocate", re.IGNORECASE)
_OPSET: Final = re.compile(r"opset \d+ is under development|Unsupported model IR version", re.IGNORECASE)
_OUTSIDE: Final = re.compile(r"escape|outside|symlink|symbolic", re.IGNORECASE)
_FALLBACK: Final = "explicitly disabled by the user"


def message(error: BaseException) -> str:
    """onnxruntime's message without its prefix and source places."""
    return _PLACE.sub("", _PREFIX.sub("", str(error))).strip().rstrip(".")


def is_fallback(error: BaseException) -> bool:
    """True when a session was refused because nodes would have gone to the CPU."""
    return _FALLBACK in str(error)


def load_error(error: Exception, name: str) -> BurnishError:
    """Why onnxruntime cannot load the model called `name`."""
    text = message(error)
    if isinstance(error, MemoryError) or _MEMORY.search(text):
        return _memory(f"{name} does not fit into memory")
    if isinstance(error, _state.InvalidProtobuf):
        return ModelError(
            f"{name} is not a readable ONNX model: {text}.",
            "Export it again; it may be truncated.",
            code="MODEL_PARSE",
        )
    if isinstance(error, _state.NoSuchFile):
        return ModelError(f"{name} cannot be opened: {text}.", "Check the path.", code="MODEL_PARSE")
    if isinstance(error, _state.NotImplemented):
        return ModelError(
            f"{name} has a node without a kernel: {text}.",
            "Rewrite that node, or run the model on another provider.",
            code="NODE_UNSUPPORTED",
        )
    if "External data path" in text:
        return ExternalDataError(
            f"The external data of {name} cannot be used: {text}.",
            "Keep the data file beside the model, and load the model by its path, not as bytes.",
            code="EXT_PATH" if _OUTSIDE.search(text) else "EXT_MISSING",
        )
    if _OPSET.search(text):
        return ModelError(
            f"{name} is newer than this onnxruntime: {text}.",
            "Export it with an older opset, or update onnxruntime.",
            code="OPSET_UNSUPPORTED",
        )
    return ModelError(
        f"onnxruntime cannot load {name}: {text}.", "Look at the node it names.", code="MODEL_LOAD"
    )


def run_error(error: Exception) -> BurnishError:
    """Why a run failed; onnxruntime's message names the node."""
    text = message(error)
    if isinstance(error, MemoryError) or _MEMORY.search(text):
        return _memory(f"The run does not fit into memory: {text}")
    return ModelError(
        f"The model does not run on this input: {text}.",
        "Check the values and shapes of the inputs against what the model expects.",
        code="MODEL_RUN",
    )


def _memory(what: str) -> ModelError:
    return ModelError(
        f"{what}.", "Use a smaller batch or model, or allow more memory.", code="RESOURCE_MEMORY"
    )
