"""What passes make of a model, judged by two oracles; and which of them is guilty."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Final, Literal, final

import onnx
import onnx_ir as ir

from burnish.benchmarks.random_graphs.oracles import (
    Case,
    Run,
    apart,
    counted_from_front,
    evaluator,
    onnxruntime,
)
from burnish.errors import ModelError
from burnish.model import copy_model, to_bytes
from burnish.passes.base import Context, Pass
from burnish.region_check import compare_regions
from burnish.target import Target, is_own

Kind = Literal["different", "invalid", "exception", "twice", "region", "crash"]
"""`crash`: the process ended, which the graph itself does not make it; `twice`: passes change again what they
made; `region`: a comparison at changes missed what the whole one shows."""

_CONTRIB: Final = "com.microsoft"
_SEVERAL: Final = 10.0
"""How many passes that round may add up."""
_AGREE: Final = 1e-3
"""How near two implementations of one model are."""
_NEAR: Final = 1e-5
"""How near the evaluator's results are where onnxruntime's are equal: it may round in its own ways."""


@final
@dataclasses.dataclass(frozen=True)
class Failure:
    """What is wrong, and who says so."""

    kind: Kind
    detail: str
    oracle: str = "onnxruntime"


@final
@dataclasses.dataclass(frozen=True)
class Guilty:
    """The pass that does it, and the model ahead of it."""

    step: Pass
    before: bytes


@final
class Subject:
    """A model, inputs on which it runs, and what the evaluator gives where it can.

    Args:
        model: any valid model.
        cases: inputs and what onnxruntime gives.
    """

    def __init__(self, model: bytes, cases: Sequence[Case]) -> None:
        self.model = model
        self.cases: list[Case] = []
        self.second: list[Case] = []
        """What the evaluator gives."""
        self.disagreements: list[str] = []
        """Cases that are none, as the two oracles differ on the model itself."""
        self.refused: list[str] = []
        """What kernels of changed models said that take no empty tensors."""
        run = _evaluator_or_none(model)
        for case in cases:
            other = None if run is None else _second(run, case)
            why = "" if other is None else apart(_said(other), [case], _AGREE)
            if why:
                self.disagreements.append(why)
                continue
            self.cases.append(case)
            self.second += [] if other is None else [other]

    def judge(self, after: bytes, tolerance: float) -> Failure | None:
        """What is wrong with a model that was made of this one."""
        try:
            onnx.checker.check_model(_checkable(after))
            where = apart(onnxruntime(after), self.cases, tolerance, self.refused)
            failure = Failure("different", where) if where else None
        except onnx.checker.ValidationError as error:
            return Failure("invalid", str(error)[-400:])
        except ModelError as error:
            failure = Failure("invalid", str(error)[-400:])
        if failure is not None and not self._kernel_errs(after, tolerance):
            return failure
        where = ""
        with contextlib.suppress(ModelError):
            where = apart(evaluator(after), self.second, max(tolerance, _NEAR))
        return Failure("different", where, "evaluator") if where else None

    def _kernel_errs(self, after: bytes, tolerance: float) -> bool:
        """True where only empty tensors give another result, or none: see `counted_from_front`."""
        empty = [case for case in self.cases if any(array.size == 0 for array in case.feeds.values())]
        full = [case for case in self.cases if all(array.size for array in case.feeds.values())]
        with contextlib.suppress(ModelError):
            if empty and not apart(onnxruntime(after), full, tolerance):
                where = apart(onnxruntime(counted_from_front(after)), empty, tolerance)
                self.refused += [] if where else ["a kernel gives another shape for empty tensors"]
                return not where
        return False


def _evaluator_or_none(model: bytes) -> Run | None:
    try:
        return evaluator(model)
    except ModelError:
        return None


def _said(case: Case) -> Run:
    return lambda _: case.expected


def _second(run: Run, case: Case) -> Case | None:
    try:
        return dataclasses.replace(case, expected=run(case.feeds))
    except ModelError:
        return None


def apply(model: bytes, passes: Sequence[Pass], target: Target) -> tuple[bytes, float]:
    """The model after passes, and how far they may have moved its outputs."""
    loaded, tolerance = ir.from_proto(onnx.ModelProto.FromString(model)), 0.0
    for pass_ in passes:
        if pass_.rewrite(loaded, Context(target=target)):
            tolerance = max(tolerance, pass_.numerics.tolerance)
    return to_bytes(loaded), _SEVERAL * tolerance


def examine(subject: Subject, passes: Sequence[Pass], target: Target) -> Failure | None:
    """What is wrong with what passes make of a model; to make it again must change nothing."""
    try:
        after, tolerance = apply(subject.model, passes, target)
        again, _ = apply(after, passes, target)
    except Exception as error:  # noqa: BLE001 - every exception is a finding, whatever its kind
        return Failure("exception", f"{type(error).__name__}: {error}"[:400])
    found = subject.judge(after, tolerance)
    if found is None and again != after:
        return Failure("twice", "the same passes change their own result")
    return found


def examine_regions(
    subject: Subject, passes: Sequence[Pass], target: Target
) -> tuple[int, int, Failure | None]:
    """Compare at changes after each pass, and the whole: how many passes changed something, how many of those
    changes could be compared there, and what the whole shows that this missed.
    """
    model, changed, compared = ir.from_proto(onnx.ModelProto.FromString(subject.model)), 0, 0
    fitting = [(dict(case.sizes), case.feeds) for case in subject.cases]
    for pass_ in passes if fitting else ():
        before = copy_model(model)
        try:
            if not pass_.rewrite(model, Context(target=target)):
                continue
        except Exception as error:  # noqa: BLE001 - as in `examine`
            return changed, compared, Failure("exception", f"{pass_}: {type(error).__name__}: {error}"[:400])
        changed += 1
        verdict = compare_regions(before, model, fitting, pass_.numerics.tolerance)
        if verdict is None:
            continue
        compared += 1
        where = _whole(to_bytes(before), to_bytes(model), subject.cases, pass_.numerics.tolerance)
        if where:
            return changed, compared, Failure("region", f"{pass_}: {where}")
    return changed, compared, None


def _whole(before: bytes, after: bytes, known: Sequence[Case], tolerance: float) -> str:
    """How far two models are apart; an earlier pass may be guilty of what `before` does not run on."""
    try:
        run = onnxruntime(before)
        expected = [dataclasses.replace(case, expected=run(case.feeds)) for case in known]
    except ModelError:
        return ""
    try:
        return apart(onnxruntime(after), expected, tolerance, [])
    except ModelError as error:
        return error.what


def find_guilty(subject: Subject, passes: Sequence[Pass], target: Target, failure: Failure) -> Guilty | None:
    """The pass after which it first goes wrong; None where no beginning of the recipe does."""
    if failure.kind == "twice":
        after, _ = apply(subject.model, passes, target)
        for number, pass_ in enumerate(passes):
            before, _ = apply(after, passes[:number], target)
            if apply(before, [pass_], target)[0] != before:
                return Guilty(pass_, before)
        return None
    for number, pass_ in enumerate(passes):
        if _kind(subject, passes[: number + 1], target) == failure.kind:
            return Guilty(pass_, apply(subject.model, passes[:number], target)[0])
    return None


def _kind(subject: Subject, passes: Sequence[Pass], target: Target) -> Kind | None:
    try:
        after, tolerance = apply(subject.model, passes, target)
    except Exception:  # noqa: BLE001 - every exception is a finding, whatever its kind
        return "exception"
    found = subject.judge(after, tolerance)
    return None if found is None else found.kind


def _checkable(model: bytes) -> onnx.ModelProto:
    """With onnxruntime's own ops of the default domain in theirs, where the checker leaves them alone."""
    proto = onnx.ModelProto()
    proto.ParseFromString(model)
    if _CONTRIB not in {imported.domain for imported in proto.opset_import}:
        proto.opset_import.add(domain=_CONTRIB, version=1)
    opset = next((imported.version for imported in proto.opset_import if not imported.domain), 1)
    todo = [proto.graph]
    while todo:
        for node in todo.pop().node:
            if is_own(node.op_type, opset):
                node.domain = _CONTRIB
            todo.extend(attribute.g for attribute in node.attribute if attribute.HasField("g"))
    return proto
