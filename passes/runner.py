"""The recipe runner: rewrite a copy, check it against the model before, keep it or name the wrong rewrite.

Running models is not this package's business: the checker is a callable that the orchestration hands in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Literal, Protocol, final, get_args

import onnx_ir as ir

from burnish.difference import Difference
from burnish.errors import BurnishError, MismatchError, PassError, RecipeError, nearest
from burnish.manifest import Receipt
from burnish.model import copy_model
from burnish.passes.base import Context, Facts, Miss, Numerics, Pass, Rewrite
from burnish.passes.origins import Memory, remember
from burnish.passes.recipe import Recipe
from burnish.passes.registry import PASSES, load_pass
from burnish.passes.third_party import package_of

_YOUNG: Final = 100_000  # new objects between two collections
OnMismatch = Literal["refuse", "rollback"]
Progress = Callable[[str, int, int], None]
"""(what is being done, steps done, steps in all)"""


@final
@dataclasses.dataclass(frozen=True)
class Verdict:
    """The outcome of comparing a model with the one before it."""

    difference: Difference
    assignments: tuple[dict[str, int], ...] = ()
    """The sizes of the dynamic dims that were compared."""
    failed_at: Mapping[str, int] | None = None
    """The sizes at which the largest difference was found."""
    failure: str = ""
    """Why the model could not be loaded or run, if so; the difference is then infinite."""
    places: str = ""
    """Where it was compared, if not at the outputs."""
    limit: float = 0.0
    """How far that output may be off by the own noise of the model before (see `burnish.rounding_noise`)."""

    def keeps(self, numerics: Numerics) -> bool:
        """True where no output is further off than is promised, or than that noise allows."""
        return self.difference.within(self.allowed(numerics), lossy=numerics.by_norm)

    def allowed(self, numerics: Numerics) -> float:
        """How far the output may be off."""
        return max(numerics.tolerance, self.limit)

    def notes(self, numerics: Numerics) -> tuple[str, ...]:
        """What is to be said where noise allows more than is promised."""
        if self.limit <= numerics.tolerance:
            return ()
        where = f"output {self.difference.name!r} is {self.difference.max_rel:.2g} off"
        return (f"{where}: {self.limit:.2g} is allowed by the model's own rounding noise",)


@final
@dataclasses.dataclass(frozen=True)
class Culprit:
    """The single rewrite after which the results differ."""

    pass_: Pass
    numerics: Numerics
    """What the pass promises on that model."""
    rewrite: Rewrite | None
    """Its place, where the pass told one."""
    number: int
    """Which of the rewrites it is, from 1."""
    count: int
    """How many the pass makes."""
    before: ir.Model
    """With one rewrite less: right."""
    after: ir.Model
    verdict: Verdict
    """Of `after`, against the model before the pass."""


@final
class WrongRewriteError(MismatchError):
    """A pass that moved the outputs beyond its promise, and the rewrite that did."""

    def __init__(self, what: str, culprit: Culprit) -> None:
        hint = (
            "Leave the pass out, or go on without it by --on-mismatch rollback; "
            "`burnish bisect` cuts out what to report."
        )
        super().__init__(what, hint, sizes=culprit.verdict.failed_at)
        self.culprit = culprit


class Checker(Protocol):
    """Compares `after` with `before` on fresh random inputs."""

    def __call__(self, before: ir.Model, after: ir.Model, numerics: Numerics) -> Verdict:
        """Run both and measure how far apart they are."""


@final
@dataclasses.dataclass(frozen=True)
class Outcome:
    """The rewritten model; for each pass of the recipe one receipt, and where it did not fire."""

    model: ir.Model
    receipts: tuple[Receipt, ...]
    misses: tuple[tuple[Miss, ...], ...] = ()


def run_recipe(
    recipe: Recipe,
    model: ir.Model,
    context: Context,
    check: Checker | None,
    *,
    on_mismatch: OnMismatch = "refuse",
    progress: Progress | None = None,
    keep: bool = True,
) -> Outcome:
    """Apply every pass of a recipe to a copy of `model`, each checked against the model before it.

    Args:
        recipe: the passes, in order.
        model: left untouched, if `keep`.
        context: what passes may ask for; each pass gets a fresh log.
        check: compares two models (see `Checker`). None: nothing is compared, and no copy kept to go back to,
            which is for measuring what the passes cost.
        on_mismatch: `refuse` raises; `rollback` goes on without the pass, and its receipt says so.
        progress: called before each pass.
        keep: False spares the copy; the model is then of no more use to the caller.

    Raises:
        WrongRewriteError: a pass moved the outputs beyond its promise (`refuse`); the message names the pass,
            the single rewrite (node and value) and the sizes.
        RecipeError: `on_mismatch` is neither.
    """
    if on_mismatch not in get_args(OnMismatch):
        raise RecipeError(
            f"on_mismatch cannot be {on_mismatch!r}.", nearest(str(on_mismatch), get_args(OnMismatch))
        )
    current, receipts, misses = copy_model(model) if keep else model, [], []
    nodes = len(context.facts.census_of(current).nodes)
    idle: dict[Pass, tuple[Receipt, tuple[Miss, ...]]] = {}
    with _few_collections():
        for number, pass_ in enumerate(recipe.passes):
            if progress is not None:
                progress(str(pass_), number, len(recipe.passes))
            if pass_ in idle:
                receipt, missed = idle[pass_]
                receipt = _stamp(receipt, time.perf_counter())
            else:
                current, receipt, missed = _step(pass_, current, nodes, context, check, on_mismatch)
            nodes = receipt.nodes_after
            receipts.append(receipt)
            misses.append(missed)
            _remember_idle(idle, pass_, receipt, missed)
    context.facts.forget()
    if progress is not None:
        progress("done", len(recipe.passes), len(recipe.passes))
    return Outcome(current, tuple(receipts), tuple(misses))


def _remember_idle(
    idle: dict[Pass, tuple[Receipt, tuple[Miss, ...]]],
    pass_: Pass,
    receipt: Receipt,
    missed: tuple[Miss, ...],
) -> None:
    """Keep what a pass said that found nothing to do: it says so again while the model stays as it is.

    One that measures may find something else each time, and so may one that is not ours.
    """
    if receipt.status != "unchanged":
        idle.clear()
    elif not receipt.measured and _keeps_to_the_rules(pass_):
        idle[pass_] = receipt, missed


@contextlib.contextmanager
def _few_collections() -> Iterator[None]:
    """Let Python look for cycles rarely: graphs are made of them, and looking takes half of the time."""
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], _YOUNG) if before[0] else 0, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _step(
    pass_: Pass,
    current: ir.Model,
    nodes: int,
    context: Context,
    check: Checker | None,
    on_mismatch: OnMismatch,
) -> tuple[ir.Model, Receipt, tuple[Miss, ...]]:
    started, operators = time.perf_counter(), context.facts.census_of(current).operators
    numerics = pass_.numerics.among(operators)
    if pass_.looks_for and pass_.looks_for.isdisjoint(operators):
        return current, _idle(pass_, numerics, nodes, started), ()
    work = _Work(current, in_place=_keeps_to_the_rules(pass_), to_compare=check is not None)
    try:
        log = work.apply(pass_, context, None)
    except PassError as failure:
        if on_mismatch == "refuse":
            raise
        return work.before, _rolled_back(pass_, nodes, failure, started), ()
    before, candidate, misses = work.before, work.after, tuple(log.misses)
    left = len(context.facts.census_of(candidate).nodes) if log.rewrites else nodes
    receipt = Receipt(
        step=str(pass_), rewrites=len(log.rewrites), numerics=numerics.name.lower(), nodes_before=nodes,
        nodes_after=left, notes=_notes(log), measured=tuple(log.measured),
    )  # fmt: skip
    if not log.rewrites:
        return before, _stamp(receipt, started, status="unchanged"), misses
    if check is None:
        return candidate, _stamp(receipt, started), misses
    verdict = check(before, candidate, numerics)
    receipt = _stamp(
        receipt, started, max_abs_error=verdict.difference.max_abs,
        max_rel_error=_judged(verdict, numerics), assignments=verdict.assignments,
        places=verdict.places, notes=(*receipt.notes, *verdict.notes(numerics)),
    )  # fmt: skip
    if verdict.keeps(numerics):
        return candidate, receipt, misses
    error = _mismatch(pass_, before, context, check, verdict)
    if on_mismatch == "refuse":
        raise error
    note = f"rolled back: {error.what}"
    receipt = _stamp(
        receipt, started, status="rolled-back", nodes_after=receipt.nodes_before,
        notes=(*receipt.notes, note),
    )  # fmt: skip
    return before, receipt, misses


def _idle(pass_: Pass, numerics: Numerics, nodes: int, started: float) -> Receipt:
    receipt = Receipt(
        step=str(pass_), numerics=numerics.name.lower(), nodes_before=nodes, nodes_after=nodes,
    )  # fmt: skip
    return _stamp(receipt, started, status="unchanged")


def _rolled_back(pass_: Pass, nodes: int, error: PassError, started: float) -> Receipt:
    receipt = Receipt(
        step=str(pass_), status="rolled-back", numerics=pass_.numerics.name.lower(), nodes_before=nodes,
        nodes_after=nodes, notes=(f"rolled back: {error.what}",),
    )  # fmt: skip
    return _stamp(receipt, started)


@final
class _Work:
    """A model and what a pass makes of it.

    Args:
        model: stays as it is, unless `in_place`.
        in_place: the model itself is rewritten, and copied only when the pass is about to change something.
        to_compare: it is copied then; otherwise `before` becomes `after`.
    """

    def __init__(self, model: ir.Model, *, in_place: bool, to_compare: bool = True) -> None:
        self.before, self._to_compare = model, to_compare
        self.after = model if in_place else copy_model(model)
        self._memory: Memory | None = None

    def apply(self, pass_: Pass, context: Context, limit: int | None) -> Context:
        """Rewrite `after`; return what the pass said.

        Raises:
            PassError: it failed; `before` is the model as it was.
        """
        log = dataclasses.replace(
            context, limit=limit, before_first=lambda: self._keep(context.facts), rewrites=[], misses=[],
            measured=[],
        )  # fmt: skip
        try:
            pass_.rewrite(self.after, log)
        except BurnishError:
            raise
        except Exception as error:  # a pass is anybody's code; the user learns which one failed
            raise PassError(
                f"{named(pass_)} failed: {type(error).__name__}: {error}.",
                "Leave it out by --recipe, or go on without it by --on-mismatch rollback; please report it.",
            ) from error
        if self._memory is not None:
            self._memory.hand_on(self.after, log.facts.census_of(self.after))
        return log

    def _keep(self, facts: Facts) -> None:
        if self.after is self.before and self._to_compare:
            self.before = copy_model(self.after)
        self._memory = remember(self.after, facts.census_of(self.after))


def named(pass_: Pass) -> str:
    """The pass in words, with the package that it is from, if that is not burnish."""
    package = package_of(type(pass_))
    return f"Pass {pass_.name!r}" + (f" of package {package}" if package else "")


def _keeps_to_the_rules(pass_: Pass) -> bool:
    """True for our own passes: a test of each shows that it changes nothing before it has leave to."""
    return pass_.name in PASSES and load_pass(pass_.name) is type(pass_)


def _stamp(receipt: Receipt, started: float, **changes: object) -> Receipt:
    import msgspec

    seconds = time.perf_counter() - started
    return msgspec.structs.replace(receipt, seconds=round(seconds, 3), **changes)


def _notes(log: Context) -> tuple[str, ...]:
    """Each distinct reason once, with how often it was met and the first node."""
    groups: dict[str, list[str]] = {}
    for miss in log.misses:
        groups.setdefault(miss.why, []).append(miss.node)
    return tuple(
        f"{nodes[0]}: {why}" if len(nodes) == 1 else f"{nodes[0]} and {len(nodes) - 1} more: {why}"
        for why, nodes in groups.items()
    )


def _judged(verdict: Verdict, numerics: Numerics) -> float:
    return verdict.difference.l2 if numerics.by_norm else verdict.difference.max_rel


def _mismatch(
    pass_: Pass, current: ir.Model, context: Context, check: Checker, verdict: Verdict
) -> WrongRewriteError:
    culprit, numerics = _bisect(pass_, current, context, check, verdict), pass_.numerics.on(current)
    guilty = culprit.rewrite
    place = f" in the rewrite of node {guilty.node!r} (value {guilty.value!r})" if guilty else ""
    sizes = ", ".join(f"{name}={size}" for name, size in (verdict.failed_at or {}).items())
    at = f" at {sizes}" if sizes else ""
    apart = verdict.failure or (
        f"output {verdict.difference.name!r} differs by {_judged(verdict, numerics):.3g}, "
        f"allowed is {verdict.allowed(numerics):.3g}"
    )
    return WrongRewriteError(f"{named(pass_)} changed the result{place}{at}: {apart}.", culprit)


def _bisect(pass_: Pass, current: ir.Model, context: Context, check: Checker, verdict: Verdict) -> Culprit:
    """The first rewrite after which the results differ: prefixes of a pass are found by `limit`.

    It has no place when the whole pass is wrong but no prefix of its single rewrites is (a pass whose end
    result depends on more than them).
    """
    work, numerics = _Work(current, in_place=False), pass_.numerics.on(current)
    rewrites = work.apply(pass_, context, None).rewrites
    right, wrong = current, work.after
    good, bad = 0, len(rewrites)
    while bad - good > 1:
        middle = (good + bad) // 2
        work = _Work(current, in_place=False)
        work.apply(pass_, context, middle)
        found = check(current, work.after, numerics)
        if found.keeps(numerics):
            good, right = middle, work.after
        else:
            bad, wrong, verdict = middle, work.after, found
    rewrite = rewrites[bad - 1] if rewrites else None
    return Culprit(pass_, numerics, rewrite, bad, len(rewrites), right, wrong, verdict)
