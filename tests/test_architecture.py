"""Who may import whom, how long things may be: DESIGN.md's rules, enforced."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("core", "exporter", "passes", "runtime", "benchmarks")
HEAVY = ("torch", "transformers", "onnxruntime")
OUTER = ("burnish.exporter", "burnish.benchmarks", "burnish.api", "burnish.cli")
FORBIDDEN = {
    "passes": ("torch", "transformers", "onnxruntime", "burnish.runtime", *OUTER),
    "runtime": ("torch", "transformers", "onnx_ir", "onnxscript", "onnx", "burnish.model", "burnish.passes",
                *OUTER),
    "exporter": ("burnish.runtime", "burnish.benchmarks", "onnxruntime"),
}  # fmt: skip
# The spine imports none of the other parts; what orchestrates them lives in core/ too and may.
ORCHESTRATION = {
    "api", "bisecting", "calibrating", "calibration", "calibration_data", "checking", "explaining",
    "exporting", "inspection", "keeping", "lending", "loading", "minimal", "numbering",
    "on_target", "pairing", "region_check", "regions", "rounding_noise", "rules", "side_by_side", "sources",
    "staging", "testing", "upgrading", "workbench", "__init__",
}  # fmt: skip


def files(*rooms: str) -> list[Path]:
    return [path for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("room", FORBIDDEN)
def test_rooms_import_only_what_they_may(room: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in files(room)
        for line, module in imports(path)
        if any(within(module, package) for package in FORBIDDEN[room])
    ]
    assert found == []


def test_the_spine_imports_none_of_the_others() -> None:
    others = ("burnish.passes", "burnish.runtime", "burnish.exporter", "burnish.benchmarks", *HEAVY)
    found = [
        f"{path.name}:{line} imports {module}"
        for path in (ROOT / "core").glob("*.py")
        if path.stem not in ORCHESTRATION
        for line, module in imports(path)
        if any(within(module, package) for package in others)
    ]
    assert found == []


def test_torch_is_imported_only_by_exporter_and_benchmarks() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in files("core", "passes", "runtime")
        for line, module in imports(path)
        if within(module, "torch") or within(module, "transformers")
    ]
    assert found == []


@pytest.mark.parametrize("path", files(*ROOMS), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400, f"{path} has more than 400 lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{path}:{node.lineno} {node.name} has {length} lines"


def test_nothing_is_left_for_later() -> None:
    words = ("TODO", "FIXME", "XXX", "NotImplemented" + "Error", "import pickle")
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in files(*ROOMS)
        for word in words
        if word in path.read_text(encoding="utf-8")
    ]
    assert found == []


def test_nothing_evaluates_text() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.func.id}"
        for path in files(*ROOMS)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec")
    ]
    assert found == []


def loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\n'.join(sorted(m.partition('.')[0] for m in sys.modules)))"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_help_imports_neither_torch_nor_onnxruntime() -> None:
    code = (
        "from click.testing import CliRunner\nfrom burnish.cli import main\n"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0"
    )
    assert loaded_after(code).isdisjoint({*HEAVY, "numpy", "onnx", "onnx_ir", "rich"})


def test_the_runtime_needs_only_numpy_and_onnxruntime() -> None:
    loaded = loaded_after("import burnish.runtime.session, burnish.artifact, burnish.loading")
    assert loaded.isdisjoint({"torch", "onnx", "onnx_ir", "onnxscript", "transformers", "click", "rich"})


def test_passes_load_without_torch_and_onnxruntime() -> None:
    code = "from burnish.passes.registry import PASSES, load_pass\nfor name in PASSES: load_pass(name)"
    assert loaded_after(code).isdisjoint(HEAVY)


def test_nothing_generic_is_importable() -> None:
    loaded = loaded_after("import burnish.api")
    assert loaded.isdisjoint({"core", "passes", "runtime", "exporter", "benchmarks"})
