"""What became of a case: the model after an optimiser against the one before, onnxruntime's optimiser off."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal, final

import numpy as np
import onnx
import onnx_ir as ir
from onnx.backend.test.case.test_case import TestCase as Case

from burnish.benchmarks.node_suite.cases import Feeds, Variant, runnable
from burnish.difference import difference
from burnish.errors import ModelError
from burnish.passes.matching import precision
from burnish.runtime.reference import Reference
from burnish.target import TARGETS, Target

Kind = Literal["same", "elsewhere", "different", "invalid", "exception", "crash"]
"""`elsewhere`: it holds an operator that only its target has a kernel for, so it cannot be run here."""
FAILURES: Final[tuple[Kind, ...]] = ("different", "invalid", "exception", "crash")


@final
@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one case; `detail` says what is wrong with it."""

    kind: Kind
    detail: str = ""


@final
class Prepared:
    """A case that onnxruntime runs, with what it gives; models that were judged are not judged again."""

    def __init__(self, name: str, model: bytes, feeds: Feeds, expected: Mapping[str, Any]) -> None:
        self.name, self.model, self.feeds, self.expected = name, model, feeds, expected
        self._known: dict[tuple[bytes, float, int], Outcome] = {}

    def judge(
        self, after: bytes, tolerance: float, target: Target | None = None, *, steps: int = 0
    ) -> Outcome:
        """Compare what `after` gives.

        Args:
            after: the model that an optimiser made.
            tolerance: allowed `max_rel` (see `Difference`).
            target: what it was made for; None: for the CPU.
            steps: allowed relative steps of float16 and bfloat16, where those are more.
        """
        key = (after, tolerance, steps)
        if key not in self._known:
            self._known[key] = self._judge(*key)
        found = self._known[key]
        if found.kind == "invalid" and target is not None and _only_elsewhere(after, target):
            return Outcome("elsewhere", found.detail)
        return found

    def _judge(self, after: bytes, tolerance: float, steps: int) -> Outcome:
        wanted = {info.name for info in onnx.ModelProto.FromString(after).graph.input}
        feeds = {name: value for name, value in self.feeds.items() if name in wanted}
        try:
            actual = run(after, feeds)
        except ModelError as error:
            return Outcome("invalid", error.what[:300])
        for name, value in self.expected.items():
            if name not in actual:
                return Outcome("different", f"output {name} is gone")
            if not same(value, actual[name], tolerance, steps):
                return Outcome("different", f"output {name}")
        return Outcome("same")


def prepare(case: Case, variant: Variant) -> Prepared | None:
    """The case with what it gives; None where onnxruntime does not run it, or it gives random numbers."""
    proto, feeds = runnable(case, variant)
    model = proto.SerializeToString()
    try:
        expected, again = run(model, feeds), run(model, feeds)
    except ModelError:
        return None
    if not all(same(value, again[name], 0.0) for name, value in expected.items()):
        return None
    return Prepared(case.name, model, feeds, expected)


def prepared(chosen: Iterable[Case], variant: Variant) -> Iterator[Prepared]:
    """Those of the cases that can be judged."""
    return (found for case in chosen if (found := prepare(case, variant)) is not None)


def run(model: bytes, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """What the model gives.

    Raises:
        ModelError: onnxruntime does not load or run it.
    """
    return dict(Reference(model)(feeds))


def same(a: object, b: object, tolerance: float, steps: int = 0) -> bool:
    """True for arrays that are near, lists of them, or None twice.

    Args:
        a: what is expected.
        b: what was found.
        tolerance: allowed `max_rel` (see `Difference`).
        steps: allowed relative steps of float16 and bfloat16, where those are more.
    """
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(x, y, tolerance, steps) for x, y in zip(a, b, strict=True))
    if isinstance(a, list) or isinstance(b, list):
        return False
    if a is None or b is None:
        return a is b
    array = np.asarray(a)
    dtype = ir.DataType.from_numpy(array.dtype) if steps and array.dtype.itemsize == 2 else None
    return difference("", array, np.asarray(b)).within(max(tolerance, steps * precision(dtype)))


def _only_elsewhere(model: bytes, target: Target) -> bool:
    """True where a node is one that the target has a kernel for and the CPU has none."""
    here, own = TARGETS["cpu"].contrib, target.contrib
    ops = {node.op_type for node in onnx.ModelProto.FromString(model).graph.node}
    return bool(ops & (own - here))
