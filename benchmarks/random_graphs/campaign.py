"""One random graph through all that is asked of it, and many of them."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final, final

import numpy as np
import onnx
import onnx_ir as ir

from burnish.benchmarks.random_graphs import relations
from burnish.benchmarks.random_graphs.examine import (
    Failure,
    Subject,
    apply,
    examine,
    examine_regions,
    find_guilty,
)
from burnish.benchmarks.random_graphs.generate import SIZES, generate
from burnish.benchmarks.random_graphs.oracles import Arrays, Case, cases, onnxruntime
from burnish.benchmarks.random_graphs.shrink import Fails, shrink
from burnish.errors import ModelError
from burnish.model import histogram
from burnish.passes.base import Pass
from burnish.passes.recipe import Recipe
from burnish.passes.recipes import CLEAN_UP, optimize_recipe
from burnish.target import TARGETS, Target

_REGIONS_EVERY: Final = 4
_RELATIONS_EVERY: Final = 4


@final
@dataclasses.dataclass(frozen=True)
class Found:
    """A failure, as small as it could be made."""

    seed: int
    check: str
    """What was asked: the recipe of a target, a comparison at changes, a relation."""
    failure: Failure
    step: str = ""
    """The guilty pass; empty where it is no single one."""
    model: bytes = b""
    feeds: Arrays = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Tally:
    """What was done, counted, and the failures."""

    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    found: list[Found] = dataclasses.field(default_factory=list)
    notes: Counter[str] = dataclasses.field(default_factory=Counter)
    """What is told apart and no failure, with its reason."""


@functools.cache
def recipe() -> tuple[Pass, ...]:
    """The default recipe, nothing timed."""
    return optimize_recipe(measured=False).passes


@functools.cache
def clean_up() -> tuple[Pass, ...]:
    """The passes that promise the very same numbers."""
    return Recipe.parse(CLEAN_UP).passes


def check_seed(seed: int, tally: Tally) -> None:
    """Ask everything of one graph.

    The recipe of the CPU and of another target; the clean-up alone on NaN, infinities and -0.0; of every
    fourth graph comparisons at changes, and relations.
    """
    model = generate(seed).model
    try:
        run = onnxruntime(model)
    except ModelError as error:
        tally.found.append(Found(seed, "generator", Failure("invalid", error.what), model=model))
        return
    subject = Subject(model, cases(run, model, SIZES, seed))
    special = Subject(model, cases(run, model, SIZES[:2], seed, special=True))
    tally.counts.update(graphs=1, cases=len(subject.cases), judged_twice=len(subject.second))
    tally.counts["runs nowhere"] += not subject.cases
    tally.notes["the oracles differ on the graph itself"] += len(subject.disagreements)
    others = [name for name in TARGETS if name != "cpu"]
    for name in ("cpu", others[seed % len(others)]):
        check_recipe(f"recipe for {name}", subject, recipe(), TARGETS[name], seed, tally)
    check_recipe(
        "clean-up on NaN and infinities", special, clean_up(), TARGETS["cpu"], seed, tally, once=True
    )
    tally.notes["a kernel takes no empty batch or sequence"] += len(subject.refused)
    if seed % _REGIONS_EVERY == 0:
        _check_regions(subject, seed, tally)
    if seed % _RELATIONS_EVERY == 1:
        check_relations(model, seed, tally)


def check_recipe(
    check: str, subject: Subject, passes: Sequence[Pass], target: Target, seed: int, tally: Tally,
    *, once: bool = False,
) -> None:  # fmt: skip
    """Judge what passes make of a graph; a failure gets its guilty pass, and is made small.

    `once`: to apply them again need not change nothing.
    """
    tally.counts[check] += 1
    failure = examine(subject, passes, target)
    if failure is None or (once and failure.kind == "twice"):
        return
    guilty = find_guilty(subject, passes, target, failure)
    steps = passes if guilty is None or failure.kind == "twice" else [guilty.step]
    start = subject.model if guilty is None or failure.kind == "twice" else guilty.before
    name = str(guilty.step) if guilty else ""
    model, feeds = _smallest(start, subject.cases, _again(steps, target, failure))
    tally.found.append(Found(seed, check, failure, name, model, feeds))


def _again(steps: Sequence[Pass], target: Target, failure: Failure) -> Fails:
    """True for a model and inputs that fail in that way after those passes."""

    def fails(model: onnx.ModelProto, feeds: Arrays) -> bool:
        content = model.SerializeToString()
        try:
            expected = onnxruntime(content)(feeds)
        except ModelError:
            return False
        subject = Subject(content, [Case(_sizes(model, feeds), feeds, expected)])
        found = examine(subject, steps, target) if subject.cases else None
        return found is not None and found.kind == failure.kind

    return fails


def _sizes(model: onnx.ModelProto, feeds: Arrays) -> dict[str, int]:
    """Of the dynamic dims."""
    return {
        dim.dim_param: feeds[info.name].shape[axis]
        for info in model.graph.input
        for axis, dim in enumerate(info.type.tensor_type.shape.dim)
        if dim.dim_param
    }


def _smallest(model: bytes, known: Sequence[Case], fails: Fails) -> tuple[bytes, Arrays]:
    """The smallest that fails, from the first case that does; the model as it is where none does alone."""
    proto = onnx.ModelProto.FromString(model)
    for case in known:
        if fails(proto, case.feeds):
            small, feeds = shrink(proto, case.feeds, fails)
            return small.SerializeToString(deterministic=True), feeds
    return model, known[0].feeds if known else {}


def _check_regions(subject: Subject, seed: int, tally: Tally) -> None:
    changed, compared, failure = examine_regions(subject, recipe(), TARGETS["cpu"])
    tally.counts.update({"changes by passes": changed, "compared at changes": compared})
    if failure is not None:
        tally.found.append(Found(seed, "comparison at changes", failure, model=subject.model))


def check_relations(model: bytes, seed: int, tally: Tally) -> None:
    """What is put in must vanish; other names and another order must not change what is computed."""
    cpu = TARGETS["cpu"]
    left = _ops(apply(model, recipe(), cpu)[0])
    for relation in relations.RELATIONS:
        changed = relations.insert(model, relation, seed)
        if changed is None:
            continue
        tally.counts[relation] += 1
        stays = sum(_ops(apply(changed, recipe(), cpu)[0]).values()) > sum(left.values())
        why = relations.why_it_stays(relation, model)
        if stays and why:
            tally.notes[f"{relation} stays: {why}"] += 1
        elif stays:
            tally.found.append(
                Found(seed, relation, Failure("different", "it did not vanish"), model=changed)
            )
    for name, change in _ORDERS.items():
        changed = change(model, seed)
        tally.counts[name] += 1
        after = apply(changed, recipe(), cpu)[0]
        subject = Subject(model, cases(onnxruntime(model), model, SIZES, seed))
        wrong = subject.judge(after, 1e-3)
        if wrong is None and _ops(after) != left and name == "other order":
            tally.notes[_FIRST_WRITTEN] += 1
        elif wrong is None and _ops(after) != left:
            wrong = Failure("different", f"other operators are left: {_ops(after)} instead of {left}")
        if wrong is not None:
            tally.found.append(Found(seed, name, wrong, model=changed))


_FIRST_WRITTEN: Final = (
    "another order leaves other operators: of equal sizes, the one that is read first stays"
)
_ORDERS: Final[dict[str, Callable[[bytes, int], bytes]]] = {
    "other names": relations.rename,
    "other order": relations.shuffle,
}


def _ops(model: bytes) -> dict[str, int]:
    return histogram(ir.from_proto(onnx.ModelProto.FromString(model)))


def check_seeds(seeds: Iterable[int]) -> Tally:
    """Ask everything of the graphs of those numbers."""
    tally = Tally()
    for seed in seeds:
        check_seed(seed, tally)
    return tally


def as_npz(feeds: Arrays) -> bytes:
    """The inputs of a failure as the content of an .npz file."""
    import io

    content = io.BytesIO()
    np.savez(content, **dict(feeds))  # type: ignore[arg-type]
    return content.getvalue()
