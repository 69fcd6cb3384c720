"""burnish beside other optimisers: what a failing tool does to the table, resuming, and the table itself."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from burnish.benchmarks.optimize import __main__ as command
from burnish.benchmarks.optimize import children, judge, stopwatch
from burnish.benchmarks.optimize.compare import Settings, compare
from burnish.benchmarks.optimize.making import MakingError, file_bytes, made, sizes_of
from burnish.benchmarks.optimize.rows import SOURCE, Result, Row, keep, read_results
from burnish.benchmarks.optimize.table import SUBJECTS, Export, File, FromKit, Network, Subject, chosen
from burnish.benchmarks.optimize.tools import ALONE, OURS, PEERS
from burnish.runtime.profiling import OpTime, Profile

_TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[batch, 4] x) => (float[batch, 4] y)
<float[4] bias = {1.0, 2.0, 3.0, 4.0}>
{
    same = Identity (x)
    moved = Add (same, bias)
    y = Relu (moved)
}
"""
_OTHER = _TEXT.replace("moved = Add", "moved = Sub")
_INVALID = _TEXT.replace("Relu (moved)", "com.nobody.Relu (moved)").replace("20]", '20, "com.nobody" : 1]')

# What a peer may do: die, complain, die silently, write nothing, something wrong, something invalid.
_PEER = """#!/bin/bash
case "$2" in
  onnxsim) kill -SEGV $$ ;;
  OnnxSlim) echo "IndexError: list index out of range" >&2; exit 1 ;;
  onnxoptimizer) exit 9 ;;
  onnxscript) echo '{"seconds": 1.0, "peak_mb": 10}' ;;
  "onnxruntime EXTENDED") cp HERE/other.onnx "$4"; echo noise; echo '{"seconds": 1.0, "peak_mb": 10}' ;;
  *) cp HERE/invalid.onnx "$4"; echo '{"seconds": 1.0, "peak_mb": 10}' ;;
esac
"""


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("models")
    for name, text in (("one", _TEXT), ("other", _OTHER), ("invalid", _INVALID)):
        onnx.save(onnx.parser.parse_model(text), folder / f"{name}.onnx")
    return Subject("one", "other", File(folder / "one.onnx"))


@pytest.fixture(scope="module")
def settings(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    assert isinstance(subject.origin, File)
    folder = tmp_path_factory.mktemp("peers")
    python = folder / "python"
    python.write_text(_PEER.replace("HERE", str(subject.origin.path.parent)))
    python.chmod(python.stat().st_mode | stat.S_IEXEC)
    return Settings(folder / "output", python, limit_s=60, seconds=0.2)


@pytest.fixture(scope="module")
def result(subject: Subject, settings: Settings) -> Result:
    return compare(subject, settings)


def test_a_peer_that_fails_is_a_row(result: Result) -> None:
    failures = {row.tool: row.failure for row in result.rows if row.tool in PEERS}
    assert failures["onnxsim"] == "killed by SIGSEGV"
    assert failures["OnnxSlim"] == "IndexError: list index out of range"
    assert failures["onnxoptimizer"] == "exit status 9"
    assert failures["onnxscript"] == "wrote no model"
    assert failures["onnxruntime EXTENDED"].startswith("differs at y (batch=")
    assert "com.nobody" in failures["onnxruntime Python"]


def test_what_failed_is_neither_right_nor_timed(result: Result) -> None:
    rows = {row.tool: row for row in result.rows}
    assert not any(rows[tool].right or rows[tool].min_ms for tool in PEERS)
    assert (rows["onnxruntime EXTENDED"].valid, rows["onnxruntime Python"].valid) == (True, False)
    assert rows["onnxruntime EXTENDED"].nodes == 3


def test_burnish_is_judged_and_timed_in_three_ways(result: Result) -> None:
    rows = {row.tool: row for row in result.rows}
    assert (rows[SOURCE].nodes, result.compared, result.sizes) == (3, 4, {"batch": 1})
    for tool in OURS:
        row = rows[tool]
        assert (row.right, row.nodes, row.failure) == (True, 2, "")
        assert row.seconds
        assert row.peak_mb
        assert (row.min_ms is None) == (tool == ALONE)
    assert rows[SOURCE].speedup == 1.0
    assert result.products == 0  # it multiplies nothing


def test_nothing_of_the_results_stays(result: Result, settings: Settings) -> None:
    assert not result.failure
    assert list((settings.output / "work").iterdir()) == []


def test_a_crash_of_the_judge_costs_the_one_result_at_fault(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(subject.origin, File)
    rows = {name: Row(name) for name in ("a", "b", "c")}
    line = '{{"path": "{0}", "nodes": 1, "valid": true, "equal": true, "compared": 4}}'
    script = f"""
        for path in "$@"; do
          case "$path" in *b) kill -ABRT $$ ;; *) echo '{line.format("PATH")}' | sed "s:PATH:$path:" ;; esac
        done"""
    monkeypatch.setattr(judge, "module", lambda _, *paths: ["bash", "-c", script, *paths])
    paths = {name: Path("/made") / name for name in rows}
    assert judge.judge_all(subject.origin.path, paths, rows, limit_s=10) == 4
    assert [rows[name].right for name in "abc"] == [True, False, True]
    assert rows["b"].failure == "judging it: killed by SIGABRT"


def test_what_cannot_be_timed_is_found_among_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = '{"min_ms":1,"median_ms":1,"p50_ms":1,"p90_ms":1,"p99_ms":1,"mean_ms":1,"n":5,"warmup":1}'
    times = f'{{"sizes": {{"batch": 1}}, "timed": {{"source": {fast}, "TOOL": {fast}}}, "failed": {{}},'
    times += ' "products": 0.5}'
    script = f"""case "$0" in *bad*) exit 7 ;; *good*) echo '{times.replace("TOOL", "good")}' ;; esac"""
    monkeypatch.setattr(stopwatch, "module", lambda _, text: ["bash", "-c", script, text])
    rows = {name: Row(name) for name in (SOURCE, "good", "bad")}
    paths = {name: Path(name) for name in rows}
    result = Result("model", "other", size=1, rows=list(rows.values()))
    stopwatch.time_all(paths, result, sizes={}, seconds=1.0, limit_s=10)
    assert (result.sizes, result.products) == ({"batch": 1}, 0.5)
    assert (rows["good"].speedup, rows["bad"].failure) == (1.0, "not timed: exit status 7")


def test_the_share_of_products_is_of_the_whole_run() -> None:
    ops = [
        OpTime(op, "CPU", 1, ms, 0.0) for op, ms in (("FusedMatMul", 3.0), ("Conv", 1.0), ("Softmax", 2.0))
    ]
    assert stopwatch._share_of_products(Profile(1, 8.0, tuple(ops), ())) == 0.5


def test_sessions_that_do_not_fit_together_are_timed_in_groups_with_the_source() -> None:
    assert stopwatch._groups(["a", "b", "c", "d", "e"], 3) == [["a", "d"], ["b", "e"], ["c"]]
    assert stopwatch._groups(["a", "b"], 9) == [["a", "b"]]
    assert stopwatch._groups(["a", "b"], 2) == [["a"], ["b"]]


def test_what_is_done_is_not_done_again(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(subject.origin, File)
    asked: list[str] = []

    def compared(given: Subject, settings: Settings, _tell: object) -> Result:
        asked.append(given.name)
        return Result(given.name, given.family, rows=[Row(tool) for tool in settings.tools])

    monkeypatch.setattr(command, "compare", compared)
    arguments = [str(subject.origin.path), "--output", str(tmp_path)]
    for options, calls in (([], 1), ([], 1), (["--force"], 2), (["--peers", sys.executable], 3)):
        done = CliRunner().invoke(command.main, [*arguments, *options])
        assert done.exit_code == 0, done.output
        assert len(asked) == calls
    assert (tmp_path / "optimize.md").exists()
    assert len(read_results(tmp_path / "rows.jsonl")) == 1


def test_the_last_line_of_a_model_counts_and_a_cut_one_is_none(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    keep(Result("a", "other"), path)
    with path.open("ab") as file:
        file.write(b'{"model":"b","fam')
    keep(Result("a", "other", failure="later"), path)
    assert {name: result.failure for name, result in read_results(path).items()} == {"a": "later"}


def test_a_model_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    absent = Subject("no-such", "other", Network("nothing"))
    with pytest.raises(MakingError, match="not exported: KeyError: 'no-such'"):
        made(absent, tmp_path, limit_s=60)
    assert list(tmp_path.iterdir()) == []
    assert compare(absent, Settings(tmp_path)).failure.startswith("not exported")


def test_dims_that_torch_named_anew_get_the_sizes_that_were_meant(tmp_path: Path) -> None:
    subject = Subject("whisper", "transformer", Network("whisper"), sizes={"sequence": 16})
    source = tmp_path / "model.onnx"
    assert sizes_of(subject, source) == {"sequence": 16}
    (tmp_path / "dims.json").write_text('{"s6": "batch", "s28": "sequence", "batch": "batch"}')
    assert sizes_of(subject, source) == {"s6": 1, "s28": 16}


def test_a_models_bytes_are_those_of_its_data_too(tmp_path: Path) -> None:
    for name, size in (("m.onnx", 3), ("m.onnx.data", 5), ("n.onnx", 7)):
        (tmp_path / name).write_bytes(bytes(size))
    assert file_bytes(tmp_path / "m.onnx") == 8


def test_a_process_is_killed_with_what_it_started() -> None:
    ended = children.run(["bash", "-c", "echo begun; sleep 600 & sleep 600"], limit_s=1)
    assert (ended.said, ended.failure) == ("begun\n", "no result in 1 s")


def test_of_a_traceback_the_line_that_names_the_error_is_kept() -> None:
    code = "raise SystemError('No kernel for Foo.\\nInstall something else.')"
    assert children.run([sys.executable, "-c", code], limit_s=30).failure == "SystemError: No kernel for Foo."


def test_the_table_is_of_forty_models_and_more() -> None:
    exports = {each.origin.kind for each in SUBJECTS.values() if isinstance(each.origin, Export)}
    assert len(SUBJECTS) >= 40
    assert len(exports) >= 28
    assert sum(isinstance(each.origin, FromKit) for each in SUBJECTS.values()) >= 8
    assert [each.name for each in chosen(["minilm-*"])] == list(filter(lambda n: n[:6] == "minilm", SUBJECTS))


def test_members_of_the_kit_exist() -> None:
    from burnish.benchmarks.kit import KIT

    for each in SUBJECTS.values():
        if isinstance(each.origin, FromKit):
            assert each.origin.member in KIT[each.origin.package].members


@pytest.mark.torch
@pytest.mark.parametrize("name", [n for n, each in SUBJECTS.items() if isinstance(each.origin, Export)])
def test_configurations_exist_and_are_of_real_size(name: str) -> None:
    import torch

    from burnish.benchmarks.export.zoo import Architecture, configure
    from burnish.exporter.quiet import quiet
    from burnish.exporter.tasks import TASKS, loader_of

    origin = SUBJECTS[name].origin
    assert isinstance(origin, Export)
    config = configure(Architecture(origin.kind, origin.task, origin.fields))
    known = config.to_dict() | dict(config.attribute_map)
    assert set(origin.fields) <= set(known), "a field that the configuration does not have"
    config.architectures = []
    with quiet(), torch.device("meta"):
        model = loader_of(TASKS[origin.task], {"model_type": origin.kind}).from_config(config)
    assert 2e6 < sum(weight.numel() for weight in model.parameters()) < 2e8


@pytest.mark.torch
def test_hand_made_networks_run() -> None:
    from burnish.benchmarks.optimize import networks

    for build in (networks.tagger, networks.encoder, networks.unet):
        case = build()
        assert case.module.eval()(**case.inputs).shape[0] == 2
