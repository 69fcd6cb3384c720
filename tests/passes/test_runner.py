"""The runner: checked after every pass, wrong rewrites found one by one."""

import dataclasses
from typing import ClassVar, final

import msgspec
import numpy as np
import onnx_ir as ir
import pytest

from burnish.checking import DifferentialChecker
from burnish.errors import MismatchError, PassError, RecipeError
from burnish.manifest import DimRange
from burnish.model import signature
from burnish.passes.base import Context, Numerics, Pass, all_graphs, is_op
from burnish.passes.cleanup.remove_guards import RemoveGuards
from burnish.passes.cleanup.remove_identity import RemoveIdentity
from burnish.passes.recipe import Recipe
from burnish.passes.registry import PASSES, load_pass
from burnish.passes.runner import Outcome, run_recipe
from burnish.testing import check_pass, parse, text_of

CHAIN = """
    g (float[batch, 4] x) => (float[batch, 4] y) {
        a = Relu (x)
        b = Relu (a)
        c = Neg (b)
        d = Relu (c)
        y = Identity (d)
    }
"""


@final
@dataclasses.dataclass(frozen=True)
class ReluToAbs(Pass):
    """Wrong on purpose: right for Relu of what is never negative, wrong elsewhere."""

    name: ClassVar[str] = "relu-to-abs"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    skip_first: bool = True

    def rewrite(self, model: ir.Model, context: Context) -> int:
        found = [n for graph in all_graphs(model) for n in graph if is_op(n, "Relu")]
        count = 0
        for node in found[1 if self.skip_first else 0 :]:
            if not context.permit(node):
                break
            node.op_type = "Abs"
            count += 1
        return count


@final
@dataclasses.dataclass(frozen=True)
class Breaks(Pass):
    """Wrong on purpose: an op that does not exist."""

    name: ClassVar[str] = "breaks"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def rewrite(self, model: ir.Model, context: Context) -> int:
        node = next(n for n in model.graph if is_op(n, "Neg"))
        if not context.permit(node):
            return 0
        node.op_type = "NoSuchOp"
        return 1


def run(*passes: Pass, on_mismatch: str = "refuse", text: str = CHAIN) -> Outcome:
    model = parse(text)
    checker = DifferentialChecker(signature(model))
    return run_recipe(Recipe(passes), model, Context(), checker, on_mismatch=on_mismatch)  # type: ignore[arg-type]


def test_receipts_say_what_was_done_and_how_it_was_checked() -> None:
    outcome = run(RemoveIdentity())
    (receipt,) = outcome.receipts
    assert (receipt.step, receipt.rewrites, receipt.status) == ("remove-identity", 1, "kept")
    assert (receipt.nodes_before, receipt.nodes_after) == (5, 4)
    assert receipt.max_abs_error == 0
    assert {a["batch"] for a in receipt.assignments} == {1, 2, 3, 4}
    assert receipt.seconds is not None


def test_the_given_model_is_left_alone() -> None:
    model = parse(CHAIN)
    before = text_of(model)
    run_recipe(Recipe((RemoveIdentity(),)), model, Context(), DifferentialChecker(signature(model)))
    assert text_of(model) == before


def test_a_model_that_nobody_needs_any_more_is_not_copied() -> None:
    model = parse("g (float[N] x) => (float[N] y) { a = Identity (x)  y = Relu (a) }")
    outcome = run_recipe(Recipe((RemoveIdentity(),)), model, Context(), None, keep=False)
    assert outcome.model is model
    assert [node.op_type for node in model.graph] == ["Relu"]


def test_nothing_to_do_is_unchanged_and_not_compared() -> None:
    receipt = run(RemoveIdentity(), RemoveIdentity()).receipts[1]
    assert (receipt.status, receipt.rewrites, receipt.max_abs_error) == ("unchanged", 0, None)


def test_a_wrong_rewrite_is_refused_and_named() -> None:
    with pytest.raises(MismatchError) as caught:
        run(RemoveIdentity(), ReluToAbs())
    assert caught.value.code == "MISMATCH"
    assert "'relu-to-abs'" in caught.value.what
    assert "value 'y'" in caught.value.what, "of the rewrites of b (right) and d (wrong, now y), the second"
    assert "batch=" in caught.value.what
    assert "--on-mismatch rollback" in caught.value.hint


def test_bisection_finds_the_first_of_many() -> None:
    with pytest.raises(MismatchError, match=r"value 'a'"):
        run(
            ReluToAbs(skip_first=False),
            text="""
                g (float[batch, 4] x) => (float[batch, 4] y) {
                    z = Abs (x)
                    r = Relu (z)
                    a = Relu (x)
                    b = Relu (a)
                    y = Sub (b, r)
                }
            """,
        )


def test_rollback_goes_on_without_the_pass() -> None:
    outcome = run(ReluToAbs(), RemoveIdentity(), on_mismatch="rollback")
    assert [r.status for r in outcome.receipts] == ["rolled-back", "kept"]
    assert "relu-to-abs" in outcome.receipts[0].notes[-1]
    assert outcome.receipts[0].nodes_after == 5
    assert [n.op_type for n in outcome.model.graph] == ["Relu", "Relu", "Neg", "Relu"]


def test_a_model_that_no_longer_loads_is_a_mismatch() -> None:
    with pytest.raises(MismatchError, match=r"the rewritten model fails: .*NoSuchOp"):
        run(Breaks())


# Half a step exactly: 0.005 / 0.01 rounds to 0, and the next float above it to 1.
TIE = """
    g (float[batch, 4] x) => (float[batch, 4] y) <
        float half = {0.005}, float nothing = {0}, float step = {0.01}, int8 zero = {0}
    > {
        n = Mul (x, nothing)
        a = Add (n, half)
        q = QuantizeLinear (a, step, zero)
        d = DequantizeLinear (q, step, zero)
        y = Add (x, d)
    }
"""


@final
@dataclasses.dataclass(frozen=True)
class Nudge(Pass):
    """Changes a constant: by its last bit, as float passes do, or by much."""

    name: ClassVar[str] = "nudge"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    by: float = 1e-7

    def rewrite(self, model: ir.Model, context: Context) -> int:
        node = next(n for n in model.graph if is_op(n, "Add"))
        if not context.permit(node):
            return 0
        half = model.graph.initializers["half"]
        half.const_value = ir.tensor(np.float32(half.const_value.numpy() + self.by), name="half")
        return 1


def test_a_last_bit_that_decides_a_rounding_to_integers_is_no_mismatch() -> None:
    (receipt,) = run(Nudge(), text=TIE).receipts
    assert receipt.numerics == "coarse"
    assert receipt.max_abs_error == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(MismatchError, match=r"differs by .*, allowed is 0.1"):
        run(Nudge(by=1.0), text=TIE)
    with pytest.raises(MismatchError, match=r"allowed is 0.0001"):
        run(Nudge(by=0.05), text=TIE.replace("QuantizeLinear (a, step, zero)", "Identity (a)", 1).replace(
            "DequantizeLinear (q, step, zero)", "Identity (q)", 1))  # fmt: skip


def test_misses_become_notes() -> None:
    @final
    @dataclasses.dataclass(frozen=True)
    class Shy(Pass):
        """Never fires."""

        name: ClassVar[str] = "shy"
        numerics: ClassVar[Numerics] = Numerics.EXACT

        def rewrite(self, model: ir.Model, context: Context) -> int:
            for node in model.graph:
                context.miss(node, "not today")
            return 0

    (receipt,) = run(Shy()).receipts
    assert len(receipt.notes) == 1
    assert receipt.notes[0].endswith("and 4 more: not today")


def test_a_pass_that_found_nothing_is_run_again_only_after_a_rewrite(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []
    rewrite = RemoveGuards.rewrite

    def counted(self: RemoveGuards, model: ir.Model, context: Context) -> int:
        runs.append(self.name)
        return rewrite(self, model, context)

    monkeypatch.setattr(RemoveGuards, "rewrite", counted)
    guard = RemoveGuards()
    text = (
        "g (float[N, 2] x) => (float[N, 2] y) { a = Softmax (x) n = IsNaN (a) "
        "w = Where (n, zero, a) i = Identity (w) y = Relu (i) }"
    )
    recipe = Recipe((guard, guard, RemoveIdentity(), guard, guard))
    model = parse(text, weights={"zero": np.zeros((), np.float32)})
    outcome = run_recipe(recipe, model, Context(), None)
    assert len(runs) == 2
    assert [receipt.status for receipt in outcome.receipts] == ["unchanged"] * 2 + ["kept"] + [
        "unchanged"
    ] * 2
    assert all("'x' may make" in outcome.receipts[place].notes[0] for place in (0, 1, 3, 4))
    assert [len(missed) for missed in outcome.misses] == [1, 1, 0, 1, 1]


def test_an_unknown_way_out_of_a_mismatch_is_refused() -> None:
    with pytest.raises(RecipeError, match="on_mismatch cannot be 'rolback'"):
        run(RemoveIdentity(), on_mismatch="rolback")


def test_sizes_at_which_the_source_fails_are_said() -> None:
    model = parse("""g (float[rows, 1] x) => (float[4, 1] y) {
        shape = Constant <value_ints = [4, 1]> ()
        y = Reshape (x, shape)
    }""")
    interface = msgspec.structs.replace(signature(model), dims={"rows": DimRange(3, 4)})
    checker = DifferentialChecker(interface)
    assert checker(model, model, Numerics.EXACT).assignments == ({"rows": 4},)
    assert checker.notes[0].startswith("not compared at rows=3, where the source fails: ")
    assert checker.notes[-1] == "compared at 1 assignments of the dynamic dims, 4 are meant"


def test_a_full_check_has_no_notes() -> None:
    model = parse(CHAIN)
    checker = DifferentialChecker(signature(model))
    assert len(checker(model, model, Numerics.EXACT).assignments) == 4
    assert checker.notes == ()


def test_lossy_steps_run_on_other_sizes_than_those_of_the_samples_too() -> None:
    model = parse("g (float[batch, 2] x) => (float[batch, 2] y) { y = Neg (x) }")
    fixed = parse("""g (float[batch, 2] x) => (float[batch, 2] y) {
        shape = Constant <value_ints = [5, 2]> ()
        flat = Reshape (x, shape)
        y = Neg (flat)
    }""")
    samples = [{"x": np.ones((5, 2), np.float32)}]
    verdict = DifferentialChecker(signature(model), samples=samples)(model, fixed, Numerics.LOSSY)
    assert verdict.failure.startswith("the rewritten model fails")


def test_lossy_steps_are_judged_on_the_samples() -> None:
    model = parse("g (float[batch, 2] x) => (float[batch, 2] y) { y = Identity (x) }")
    clipped = parse("g (float[batch, 2] x) => (float[batch, 2] y) { y = Relu (x) }")
    samples = [{"x": np.ones((5, 2), np.float32)}]
    verdict = DifferentialChecker(signature(model), samples=samples)(model, clipped, Numerics.LOSSY)
    assert verdict.difference.l2 == 0.0
    assert verdict.failed_at == {"sample 0": 1}


@final
@dataclasses.dataclass(frozen=True)
class Stumbles(Pass):
    """A bug: it fails on every model."""

    name: ClassVar[str] = "stumbles"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def rewrite(self, model: ir.Model, context: Context) -> int:
        raise KeyError("axis")


def test_a_pass_that_fails_is_named() -> None:
    with pytest.raises(PassError, match="Pass 'stumbles' failed: KeyError: 'axis'"):
        run(Stumbles())
    outcome = run(Stumbles(), RemoveIdentity(), on_mismatch="rollback")
    assert [r.status for r in outcome.receipts] == ["rolled-back", "kept"]


LOCAL = """
    <ir_version: 10, opset_import: ["": 20, "local": 1]>
    g (float[N, 4] x, bool c) => (float[N, 4] y) {
        a = local.f (x)
        b = If (c) <
            then_branch = t () => (float[N, 4] u) { i = Identity (a)  u = local.f (i) },
            else_branch = e () => (float[N, 4] v) { w = Relu (a)  v = Identity (w) }
        >
        y = Identity (b)
    }
    <domain: "local", opset_import: ["": 20]>
    f (x) => (y) {
        k = Constant <value_floats = [2.0]> ()
        i = Identity (x)
        m = Mul (i, k)
        n = Mul (i, k)
        y = Add (m, n)
    }
"""


@pytest.mark.parametrize("name", [name for name in PASSES if not name.startswith("quantize")])
def test_every_pass_keeps_functions_and_branches_right(name: str) -> None:
    check_pass(load_pass(name)(), parse(LOCAL), count=COUNTS.get(name, 0))


COUNTS = {
    "inline-functions": 1,
    "remove-identity": 4,
    "fold-constants": 0,
    "eliminate-common-subexpressions": 1,
    "infer-shapes": 0,
}
"""How many rewrites the model with a function and branches gives; 0 where not listed."""
