"""The result on its target, where this machine has that: which nodes run there, and how right they are."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from burnish.checking import EXACT, DifferentialChecker
from burnish.errors import MismatchError, ProviderError
from burnish.passes.base import Numerics
from burnish.target import Target
from burnish.workbench import runs_here

TIMES: Final = 4.0
"""How far off the result may be on the target, in the error of the source there."""


def on_target(
    checker: DifferentialChecker, source: ir.Model, result: ir.Model, target: Target, numerics: Numerics
) -> tuple[str, ...]:
    """Run source and result on the target, and compare both with the source on the CPU.

    Other kernels round otherwise: the result may be as far off as the steps allow, or four times as far as
    the source itself is there. Only targets that compute in float32 when told to are judged.

    Returns:
        What was found, for the receipt; nothing where this machine does not have the target.

    Raises:
        MismatchError: the result is further off (MISMATCH_TARGET).
    """
    if target.name not in EXACT or not runs_here(target):
        return ()
    try:
        own = checker.deployed(source, source, numerics, target.name)
    except ProviderError as error:
        own, why = None, error.what
    try:
        made = checker.deployed(source, result, numerics, target.name)
    except ProviderError as error:
        return (f"not run on {target.name}: {error.what}",)
    off = f"{made.difference.max_rel:.2g} off the source on the CPU"
    beside = f"does not run there: {why}" if own is None else f"is {own.difference.max_rel:.2g} off"
    allowed = max(made.allowed(numerics), TIMES * own.difference.max_rel if own is not None else 0.0)
    if not made.difference.within(allowed, lossy=numerics.by_norm):
        raise MismatchError(
            f"On {target.name}, output {made.difference.name!r} is {off} at {dict(made.failed_at or {})}: "
            f"{made.failure or f'the source itself {beside}'}.",
            "Every pass kept its promise on the CPU, so a kernel of the target is wrong; please report it.",
            code="MISMATCH_TARGET",
        )
    return (f"on {target.name}, {off} at most; the source itself {beside}",)
