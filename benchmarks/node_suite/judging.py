"""Judges models on request, in a process of its own: what an optimiser broke may crash onnxruntime."""

from __future__ import annotations

import functools
import os
import sys
from typing import Final

import msgspec

from burnish.benchmarks.node_suite.cases import Variant, cases
from burnish.benchmarks.node_suite.judge import Kind, Prepared, prepare
from burnish.benchmarks.node_suite.serving import receive, send
from burnish.passes.base import Numerics

_TOLERANCE: Final = Numerics.ROUNDING.tolerance
_STEPS: Final = 2  # of float16 and the like, for peers that promise no more


class Request(msgspec.Struct, frozen=True, array_like=True):
    """A case by its number, and what a tool made of it; None asks whether the case itself can be judged."""

    number: int
    variant: Variant
    after: bytes | None


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What became of it. A case that cannot be judged is `invalid`."""

    kind: Kind
    detail: str


@functools.lru_cache(maxsize=4096)
def _prepared(number: int, variant: Variant) -> Prepared | None:
    return prepare(cases()[number], variant)


def answer(request: Request) -> Answer:
    """Judge one model."""
    case = _prepared(request.number, request.variant)
    if case is None:
        return Answer("invalid", "onnxruntime does not run the case, or its results are random")
    if request.after is None:
        return Answer("same", "")
    found = case.judge(request.after, _TOLERANCE, steps=_STEPS)
    return Answer(found.kind, found.detail)


def main() -> None:
    """Serve until stdin ends; what libraries print does not come between."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while (content := receive(requests)) is not None:
        request = msgspec.msgpack.decode(content, type=Request)
        send(answers, msgspec.msgpack.encode(answer(request)))


if __name__ == "__main__":
    main()
