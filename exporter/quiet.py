"""torch without its noise, and a module in eval mode and back."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from burnish.exporter.needs import torch

# torch hangs handlers of its own on many loggers below these, so the level of one logger stops little.
_LOGGERS: Final = ("torch", "onnxscript", "onnx_ir", "transformers")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warning, log line or graph that torch, onnxscript or transformers prints comes out meanwhile.

    What the module itself prints does not either: stdout may carry JSON. The empty folder for compiled
    kernels that torch makes among temporary files whenever it traces does not stay.
    """
    before = _cache_folders()
    handlers = {
        handler
        for name in list(logging.root.manager.loggerDict)
        if name.partition(".")[0] in _LOGGERS
        for handler in logging.getLogger(name).handlers
    }
    for handler in handlers:
        handler.addFilter(_silence)
    try:
        # torch.export prints the graph traced so far to stderr when it fails.
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for folder in _cache_folders() - before:
            with contextlib.suppress(OSError):  # gone already, or somebody's kernels are in it by now
                folder.rmdir()
        for handler in handlers:
            handler.removeFilter(_silence)


def _cache_folders() -> set[Path]:
    """The folders for compiled kernels among temporary files; asking torch for its own would make it."""
    return set(Path(tempfile.gettempdir()).glob("torchinductor_*"))


def _silence(_record: logging.LogRecord) -> bool:
    return False


@contextlib.contextmanager
def evaluating(module: Any) -> Iterator[None]:
    """Every part of the module in eval mode, then in the mode it had; no gradients meanwhile."""
    training = [part for part in module.modules() if part.training]
    if training:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.training = True
