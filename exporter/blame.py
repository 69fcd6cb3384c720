"""Which part of a module a failure of torch's exporter is about: read from the frames of its traceback.

torch's messages seldom say it. Where an operator has no translation, a frame holds the fx node, which knows
its module and line. Where tracing fails, the module's own code is on the stack.
"""

from __future__ import annotations

import contextlib
import functools
import linecache
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

from burnish.exporter.needs import torch
from burnish.exporter.origins import source_of
from burnish.provenance import Origin

_TORCH: Final = str(Path(torch.__file__).parent)
_OWN: Final = str(Path(__file__).parent)
_PYTHON: Final = (str(Path(logging.__file__).parent), contextlib.__file__, functools.__file__)
_TRACED_BY: Final = str(Path(__file__).with_name("capture.py"))  # what called that knows no module


def place_of(error: BaseException, module: Any = None) -> str:
    """` in block.0 (Inner) at file.py:4 in forward: return …`; as much of it as is known, else empty.

    Args:
        error: what torch raised; the innermost of its causes is looked at first.
        module: the module that was exported, whose parts have paths.
    """
    for each in reversed(_chain(error)):
        frames = list(traceback.walk_tb(each.__traceback__))
        if found := _of_node(frames) or _of_frames(frames, module):
            return found
    return ""


def place_on_stack(frame: FrameType | None, module: Any = None) -> str:
    """The same of a module that is being traced now: `frame` is the innermost of the stack."""
    frames = []
    while frame is not None and frame.f_code.co_filename != _TRACED_BY:
        frames.append((frame, frame.f_lineno))
        frame = frame.f_back
    return _of_frames(frames[::-1], module)


def _chain(error: BaseException) -> list[BaseException]:
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def _of_node(frames: list[tuple[FrameType, int]]) -> str:
    node = next(
        (v for frame, _ in reversed(frames) for v in _values(frame) if isinstance(v, torch.fx.Node)), None
    )
    if node is None:
        return ""
    stack = node.meta.get("nn_module_stack") or {}
    path, kind = list(stack.values())[-1] if stack else ("", "")
    return str(Origin(str(path), str(kind).rpartition(".")[2], source_of(node.meta.get("stack_trace") or "")))


def _values(frame: FrameType) -> Iterator[Any]:
    yield from frame.f_locals.values()


def _of_frames(frames: list[tuple[FrameType, int]], module: Any) -> str:
    """The innermost line that is not torch's, and the innermost module that was running."""
    paths = {id(part): name for name, part in module.named_modules()} if module is not None else {}
    running = [part for frame, _ in frames if id(part := frame.f_locals.get("self")) in paths]
    own = [(frame, line) for frame, line in frames if not _is_torch(frame)]
    where = _line(*own[-1]) if own else ""
    if not running:
        return str(Origin("", "", where))
    return str(Origin(paths[id(running[-1])], type(running[-1]).__name__, where))


def _line(frame: FrameType, line: int) -> str:
    code = linecache.getline(frame.f_code.co_filename, line).strip()
    where = f"{Path(frame.f_code.co_filename).name}:{line} in {frame.f_code.co_name}"
    return f"{where}: {code}" if code else where


def _is_torch(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith((_TORCH, _OWN, *_PYTHON, "<"))
