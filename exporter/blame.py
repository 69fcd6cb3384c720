"""Which part of a module a failure of torch's exporter is about: read from the frames of its traceback.

torch's messages seldom say it. Where an operator has no translation, a frame holds the fx node, which knows
its module and line. Where tracing fails, the module's own code is on the stack.
"""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

from burnish.exporter.needs import torch
from burnish.exporter.origins import source_of

_TORCH: Final = str(Path(torch.__file__).parent)
_OWN: Final = str(Path(__file__).parent)


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
    return _said(str(path), str(kind).rpartition(".")[2], source_of(node.meta.get("stack_trace") or ""))


def _values(frame: FrameType) -> Iterator[Any]:
    yield from frame.f_locals.values()


def _of_frames(frames: list[tuple[FrameType, int]], module: Any) -> str:
    """The innermost line that is not torch's, and the innermost module that was running."""
    paths = {id(part): name for name, part in module.named_modules()} if module is not None else {}
    own = [(frame, line) for frame, line in frames if not _is_torch(frame)]
    running = [part for frame, _ in own if id(part := frame.f_locals.get("self")) in paths]
    if not own:
        return ""
    frame, line = own[-1]
    code = linecache.getline(frame.f_code.co_filename, line).strip()
    where = f"{Path(frame.f_code.co_filename).name}:{line} in {frame.f_code.co_name}"
    part = running[-1] if running else None
    path = paths[id(part)] if part is not None else ""
    return _said(path, type(part).__name__ if part is not None else "", f"{where}: {code}" if code else where)


def _is_torch(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith((_TORCH, _OWN, "<"))


def _said(path: str, kind: str, line: str) -> str:
    part = f"{path} ({kind})" if path and kind else path or kind
    return (f" in {part}" if part else "") + (f" at {line}" if line else "")
