"""What doctor says of this machine, of others laid out in a folder, and of providers that crash."""

from pathlib import Path

import pytest

from burnish.runtime import doctor, machine, probe
from burnish.runtime.doctor import (
    Report,
    diagnose,
    limit_problems,
    provider_report,
    telemetry,
    wheel_problems,
)
from burnish.runtime.probe import Answer, Request
from burnish.runtime.providers import Availability, availability
from burnish.target import TARGETS


@pytest.fixture(scope="module")
def report() -> Report:
    return diagnose()


def test_every_provider_is_reported(report: Report) -> None:
    assert [found.name for found in report.providers] == list(TARGETS)
    assert report.provider("cpu").works


def test_a_provider_that_is_missing_something_comes_with_a_fix(report: Report) -> None:
    for found in report.providers:
        if found.missing:
            assert found.fixes
            assert all(library in found.why for library in found.missing)


def test_versions_are_those_installed(report: Report) -> None:
    assert {"python", "numpy", "burnish", "onnx"} <= report.versions.keys()
    assert {"onnxruntime", "onnxruntime-gpu"} & report.versions.keys()


def test_threads_and_memory(report: Report) -> None:
    assert 1 <= report.machine.threads.intra_op <= report.machine.threads.logical
    assert report.machine.memory is None or report.machine.memory > 1 << 28


@pytest.mark.parametrize(("value", "state"), [("1", "off"), ("0", "on"), (None, "on"), ("", "on")])
def test_telemetry(value: str | None, state: str) -> None:
    assert telemetry(value).split(":")[0] == state


def test_telemetry_is_off_here(report: Report) -> None:
    assert report.telemetry == "off"


def test_both_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda name: "1.31.1")
    assert "pip uninstall onnxruntime onnxruntime-gpu" in wheel_problems()[0]
    monkeypatch.setattr(doctor, "installed", lambda name: "1.31.1" if name == "onnxruntime" else None)
    assert wheel_problems() == ()


def test_a_crash_in_the_child_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The child is a program that kills itself as a broken provider would."""
    assert fake_child("kill -SEGV $$", monkeypatch, tmp_path) == Answer(False, "crashed with SIGSEGV")


def test_a_hang_in_the_child_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert fake_child("exec sleep 60", monkeypatch, tmp_path, timeout=0.3).why == "no answer within 0.3 s"


def test_a_child_that_fails_shows_its_last_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer = fake_child("echo Traceback >&2; echo ImportError: libfoo >&2; exit 3", monkeypatch, tmp_path)
    assert answer == Answer(False, "failed with status 3: ImportError: libfoo")


def fake_child(script: str, monkeypatch: pytest.MonkeyPatch, folder: Path, timeout: float = 10.0) -> Answer:
    program = folder / "python"
    program.write_text(f"#!/bin/sh\ncat > /dev/null\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    return probe.probe(Request("cpu"), timeout=timeout)


def test_probe_runs_a_model_and_measures_memory(add: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(add)
    answer = probe.probe(Request("cpu", model=str(tmp_path / "m.onnx"), shapes={"n": 4}, threads=1))
    assert answer.ok, answer.why
    assert answer.load_bytes is None or 0 < answer.load_bytes <= (answer.run_bytes or 0)


def test_probe_gives_the_typed_error_in_one_line(tmp_path: Path) -> None:
    answer = probe.probe(Request("cpu", model=str(tmp_path / "none.onnx")))
    assert not answer.ok
    assert "none.onnx" in answer.why


def test_probe_is_not_led_astray_by_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('wrong numpy')")
    monkeypatch.chdir(tmp_path)
    assert probe.probe(Request("cpu")).ok


def test_report_of_a_provider_that_answers_wrongly() -> None:
    found = Availability("cuda", True, "all its libraries load")
    assert provider_report("cuda", Answer(True, "", found)).why == "runs; all its libraries load"
    wrong = provider_report("cuda", Answer(False, "crashed with SIGSEGV"))
    assert (wrong.works, wrong.why) == (False, "crashed with SIGSEGV")


def test_serve_in_this_process_agrees_with_availability() -> None:
    for name in ("cuda", "openvino"):
        found = availability(name)
        if not found.usable:
            assert probe.serve(Request(name)) == Answer(False, found.why, found)


MACHINE = {
    "proc/cpuinfo": "processor : 0\nmodel name\t: Intel(R) Xeon(R) 8481C\n"
    "flags\t\t: fpu avx2 avx512f avx512_vnni amx_int8 amx_bf16\n",
    "proc/meminfo": "MemTotal:        8000000 kB\nMemFree: 1 kB\n",
    "proc/self/status": "Name:\tpython\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n",
    "proc/self/cgroup": "0::/job\n",
    "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
    "sys/fs/cgroup/job/cpu.max": "50000 100000\n",
    "sys/fs/cgroup/job/memory.max": "1073741824\n",
}


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    for name, text in MACHINE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_another_machine(elsewhere: Path) -> None:
    found = machine.machine(elsewhere)
    assert found.cpu == "Intel(R) Xeon(R) 8481C"
    assert found.features == ("AVX2", "AVX512", "AVX512-VNNI", "AMX-INT8", "AMX-BF16")
    assert (found.memory, found.memory_limit) == (8_000_000 * 1024, 1 << 30)
    assert (found.threads.intra_op, found.threads.quota) == (1, 0.5)
    assert machine.rss(elsewhere) == 1 << 20
    assert machine.peak_rss(elsewhere) == 2 << 20


def test_a_tight_quota_is_a_problem(elsewhere: Path) -> None:
    assert "OMP_NUM_THREADS=1" in limit_problems(machine.machine(elsewhere))[0]


def test_a_machine_without_proc(tmp_path: Path) -> None:
    found = machine.machine(tmp_path)
    assert found.features == ()
    assert found.memory_limit is None
    assert machine.rss(tmp_path) is None
