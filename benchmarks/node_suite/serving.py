"""One optimiser that answers requests: `python serving.py TOOL` reads models and writes what it made of them.

Peers run it with the Python of their own environment (requirements/peers.txt), so nothing of burnish is
imported but by the tool `burnish`. A message is four bytes of length and the content; an answer begins with a
byte that says whether a model or the text of an exception follows.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import struct
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, Final

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

HEAD: Final = "<I"
"""Of a message: its length."""
MADE: Final = b"+"
FAILED: Final = b"-"
VERSION: Final = b"version"
"""Asks for the version of the tool instead of a model."""
Optimise = Callable[[Any], Any]


def _burnish() -> Optimise:
    from burnish.passes.base import Context
    from burnish.passes.recipes import optimize_recipe

    ir = importlib.import_module("onnx_ir")
    recipe = optimize_recipe(measured=False)

    def optimise(model: Any) -> Any:
        loaded = ir.from_proto(model)
        for pass_ in recipe.passes:
            pass_.rewrite(loaded, Context())
        return ir.to_proto(loaded)

    return optimise


def _onnxsim() -> Optimise:
    tool = importlib.import_module("onnxsim")
    return lambda model: tool.simplify(model)[0]


def _onnxslim() -> Optimise:
    tool = importlib.import_module("onnxslim")
    return lambda model: tool.slim(model)


def _onnxoptimizer() -> Optimise:
    tool = importlib.import_module("onnxoptimizer")
    passes = tool.get_fuse_and_elimination_passes()
    return lambda model: tool.optimize(model, passes, fixed_point=True)


def _onnxscript() -> Optimise:
    tool = importlib.import_module("onnxscript.optimizer")
    return lambda model: tool.optimize(model)


TOOLS: Final[dict[str, Callable[[], Optimise]]] = {
    "burnish": _burnish,
    "onnxsim": _onnxsim,
    "onnxslim": _onnxslim,
    "onnxoptimizer": _onnxoptimizer,
    "onnxscript": _onnxscript,
}


def receive(stream: BinaryIO) -> bytes | None:
    """The next message; None at the end of the stream, also in the middle of one."""
    head = stream.read(struct.calcsize(HEAD))
    if len(head) < struct.calcsize(HEAD):
        return None
    size = struct.unpack(HEAD, head)[0]
    content = stream.read(size)
    return content if len(content) == size else None


def send(stream: BinaryIO, content: bytes) -> None:
    """Write one message."""
    stream.write(struct.pack(HEAD, len(content)) + content)
    stream.flush()


def _answer(optimise: Optimise, request: bytes) -> bytes:
    onnx = importlib.import_module("onnx")
    try:
        result: bytes = optimise(onnx.ModelProto.FromString(request)).SerializeToString()
    except Exception as error:  # noqa: BLE001 - every exception is a finding, whatever its kind
        return FAILED + f"{type(error).__name__}: {error}".encode(errors="replace")
    return MADE + result


def main(tool: str) -> None:
    """Serve until stdin ends; what libraries print does not come between."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    optimise = TOOLS[tool]()
    while (request := receive(requests)) is not None:
        if request == VERSION:
            send(answers, importlib.metadata.version(tool).encode())
        else:
            send(answers, _answer(optimise, request))


if __name__ == "__main__":
    main(sys.argv[1])
