"""The cost table: what decides, what is kept, and what is said of a broken file."""

from pathlib import Path

import pytest

from burnish import costs as module
from burnish.costs import (
    Cost,
    Costs,
    CostTable,
    CostTableError,
    Form,
    Known,
    Ratio,
    Run,
    load_costs,
    machine_class,
    own_path,
    read_table,
    release,
    shipped_path,
    write_table,
)
from burnish.errors import OutputError


def form(op: str = "com.microsoft::BiasGelu", *size: int) -> Form:
    return Form(op, "Add+Gelu", "", "float32", size or (64,))


def run(*costs: Cost, machine: str = "x86_64 AVX2, 1 thread", onnxruntime: str = "1.31.1") -> Run:
    return Run("cpu", machine, "a CPU", ("AVX2",), onnxruntime, costs)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.06, 3.0, True), (1.05, 3.0, None), (0.9, 1.2, None), (0.9, 1.05, False), (0.2, 0.5, False),
    ],
)  # fmt: skip
def test_a_ratio_decides_only_beyond_noise(low: float, high: float, expected: bool | None) -> None:
    assert Ratio((low + high) / 2, low, high).exceeds(1.05) is expected
    known = Costs({form(): Known(Ratio(1.0, low, high), "own")})
    assert known.prefers_other(form()) is expected


def test_what_is_not_known_is_not_preferred() -> None:
    known = Costs({form(): Known(Ratio.exactly(2.0), "own")})
    assert known.prefers_other(form("com.microsoft::BiasGelu", 256)) is None
    assert known.prefers_other(None) is None
    assert known.prefers_other(form(), margin=2.5) is False


def test_a_table_is_written_and_read(tmp_path: Path) -> None:
    path, table = (
        tmp_path / "costs.json",
        CostTable((run(Cost(form(), Ratio(1.5, 1.2, 1.7, 9))), run(machine="m"))),
    )
    write_table(path, table)
    assert read_table(path) == table
    assert len(path.read_text().splitlines()) == 5
    first = path.read_bytes()
    write_table(path, read_table(path))
    assert path.read_bytes() == first


def test_no_file_is_an_empty_table(tmp_path: Path) -> None:
    assert read_table(tmp_path / "costs.json") == CostTable()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "truncated"), (b"\xff\xfe", "malformed"), (b'{"runs": [{"target": 3}]}', "target"),
        (b'{"version": 2, "runs": []}', "its format is 2"),
        (b'{"runs": [{"target": "cpu"}]}', "machine"),
    ],
)  # fmt: skip
def test_a_broken_file_is_named(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "costs.json"
    path.write_bytes(content)
    with pytest.raises(CostTableError) as caught:
        read_table(path)
    assert caught.value.code == "COSTS_INVALID"
    assert str(path) in caught.value.what
    assert why in caught.value.what
    assert "calibrate-costs" in caught.value.hint
    assert len(str(caught.value).splitlines()) == 2


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(CostTableError, match="folder"):
        read_table(tmp_path)


def test_a_table_is_written_whole_or_not(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        write_table(tmp_path / "no" / "costs.json", CostTable())


def test_later_costs_win_and_the_others_stay() -> None:
    old, other = Cost(form(), Ratio.exactly(1.0)), Cost(form("Gemm"), Ratio.exactly(3.0))
    new, elsewhere = Cost(form(), Ratio.exactly(2.0)), run(old, machine="another")
    table = CostTable().with_run(run(old, other)).with_run(elsewhere).with_run(run(new, onnxruntime="1.31.2"))
    assert table.run(("cpu", "x86_64 AVX2, 1 thread", "1.31")) == run(other, new, onnxruntime="1.31.2")
    assert table.run(elsewhere.key) == elsewhere
    assert len(table.runs) == 2


def test_another_release_of_onnxruntime_is_another_run() -> None:
    table = CostTable().with_run(run(Cost(form(), Ratio.exactly(1.0)))).with_run(run(onnxruntime="1.32.0"))
    assert [each.onnxruntime for each in table.runs] == ["1.31.1", "1.32.0"]
    assert release("1.31.1") == "1.31"


def test_the_users_own_table_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped, both = tmp_path / "shipped.json", form("Gemm")
    monkeypatch.setattr(module, "shipped_path", lambda: shipped)
    monkeypatch.setattr(module, "own_path", own_path)
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    write_table(shipped, CostTable((run(Cost(form(), Ratio.exactly(2.0)), Cost(both, Ratio.exactly(2.0))),)))
    write_table(own_path(), CostTable((run(Cost(both, Ratio.exactly(0.5))),)))
    known = load_costs(run().key, {"batch": 1})
    assert known.of(form()) == Known(Ratio.exactly(2.0), "shipped")
    assert known.of(both) == Known(Ratio.exactly(0.5), "own")
    assert known.sizes == {"batch": 1}
    assert not load_costs(("cpu", "another machine", "1.31"), {}).known
    assert not load_costs(("cpu", "x86_64 AVX2, 1 thread", "1.30"), {}).known


def test_classes_of_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    assert machine_class(("AVX2", "AVX512", "AMX-INT8"), 1) == "x86_64 AVX512, 1 thread"
    assert machine_class(("AVX2",), 6) == machine_class(("AVX2",), 4) == "x86_64 AVX2, 4 threads"
    assert machine_class((), 2) == "x86_64 no vectors, 2 threads"


def test_the_shipped_table_can_be_read() -> None:
    table = read_table(shipped_path())
    assert table.version == module.FORMAT
    assert table.runs
    assert all(each.cpu and each.onnxruntime and each.costs for each in table.runs)
