"""The generator, the judges, the shrinker, and the command."""

import dataclasses
import itertools
import json
import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from burnish.benchmarks.optimize.children import Ended
from burnish.benchmarks.random_graphs import block, campaign
from burnish.benchmarks.random_graphs.__main__ import main
from burnish.benchmarks.random_graphs.campaign import Tally, check_recipe, check_seeds
from burnish.benchmarks.random_graphs.examine import Subject, examine, examine_regions
from burnish.benchmarks.random_graphs.generate import SIZES, generate
from burnish.benchmarks.random_graphs.oracles import cases, evaluator, onnxruntime
from burnish.benchmarks.random_graphs.relations import insert
from burnish.benchmarks.random_graphs.shrink import prune, read_by
from burnish.model import to_bytes
from burnish.passes.base import Context, Numerics, Pass, all_graphs
from burnish.target import TARGETS
from burnish.testing import parse


@dataclasses.dataclass(frozen=True)
class Wrong(Pass):
    """Makes every op of one kind another."""

    name: ClassVar[str] = "wrong"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    old: str = "Tanh"
    new: str = "Sigmoid"

    def rewrite(self, model: ir.Model, context: Context) -> int:
        nodes = [node for graph in all_graphs(model) for node in graph if node.op_type == self.old]
        for node in nodes:
            context.permit(node)
            node.op_type = self.new
        return len(nodes)


class Raises(Wrong):
    def rewrite(self, model: ir.Model, context: Context) -> int:
        raise ZeroDivisionError


TEXT = """
    g (float[b, s, 4] x, float[b, s, 4] y) => (float[b, s, 4] z, float[b, s, 4] w) {
        a = Add (x, y)
        m = Mul (a, a)
        t = Tanh (m)
        n = Neg (t)
        z = Exp (n)
        w = Abs (a)
    }
"""


def subject(model: bytes) -> Subject:
    return Subject(model, cases(onnxruntime(model), model, SIZES, 0))


def test_a_seed_is_a_graph() -> None:
    assert generate(5).model == generate(5).model
    assert generate(5).model != generate(6).model


def test_graphs_are_valid_mixed_and_of_the_size_that_is_wanted() -> None:
    ops, sizes, types, opsets = Counter[str](), [], set(), Counter[int]()
    for seed in (1194, *range(150)):  # of the first, all that was begun did not fit
        proto = generate(seed).proto()
        onnx.checker.check_model(proto, full_check=True)
        ops.update(node.op_type for node in proto.graph.node)
        opsets[proto.opset_import[0].version] += 1
        sizes.append(len(proto.graph.node))
        assert proto.graph.output
        types |= {info.type.tensor_type.elem_type for info in proto.graph.input}
        assert {info.name for info in proto.graph.input} <= read_by(proto.graph.node)
    assert min(sizes) >= 3
    assert np.quantile(sizes, 0.9) <= 30
    assert len(ops) > 50
    assert opsets.keys() == set(range(11, 25))
    assert opsets[11] + opsets[12] >= 15
    assert {"If", "Loop", "Scan", "Conv", "Softmax", "LayerNormalization"} <= ops.keys()
    assert {"Where", "Split", "Erf"} <= ops.keys()
    assert len(types) == 4


def test_axes_are_attributes_before_opset_13() -> None:
    """Of what a graph computes there, and of what is put in."""
    seen = Counter[str]()
    for seed in range(150):
        graph = generate(seed)
        if graph.proto().opset_import[0].version >= 13:
            continue
        for model in (graph.model, insert(graph.model, "Unsqueeze and Squeeze", seed)):
            assert model is not None
            onnx.checker.check_model(model, full_check=True)
            nodes = onnx.ModelProto.FromString(model).graph.node
            seen.update(node.op_type for node in nodes if len(node.input) == 1 and node.attribute)
    assert {"Squeeze", "Unsqueeze", "Split", "ReduceSum"} <= seen.keys()


def test_a_right_pass_is_right() -> None:
    assert examine(subject(to_bytes(parse(TEXT))), [Wrong("Sin", "Cos")], TARGETS["cpu"]) is None


def test_a_wrong_pass_is_named_and_its_model_made_small() -> None:
    tally = Tally()
    passes = [Wrong("Sin", "Cos"), Wrong(), Wrong("Cosh", "Sinh")]
    check_recipe("made up", subject(to_bytes(parse(TEXT))), passes, TARGETS["cpu"], 0, tally)
    (found,) = tally.found
    assert found.failure.kind == "different"
    assert found.step == "wrong"
    small = onnx.ModelProto.FromString(found.model).graph
    assert [node.op_type for node in small.node] == ["Tanh"]
    assert [output.name for output in small.output] == ["t"]
    assert {name: array.size for name, array in found.feeds.items()} == {"m": 4}


def test_an_input_with_a_default_needs_no_value_to_be_pruned() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["": 20]>
        g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { y = Add (x, w) }
    """)
    small, feeds = prune(model, {"x": np.ones(2, np.float32)})
    assert [info.name for info in small.graph.input] == ["x", "w"]
    assert feeds.keys() == {"x"}


def test_an_invalid_model_and_an_exception_are_failures() -> None:
    def kind(pass_: Pass) -> str:
        found = examine(subject(to_bytes(parse(TEXT))), [pass_], TARGETS["cpu"])
        return "" if found is None else found.kind

    class Doubles(Wrong):
        def rewrite(self, model: ir.Model, context: Context) -> int:
            model.doc_string = f"{model.doc_string}again"
            return 1

    assert kind(Wrong("Tanh", "NoSuchOp")) == "invalid"
    assert kind(Raises()) == "exception"
    assert kind(Doubles()) == "twice"


def test_an_exception_where_changes_are_compared_is_a_failure_too() -> None:
    changed, compared, found = examine_regions(subject(to_bytes(parse(TEXT))), [Raises()], TARGETS["cpu"])
    assert (changed, compared) == (0, 0)
    assert found is not None
    assert found.kind == "exception"


def test_two_oracles_that_differ_judge_nothing() -> None:
    model = to_bytes(parse(TEXT))
    known = cases(onnxruntime(model), model, SIZES, 0)
    off = [dataclasses.replace(known[0], expected={**known[0].expected, "z": known[0].expected["z"] + 1})]
    judged = Subject(model, [*off, *known[1:]])
    assert len(judged.disagreements) == 1
    assert len(judged.cases) == len(judged.second) == len(known) - 1
    assert evaluator(model)(known[0].feeds).keys() == {"z", "w"}


def in_this_process(command: Sequence[str], *, limit_s: float) -> Ended:
    folder, *seeds = command[command.index(block.__name__) + 1 :]
    done = [block.check_one(int(seed), Path(folder)) for seed in seeds]
    return Ended("\n".join(msgspec.json.encode(each).decode() for each in done), "")


def test_a_graph_that_ends_the_process_is_named_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the source the process dies by itself at 5, with burnish's result alone at 6."""

    def dying(command: Sequence[str], *, limit_s: float) -> Ended:
        folder, *seeds = command[command.index(block.__name__) + 1 :]
        if folder == "--source":
            return Ended("", "killed by SIGFPE" if seeds == ["5"] else "")
        lived = list(itertools.takewhile(lambda seed: seed not in "56", seeds))
        ended = in_this_process([*command[: -len(seeds)], *lived], limit_s=limit_s)
        return ended._replace(failure="" if lived == seeds else "killed by SIGFPE")

    monkeypatch.setattr(block, "run", dying)
    monkeypatch.setattr(campaign, "recipe", lambda: ())
    result = CliRunner().invoke(main, ["--first", "4", "--count", "4", "--output", str(tmp_path)])
    assert result.exit_code == 1, result.output
    (done,) = (tmp_path / "done").iterdir()
    found = msgspec.json.decode(done.read_bytes(), type=block.Done)
    assert found.seeds == [4, 5, 6, 7]
    assert found.counts["graphs"] == 4
    assert "graph 5 itself ends onnxruntime's process: killed by SIGFPE" in found.notes
    (failure,) = found.failures
    assert (failure["seed"], failure["kind"], failure["detail"]) == (6, "crash", "killed by SIGFPE")
    assert Path(failure["model"]).read_bytes() == generate(6).model


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="its division alone traps")
def test_a_process_that_dies_is_told_from_one_that_does_not(tmp_path: Path) -> None:
    """Graph 23162 takes the remainder of the largest of nothing: onnxruntime divides the lowest by -1."""
    done = block.check_block([23162, 2], tmp_path)
    assert done.seeds == [23162, 2]
    assert done.failures == []
    assert any(note.startswith("graph 23162 itself ends") for note in done.notes)


def test_the_command_keeps_failures_and_does_not_do_a_block_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign, "recipe", lambda: (Wrong("Add", "Sub"),))
    monkeypatch.setattr(block, "run", in_this_process)
    run = ["--first", "4", "--count", "3", "--output", str(tmp_path)]
    first = CliRunner().invoke(main, run)
    assert first.exit_code == 1, first.output
    (done,) = (tmp_path / "done").iterdir()
    failures = json.loads(done.read_text())["failures"]
    assert failures
    assert all(Path(each["model"]).exists() for each in failures)
    assert {each["pass"] for each in failures if each["check"].startswith("recipe")} == {
        "wrong{old=Add,new=Sub}"
    }
    with monkeypatch.context() as patch:
        patch.setattr("burnish.benchmarks.random_graphs.__main__.check_block", None)
        again = CliRunner().invoke(main, run)
    assert again.output.splitlines()[-1] == first.output.splitlines()[-1]


def test_a_kernel_that_errs_on_empty_tensors_is_no_failure_of_a_pass() -> None:
    def model(axes: str, last: str) -> bytes:
        nodes = f"m = ReduceMax <keepdims = 0> (x, axes)  y = {last} (m)"
        weights = f"<int64[2] axes = {{{axes}}}>"
        head = '<ir_version: 10, opset_import: ["": 23]> g (float[b, 1, 9] x) => (float[b] y)'
        return to_bytes(parse(f"{head} {weights} {{ {nodes} }}"))

    judged = subject(model("2, 1", "Identity"))
    assert 0 in {case.sizes["b"] for case in judged.cases}
    assert judged.judge(model("-1, 1", "Identity"), 0.0) is None
    assert judged.refused == ["a kernel gives another shape for empty tensors"]
    assert judged.judge(model("-1, 1", "Neg"), 0.0) is not None


@pytest.mark.parametrize(
    "seed",
    [
        722,  # a ReduceSum of axis -2 behind a BiasGelu, which the evaluator cannot run
        55320,  # a ReduceMax of axis -1 whose result does not fit the Min behind it
    ],
)
def test_so_does_one_that_cannot_be_compared(seed: int) -> None:
    tally = check_seeds([seed])
    assert tally.found == []
    assert tally.notes["a kernel takes no empty batch or sequence"] > 0
