"""What `burnish calibrate-costs` measures and keeps; times are made up, but for one."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result

from burnish import calibrating, costs
from burnish.calibrating import calibrate_costs, pairs, run_here, summaries
from burnish.calibration_grid import FAMILIES, Family
from burnish.cli import main
from burnish.costs import Cost, CostTable, Ratio, read_table, write_table
from burnish.errors import BurnishError, ModelError, ProviderError, TargetError
from burnish.model import to_bytes
from burnish.passes.base import Context
from burnish.passes.drop_slower import DropSlower
from burnish.runtime.gpu import Gpu
from burnish.runtime.providers import Availability
from burnish.runtime.reference import Reference

REAL_SHIPPED = costs.shipped_path()
ONCE = {(f.op_type, f.inputs, f.outputs, f.opset, str(f.attributes(f.grid[0]))): f for f in FAMILIES}
FEW = tuple(f for f in FAMILIES if f.op_type == "BiasGelu")[:1]


class Clock:
    """Gives ratios in turn, and fails when it is asked once too often."""

    def __init__(self, *ratios: float) -> None:
        self.left, self.asked = list(ratios), 0

    def __call__(self, a: ir.Model, b: ir.Model, feeds: Mapping[str, np.ndarray]) -> Ratio:
        self.asked += 1
        if not self.left:
            raise KeyboardInterrupt
        return Ratio.exactly(self.left.pop(0))


@pytest.mark.parametrize("family", ONCE.values(), ids=lambda f: f"{f.op_type}{f.inputs}{f.outputs}{f.opset}")
def test_what_is_compared_computes_the_same(family: Family) -> None:
    found = list(pairs(family, family.grid[0]))
    assert found
    for form, fused, other in found:
        assert form.size == family.grid[0]
        feeds = family.feeds(family.grid[0])
        before, after = (Reference(to_bytes(model))(feeds) for model in (fused, other))
        for name, array in before.items():
            np.testing.assert_allclose(after[name], array, atol=1e-3, rtol=1e-3)


def test_attention_is_compared_with_the_standard_operator_too() -> None:
    heads = next(f for f in FAMILIES if f.op_type == "MultiHeadAttention")
    forms = [(form.instead, len(list(other.graph))) for form, _, other in pairs(heads, heads.grid[0])]
    assert forms[1] == ("Attention", 1)
    assert forms[0][0] == "MatMul+Softmax+MatMul"


def test_sizes_are_the_centres_of_their_classes() -> None:
    for family in ONCE.values():
        for size in (family.grid[0], family.grid[len(family.grid) // 2]):
            assert {form.size for form, _, _ in pairs(family, size)} == {size}


def test_no_form_is_measured_twice() -> None:
    seen = [form for f in FAMILIES for form, _, _ in pairs(f, f.grid[0])]
    assert len(seen) == len(set(seen))


def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    path, sizes = tmp_path / "costs.json", len(FEW[0].grid)
    with pytest.raises(KeyboardInterrupt):
        calibrate_costs(output=path, measure=Clock(1.0, 2.0), families=FEW)
    kept = read_table(path).runs[0].costs
    assert [cost.ratio.value for cost in kept] == [1.0, 2.0]
    rest = Clock(*[3.0] * (sizes - 2))
    result = calibrate_costs(output=path, measure=rest, families=FEW)
    assert (result.measured, result.known, result.left) == (sizes - 2, 2, 0)
    assert [cost.ratio.value for cost in result.run.costs] == [1.0, 2.0, *[3.0] * (sizes - 2)]
    assert read_table(path).runs == (result.run,)
    nothing = Clock()
    assert calibrate_costs(output=path, measure=nothing, families=FEW).known == sizes
    assert nothing.asked == 0


def test_again_measures_what_is_known(tmp_path: Path) -> None:
    path, sizes = tmp_path / "costs.json", len(FEW[0].grid)
    calibrate_costs(output=path, measure=Clock(*[1.0] * sizes), families=FEW)
    result = calibrate_costs(output=path, measure=Clock(*[4.0] * sizes), families=FEW, again=True)
    assert {cost.ratio.value for cost in result.run.costs} == {4.0}
    assert len(result.run.costs) == sizes


def test_results_are_kept_while_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "costs.json", []
    monkeypatch.setattr(calibrating, "_KEPT_EVERY", -1.0)
    clock = Clock(*[1.0] * len(FEW[0].grid))

    def measure(a: ir.Model, b: ir.Model, feeds: Mapping[str, np.ndarray]) -> Ratio:
        seen.append(sum(len(run.costs) for run in read_table(path).runs))
        return clock(a, b, feeds)

    calibrate_costs(output=path, measure=measure, families=FEW)
    assert seen == list(range(len(FEW[0].grid)))


def test_time_runs_out(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    result = calibrate_costs(output=path, seconds=0.0, measure=Clock(), families=FEW)
    assert (result.measured, result.left) == (0, len(FEW[0].grid))
    assert not path.exists()


def test_what_onnxruntime_does_not_run_is_told(tmp_path: Path) -> None:
    def refuse(*_: object) -> Ratio:
        raise ModelError("It does not load.", "Look at it.")

    result = calibrate_costs(output=tmp_path / "c.json", measure=refuse, families=FEW)
    assert result.failed == ("BiasGelu against Add+Gelu: It does not load.",)
    assert (result.measured, result.left) == (0, 0)


def test_what_cannot_be_measured_is_refused() -> None:
    for target, only in (("cpu", "NoSuchOp"), ("NoSuchTarget", None)):
        with pytest.raises(TargetError, match="NoSuch"):
            calibrate_costs(target, only=only, measure=Clock())


def test_costs_of_a_target_that_is_not_here_cannot_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Availability("cuda", False, "there is no driver", fixes=("install it",))
    monkeypatch.setattr("burnish.runtime.providers.availability", lambda _: absent)
    with pytest.raises(ProviderError, match="there is no driver"):
        calibrate_costs("cuda", measure=Clock())


def test_costs_of_a_gpu_are_for_its_compute_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = (Gpu("A GPU", "9.0", 1 << 36), Gpu("Other", "8.6", 1))
    monkeypatch.setattr("burnish.runtime.gpu.gpus", lambda: devices)
    found = run_here("cuda", threads=2)
    assert (found.machine, found.cpu, found.features) == ("NVIDIA 9.0", "A GPU", ())
    assert run_here("cuda").key == found.key
    assert run_here("cpu", threads=2).machine.endswith("2 threads")


def test_only_operators_that_the_target_has_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("burnish.runtime.providers.availability", lambda n: Availability(n, True, "here"))
    both = {f.op_type: f for f in FAMILIES if f.op_type in ("FusedConv", "BiasGelu")}
    small = [dataclasses.replace(f, grid=f.grid[:1]) for f in both.values()]
    result = calibrate_costs("cuda", output=tmp_path / "c.json", measure=Clock(1.0), families=small)
    assert {cost.form.op for cost in result.run.costs} == {"com.microsoft::BiasGelu"}


def test_a_broken_table_is_refused_before_the_work(tmp_path: Path) -> None:
    path, clock = tmp_path / "costs.json", Clock()
    path.write_text("{")
    with pytest.raises(BurnishError, match=r"costs\.json"):
        calibrate_costs(output=path, measure=clock, families=FEW)
    assert clock.asked == 0


def test_changes_against_the_shipped_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped, sizes = tmp_path / "shipped.json", len(FEW[0].grid)
    forms = [form for size in FEW[0].grid for form, _, _ in pairs(FEW[0], size)]
    ratios = [
        Ratio.exactly(0.5),
        Ratio.exactly(2.0),
        Ratio(1.1, 0.9, 1.3),
        *[Ratio.exactly(0.9)] * (sizes - 3),
    ]
    run = costs.Run("cpu", run_here("cpu").machine, "a CPU", (), run_here("cpu").onnxruntime)
    known = CostTable().with_run(costs.msgspec.structs.replace(
        run, costs=tuple(Cost(form, ratio) for form, ratio in zip(forms, ratios, strict=True))
    ))  # fmt: skip
    write_table(shipped, known)
    monkeypatch.setattr(calibrating, "shipped_path", lambda: shipped)
    result = calibrate_costs(
        output=tmp_path / "c.json", measure=Clock(*[2.0] * 3, *[0.5] * (sizes - 3)), families=FEW
    )
    assert [(change.form, change.shipped.value) for change in result.changed] == [(forms[0], 0.5)]
    (summary,) = summaries(result.run)
    assert (summary.sizes, summary.faster, summary.slower, summary.even) == (sizes, sizes - 3, 3, 0)
    assert (summary.best, summary.worst) == (2.0, 0.5)


def test_threads_are_another_class_of_machines() -> None:
    assert run_here("cpu", 1).machine.endswith(", 1 thread")
    assert run_here("cpu", 4).key != run_here("cpu", 1).key


@pytest.mark.parametrize(
    ("ratios", "kept"),
    [
        ([Ratio(2.0, 1.5, 2.5, 5), Ratio(0.9, 0.8, 1.0, 7)], Ratio(0.9, 0.8, 2.5, 12)),
        ([Ratio(2.0, 1.5, 2.5, 5), Ratio(3.0, 1.2, 4.0, 5)], Ratio(2.0, 1.2, 4.0, 10)),
        ([Ratio(0.9, 0.8, 1.0, 5)], Ratio(0.9, 0.8, 1.0, 5)),
    ],
)
def test_what_comes_out_as_slower_is_measured_twice(
    ratios: list[Ratio], kept: Ratio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, one = list(ratios), dataclasses.replace(FEW[0], grid=FEW[0].grid[:1])
    monkeypatch.setattr("burnish.runtime.timing.compare_speed", lambda *_, **__: left.pop(0))
    result = calibrate_costs(output=tmp_path / "c.json", families=[one])
    assert [cost.ratio for cost in result.run.costs] == [kept]
    assert left == []


def sizes_of(op_type: str) -> int:
    """How many sizes are measured of an operator, in all variants."""
    return sum(len(family.grid) for family in FAMILIES if family.op_type == op_type)


def burnish(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_command_really_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrating, "_BUDGET_S", 0.001)
    path = tmp_path / "folder" / "costs.json"
    arguments = ("calibrate-costs", "--only", "FastGelu", "--threads", 1, "-o", path)
    result = burnish(*arguments, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["path"] == str(path)
    assert told["measured"] == len(told["run"]["costs"]) == sizes_of("FastGelu")
    assert all(cost["ratio"]["rounds"] >= 5 for cost in told["run"]["costs"])
    again = burnish(*arguments)
    assert f"0 measured, {sizes_of('FastGelu')} known before." in again.stdout
    assert "FastGelu" in again.stdout
    assert "onnxruntime" in again.stdout


def test_the_command_stops_in_time(tmp_path: Path) -> None:
    result = burnish("calibrate-costs", "--only", "QuickGelu", "--seconds", 0, "-o", tmp_path / "c.json")
    assert f"{sizes_of('QuickGelu')} sizes left for the next call" in result.stdout


def test_the_command_refuses_in_two_lines(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text('{"version": 9, "runs": []}')
    result = burnish("calibrate-costs", "-o", path)
    assert result.exit_code == 1
    lines = result.stderr.strip().splitlines()
    assert lines[-2].startswith(f"Error: Cannot use the cost table '{path}': its format is 9")
    assert lines[-1] == "Delete the file and run `burnish calibrate-costs` again."


def test_optimize_names_a_broken_table(
    encoder_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "costs.json"
    path.write_text("[]")
    monkeypatch.setattr(costs, "own_path", lambda: path)
    result = burnish("optimize", encoder_path, "-o", tmp_path / "fast.onnx", "--no-measured")
    assert result.exit_code == 1
    assert str(path) in result.stderr


@pytest.mark.parametrize(("value", "op"), [(2.0, "Sum"), (0.5, "SkipLayerNormalization")])
def test_optimize_goes_by_the_users_table(
    value: float, op: str, encoder_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without timing anything; at the typical sizes, or at those that are asked for."""
    form = costs.Form(
        "com.microsoft::SkipLayerNormalization", "Sum+LayerNormalization", "shift, bias", "float32", (64, 8)
    )
    path, run = tmp_path / "costs.json", run_here("cpu")
    cost = Cost(form, Ratio.exactly(value))
    write_table(path, CostTable((costs.msgspec.structs.replace(run, costs=(cost,)),)))
    monkeypatch.setattr(costs, "own_path", lambda: path)
    at = ("--dim", "batch=2", "--dim", "sequence=32")
    output = tmp_path / "fast.onnx"
    result = burnish("optimize", encoder_path, "-o", output, "--no-measured", "--json", *at)
    assert result.exit_code == 0, result.output
    receipts = {receipt["step"]: receipt for receipt in json.loads(result.stdout)["receipts"]}
    assert receipts["drop-slower"].get("rewrites", 0) == int(value > 1)
    assert receipts["drop-slower"]["measured"][0].endswith("by the own cost table")
    model = ir.load(output)
    assert op in [node.op_type for node in model.graph]


def test_the_shipped_table_is_one_of_this_grid() -> None:
    """A change of a form's name would leave its costs behind, unused."""
    known = {(cost.form.op, cost.form.instead, cost.form.variant) for run in read_table(REAL_SHIPPED).runs
             for cost in run.costs}  # fmt: skip
    made = [form for f in FAMILIES for form, _, _ in pairs(f, f.grid[0])]
    assert known
    assert known <= {(form.op, form.instead, form.variant) for form in made}


def test_a_pass_alone_knows_no_table() -> None:
    assert Context().costs is None
    assert DropSlower().margin == costs.MARGIN
