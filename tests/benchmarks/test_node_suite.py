"""The node suite as a comparison of tools: processes that crash, judging, and the report."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx.backend.test.case.test_case import TestCase as Case

from burnish.benchmarks.node_suite import __main__ as command
from burnish.benchmarks.node_suite import serving
from burnish.benchmarks.node_suite.cases import cases, runnable
from burnish.benchmarks.node_suite.child import Child, CrashError
from burnish.benchmarks.node_suite.judge import prepare, same
from burnish.benchmarks.node_suite.report import Row, markdown
from burnish.target import TARGETS
from burnish.testing import parse


def add() -> Case:
    """A sum of two inputs [3, 4, 5]."""
    return next(case for case in cases() if case.name == "test_add")


TOOL = f"""
import os, sys
sys.path.insert(0, {str(Path(serving.__file__).parent)!r})
import serving

def make(request):
    if b"die" in request:
        os.kill(os.getpid(), 11)
    if b"hang" in request:
        sys.stdin.buffer.read()
    print("noise")
    return request.upper()

requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
while (request := serving.receive(requests)) is not None:
    serving.send(answers, make(request))
"""


def test_a_process_is_started_again_after_a_crash() -> None:
    with Child([sys.executable, "-c", TOOL]) as child:
        assert child.ask(b"one") == b"ONE"
        with pytest.raises(CrashError, match="SIGSEGV"):
            child.ask(b"die")
        assert child.ask(b"x" * 300_000) == b"X" * 300_000


def test_a_process_that_says_nothing_is_a_crash() -> None:
    with Child([sys.executable, "-c", TOOL], limit_s=1.0) as child:
        child.ask(b"one")
        with pytest.raises(CrashError, match="no answer in 1 s"):
            child.ask(b"hang")
        assert child.ask(b"two") == b"TWO"


def test_frozen_inputs_are_initializers() -> None:
    def inputs(variant: str) -> tuple[list[str], list[str], list[str]]:
        model, feeds = runnable(add(), variant)  # type: ignore[arg-type]
        graph = model.graph
        return [i.name for i in graph.input], [t.name for t in graph.initializer], list(feeds)

    assert inputs("as is") == (["x", "y"], [], ["x", "y"])
    assert inputs("one frozen") == (["x"], ["y"], ["x"])
    assert inputs("all frozen") == ([], ["x", "y"], [])
    assert runnable(add(), "named")[0].graph.input[0].type.tensor_type.shape.dim[0].dim_param == "n3"


def test_what_an_optimiser_made_is_judged() -> None:
    found = prepare(add(), "as is")
    assert found is not None
    proto = onnx.ModelProto.FromString(found.model)
    assert found.judge(found.model, 0.0).kind == "same"
    proto.graph.node[0].op_type = "Sub"
    assert found.judge(proto.SerializeToString(), 0.0).kind == "different"
    proto.graph.node[0].op_type = "Nothing"
    assert found.judge(proto.SerializeToString(), 0.0).kind == "invalid"
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "GroupNorm", "com.microsoft"
    proto.opset_import.add(domain="com.microsoft", version=1)
    broken = proto.SerializeToString()
    assert found.judge(broken, 0.0).kind == "invalid"
    assert found.judge(broken, 0.0, TARGETS["cuda"]).kind == "elsewhere"  # CUDA alone has a GroupNorm


def test_sequences_and_absent_values_are_compared() -> None:
    a = [np.ones(2), np.zeros(1)]
    assert same(a, [np.ones(2), np.zeros(1)], 0.0)
    assert not same(a, a[:1], 0.0)
    assert not same(a, np.ones(2), 0.0)
    assert same(None, None, 0.0)
    assert not same(None, np.ones(2), 0.0)


def test_steps_of_the_type_are_allowed() -> None:
    one, next_to_it = np.ones(3, np.float16), np.full(3, 1.001, np.float16)
    assert not same(one, next_to_it, 1e-4)
    assert same(one, next_to_it, 1e-4, steps=2)
    assert not same(one.astype("f4"), next_to_it.astype("f4"), 1e-4, steps=2)
    assert same(np.arange(3), np.arange(3), 0.0, steps=2)
    assert not same(np.arange(3), np.arange(1, 4), 0.0, steps=2)


def test_a_tool_that_raises_answers_with_the_exception() -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = Neg (x) }")
    content = serving._answer(lambda proto: proto, onnx_bytes(model))
    assert content[:1] == serving.MADE
    failed = serving._answer(lambda proto: 1 / 0, onnx_bytes(model))
    assert failed == serving.FAILED + b"ZeroDivisionError: division by zero"


def onnx_bytes(model: object) -> bytes:
    from burnish.model import to_bytes

    return to_bytes(model)  # type: ignore[arg-type]


def test_the_report_counts_and_shows_failures() -> None:
    row = Row("onnxslim", "0.1", "as is")
    row.add("test_a", "same", "")
    row.add("test_b", "crash", "SIGSEGV")
    for number in range(11):
        row.add(f"test_c{number:02}", "invalid", "it does\nnot load")
    text = markdown([row], {"onnx": "1.23.2"})
    assert "| onnxslim 0.1 | as is | 13 | 1 | 0 | 11 | 0 | 1 |" in text
    assert "- `test_b`: crash: SIGSEGV" in text
    assert "- `test_c00`: invalid: it does not load" in text
    assert "- and 2 more, in node_suite.json" in text


@pytest.mark.timeout(120)
def test_the_command_runs_burnish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "VARIANTS", ("all frozen",))
    done = CliRunner().invoke(command.main, ["--step", "300", "--results", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "different 0, invalid 0, exception 0, crash 0" in done.output.replace("\n", " ")
    assert (tmp_path / "node_suite.md").read_text().startswith("# ONNX's node tests")
    assert (tmp_path / "node_suite.json").exists()
