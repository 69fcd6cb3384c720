"""ONNX's own node tests, before and after the passes, on onnxruntime with its optimiser off.

Every case goes through the recipe of every target; through each pass alone; and through all ordered pairs of
passes. What a target alone has a kernel for cannot be run here and is counted apart.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.backend.test.case.test_case import TestCase as Case

from burnish.benchmarks.node_suite.cases import COUNT, Variant, cases, name_dims, runnable
from burnish.benchmarks.node_suite.judge import FAILURES, Outcome, Prepared, prepared, run
from burnish.errors import ModelError
from burnish.model import copy_model, to_bytes
from burnish.passes.base import Context, Numerics, Pass, all_graphs, is_op, tensor_of
from burnish.passes.dims import Dim
from burnish.passes.recipes import optimize_recipe
from burnish.passes.registry import PASSES, load_pass
from burnish.passes.shapes import Shapes
from burnish.target import TARGETS, Target

ALL: tuple[Variant, ...] = ("as is", "one frozen", "all frozen", "rest frozen", "named")
RUNNABLE = 1440
"""Cases that onnxruntime runs in every variant; the issue asks for as many."""


def kept_passes() -> list[Pass]:
    """Every registered pass that promises the same numbers and needs nothing but the graph."""
    return [cls() for cls in map(load_pass, PASSES) if cls.numerics is not Numerics.LOSSY]


@dataclasses.dataclass
class Sweep:
    """Outcomes by kind, the failures by case, and the rewrites made."""

    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    failures: dict[str, str] = dataclasses.field(default_factory=dict)
    rewrites: int = 0

    def apply(
        self, name: str, case: Prepared, model: ir.Model, passes: Sequence[Pass],
        target: Target = TARGETS["cpu"], *, tolerance: float = 0.0,
    ) -> bool:  # fmt: skip
        """Judge what the passes make of a model of that case; True where they changed something, rightly.

        `tolerance`: of what has been done to the model before.
        """
        before = to_bytes(model)
        try:
            made = sum(pass_.rewrite(model, Context(target=target)) for pass_ in passes)
            after = to_bytes(model)
        except Exception as error:  # noqa: BLE001 - every exception is a finding, whatever its kind
            self.add(name, case, Outcome("exception", f"{type(error).__name__}: {error}"))
            return False
        self.rewrites += made
        outcome = case.judge(after, max(tolerance, *(each.numerics.tolerance for each in passes)), target)
        if interface(after) != interface(case.model):
            outcome = Outcome("different", "inputs or outputs")
        elif not made and after != before:
            outcome = Outcome("different", "changed without a rewrite")
        self.add(name, case, outcome)
        return made > 0 and outcome.kind == "same"

    def add(self, name: str, case: Prepared, outcome: Outcome) -> None:
        self.counts[outcome.kind] += 1
        if outcome.kind in FAILURES:
            self.failures[f"{case.name} {name}"] = f"{outcome.kind} {outcome.detail}"[:300]


def interface(model: bytes) -> list[bytes]:
    graph = onnx.ModelProto.FromString(model).graph
    return [info.SerializeToString(deterministic=True) for info in (*graph.input, *graph.output)]


def loaded(case: Prepared) -> ir.Model:
    """The model, its constants looked at: onnx-ir names them then, which is no change of a pass."""
    model = ir.from_proto(onnx.ModelProto.FromString(case.model))
    for node in (node for graph in all_graphs(model) for node in graph if is_op(node, "Constant")):
        tensor_of(node.outputs[0])
    return model


def sweep_recipes(chosen: Iterable[Case], variant: Variant) -> dict[str, Sweep]:
    """The default recipe of every target."""
    recipe, sweeps = optimize_recipe(measured=False), {name: Sweep() for name in TARGETS}
    for case in prepared(chosen, variant):
        for name, target in TARGETS.items():
            sweeps[name].apply(name, case, loaded(case), recipe.passes, target)
    return sweeps


def sweep_passes(chosen: Iterable[Case], variant: Variant) -> Sweep:
    """Each pass alone; and behind each that changes something, each other one."""
    sweep, passes = Sweep(), kept_passes()
    for case in prepared(chosen, variant):
        for first in passes:
            model = loaded(case)
            changed = sweep.apply(first.name, case, model, [first])
            for second in passes if changed else ():
                names, tolerance = f"{first.name},{second.name}", first.numerics.tolerance
                sweep.apply(names, case, copy_model(model), [second], tolerance=tolerance)
    return sweep


def size_of(dim: Dim, sizes: Mapping[str, int]) -> int | None:
    """A symbolic size with the names filled in; None when a made-up name is in it."""
    if any(name not in sizes for names, _ in dim.terms for name in names):
        return None
    return sum(number * math.prod(sizes[name] for name in names) for names, number in dim.terms)


def wrong_facts(case: Case) -> list[str]:
    """What the analysis says of outputs and is not so, with every size of an input unknown to it."""
    model, feeds = runnable(case, "as is")
    try:
        actual = run(model.SerializeToString(), feeds)
    except ModelError:
        return []
    sizes = name_dims(model, lambda place, _: place)
    loaded, found = ir.from_proto(model), []
    shapes = Shapes(loaded)
    for value in loaded.graph.outputs:
        array, fact = actual[value.name or ""], shapes[value]
        if not isinstance(array, np.ndarray):
            continue
        checks = [("rank", fact.rank, array.ndim)] if fact.rank is not None else []
        checks += zip_named("dim", fact.shape, array.shape, sizes)
        checks += zip_named("element", fact.content, array.reshape(-1).tolist(), sizes)
        found.extend(f"{value.name} {what}: {said} is {real}" for what, said, real in checks if said != real)
    return found


def zip_named(
    what: str, said: Sequence[Dim] | None, real: Sequence[int], sizes: Mapping[str, int]
) -> list[tuple[str, int | None, int]]:
    pairs = [] if said is None else list(zip(said, real, strict=False))
    known = [(what, size_of(dim, sizes), int(size)) for dim, size in pairs]
    return [each for each in known if each[1] is not None]


def test_these_are_all_cases() -> None:
    assert len(cases()) == COUNT


@pytest.mark.parametrize("step", [12, pytest.param(1, marks=pytest.mark.slow)])
def test_symbolic_shapes_are_true(step: int) -> None:
    chosen = cases()[::step]
    wrong = {case.name: found for case in chosen if (found := wrong_facts(case))}
    assert wrong == {}


@pytest.mark.parametrize("step", [12, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
@pytest.mark.parametrize("variant", ALL)
def test_every_case_is_the_same_after_the_recipe_of_every_target(variant: Variant, step: int) -> None:
    for target, sweep in sweep_recipes(cases()[::step], variant).items():
        assert sweep.failures == {}, target
        assert sweep.counts["same"] + sweep.counts["elsewhere"] >= RUNNABLE // step - 12, sweep.counts
        assert sweep.counts["elsewhere"] == 0, "nothing that only another target runs is written today"
        assert sweep.rewrites >= 4000 // step, sweep.rewrites


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("variant", ["as is", "one frozen", "all frozen"])
def test_every_case_is_the_same_after_each_pass_and_each_pair(variant: Variant) -> None:
    sweep = sweep_passes(cases(), variant)
    assert sweep.failures == {}
    assert sweep.counts["same"] >= RUNNABLE * len(kept_passes()), sweep.counts
    assert sweep.counts.keys() == {"same"}


def test_every_sixtieth_case_is_the_same_after_each_pass_and_each_pair() -> None:
    sweep = sweep_passes(cases()[::60], "all frozen")
    assert sweep.failures == {}
    assert sweep.counts["same"] >= (RUNNABLE // 60 - 5) * len(kept_passes()), sweep.counts
