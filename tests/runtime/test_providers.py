"""Providers that are not there: what is missing is named; nothing falls back in silence."""

import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from cuda_device import GPU, NEEDS_GPU

from burnish.errors import ProviderError
from burnish.runtime import libraries, opening, providers
from burnish.runtime.opening import Opener, Placed
from burnish.runtime.options import Options
from burnish.runtime.providers import Availability, availability, require
from burnish.runtime.session import Session
from burnish.runtime.source import Opened

Make = Callable[[str], bytes]

NO_GPU = pytest.mark.skipif(GPU.usable, reason="CUDA works on this machine")
GPU_WHEEL = pytest.mark.skipif(
    "CUDAExecutionProvider" not in ort.get_available_providers(), reason="not the GPU wheel"
)
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads ELF files")


@NO_GPU
@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
def test_session_names_what_is_missing(name: str, add: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """onnxruntime-gpu says that both are available, and runs on the CPU without a word."""
    with pytest.raises(ProviderError) as caught:
        Session(add, name)
    found = availability(name)
    assert caught.value.code == "EP_UNAVAILABLE"
    assert f"'{name}'" in caught.value.what
    for library in found.missing:
        assert library in caught.value.what
    for fix in found.fixes:
        assert fix in caught.value.hint
    assert capfd.readouterr() == ("", "")


@NO_GPU
@GPU_WHEEL
@LINUX
def test_cuda_fixes_are_the_exact_lines() -> None:
    wanted = {"libcublas": libraries.CUDA_FIX, "libcuda.so": libraries.DRIVER_FIX}
    for start, fix in wanted.items():
        assert (fix in GPU.fixes) == any(name.startswith(start) for name in GPU.missing)
    assert libraries.CUDA_FIX == 'pip install "onnxruntime-gpu[cuda,cudnn]"'
    assert libraries.TENSORRT_FIX == 'pip install "tensorrt-cu13>=10,<11"'


@NO_GPU
def test_auto_says_why_it_is_the_cpu(add: bytes) -> None:
    session = Session(add, "auto")
    assert session.provider == "cpu"
    assert "'cuda' does not work here" in session.choice.why
    assert GPU.why in session.choice.why


def test_cpu_is_always_there() -> None:
    assert availability("cpu").usable
    assert require("cpu").provider == "CPUExecutionProvider"


def test_wheel_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ProviderError) as caught:
        require("cuda")
    assert "built without it" in caught.value.what
    assert 'pip install "onnxruntime-gpu[cuda,cudnn]"' in caught.value.hint


def test_openvino_plugin_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "OPENVINO_PACKAGE", "no_such_openvino_plugin")
    with pytest.raises(ProviderError) as caught:
        require("openvino")
    assert caught.value.code == "EP_UNAVAILABLE"
    assert "not installed" in caught.value.what
    assert "pip install onnxruntime-ep-openvino" in caught.value.hint


def test_openvino_plugin_that_does_not_register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = "broken_openvino_plugin"
    library = tmp_path / "libplugin.so"
    library.write_bytes(b"not a library")
    (tmp_path / f"{package}.py").write_text(f"def get_library_path():\n    return {str(library)!r}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(providers, "OPENVINO_PACKAGE", package)
    providers._register_openvino.cache_clear()
    found = availability("openvino")
    providers._register_openvino.cache_clear()
    assert not found.usable
    assert "cannot be registered" in found.why


def test_wrong_major_version_of_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tensorrt_libs"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "libnvinfer.so.11").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["TensorrtExecutionProvider"])
    monkeypatch.setattr(libraries, "missing", lambda library: ("libnvinfer.so.10",))
    found = availability("tensorrt")
    assert "libnvinfer.so.11 is installed: the wrong major version" in found.why
    assert found.fixes == ('pip install "tensorrt-cu13>=10,<11"',)


def test_cuda_without_cudnn_works_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(libraries, "missing", lambda library: ())
    for there in (False, True):
        monkeypatch.setattr(libraries, "loads", lambda name, there=there: there)
        found = availability("cuda")
        assert found.usable
        assert ("libcudnn.so.9" in found.missing) != there
        assert (libraries.CUDA_FIX in found.fixes) != there


@LINUX
@GPU_WHEEL
def test_needed_libraries_are_read_from_the_file() -> None:
    needed = libraries.needed(libraries.provider_library("tensorrt"))
    assert "libnvinfer.so.10" in needed
    assert "libc.so.6" in needed


@LINUX
@pytest.mark.parametrize(
    "content",
    [b"", b"\x7fELF\x02\x01", b"MZ not an ELF file", b"\x7fELF\x02\x01".ljust(80, b"\xff")],
    ids=["empty", "truncated", "foreign", "damaged"],
)
def test_files_that_are_no_libraries_need_nothing(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.so").write_bytes(content)
    assert libraries.needed(tmp_path / "x.so") == ()
    assert libraries.needed(tmp_path / "none.so") == ()


def elf(needed: list[str]) -> bytes:
    """The smallest ELF file with a dynamic section that names those libraries."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in needed)
    base, header, program = 0x400000, 64, 56
    dynamic_at = header + 2 * program
    entries, at = b"", 1
    for name in needed:
        entries += struct.pack("<qQ", 1, at)
        at += len(name) + 1
    size = len(entries) + 32
    strings_at = dynamic_at + size
    entries += struct.pack("<qQ", 5, base + strings_at) + struct.pack("<qQ", 0, 0)
    end = strings_at + len(strings)
    start = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    start += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, header, 0, 0, header, program, 2, 0, 0, 0)
    start += struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, end, end, 4096)
    start += struct.pack("<IIQQQQQQ", 2, 6, dynamic_at, base + dynamic_at, 0, size, size, 8)
    return start + entries + strings


@LINUX
def test_missing_names_only_what_does_not_load(tmp_path: Path) -> None:
    library = tmp_path / "libprovider.so"
    library.write_bytes(elf(["libm.so.6", "libnvinfer.so.99", "libc.so.6"]))
    assert libraries.needed(library) == ("libm.so.6", "libnvinfer.so.99", "libc.so.6")
    assert libraries.missing(library) == ("libnvinfer.so.99",)
    assert libraries.fixes(("libnvinfer.so.99", "libodd.so.1", "libcudart.so.13")) == (
        libraries.TENSORRT_FIX, "install the system library libodd.so.1", libraries.CUDA_FIX,
    )  # fmt: skip


@NO_GPU
@GPU_WHEEL
def test_a_provider_that_does_not_start_is_never_replaced(
    add: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even when its libraries were thought to be there: onnxruntime itself must refuse."""
    monkeypatch.setattr(
        providers, "availability", lambda name: Availability(name, True, "believed to be there")
    )
    for options in (Options(), Options(shapes_on_cpu=False)):
        with pytest.raises(ProviderError) as caught:
            Session(add, "cuda", options=options)
        assert caught.value.code in ("EP_FALLBACK", "EP_UNAVAILABLE")
        assert "'cuda'" in caught.value.what


class FakeSession:
    """What a GPU session tells of itself; there is no GPU here to make one."""

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def check_placed(nodes: list[Placed], options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "placement", lambda session: nodes)
    opener = Opener(Opened(b"", "m"), "cuda", options, 1)
    opener._check_placement(FakeSession(), ["CUDAExecutionProvider"])


CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
GRAPH = [Placed("a", "MatMul", CUDA), Placed("b", "Shape", CPU), Placed("c", "Gather", CPU)]


def test_shape_arithmetic_on_the_cpu_is_no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    check_placed(GRAPH, Options(), monkeypatch)


def test_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProviderError) as caught:
        check_placed(GRAPH, Options(shapes_on_cpu=False), monkeypatch)
    assert caught.value.code == "EP_FALLBACK"
    assert "2 of 3 nodes: Shape x1, Gather x1 (first: 'b')" in caught.value.what


def test_any_other_op_on_the_cpu_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProviderError) as caught:
        check_placed([*GRAPH, Placed("q", "QLinearMatMul", CPU)], Options(), monkeypatch)
    assert "1 of 4 nodes: QLinearMatMul x1 (first: 'q')" in caught.value.what


def test_a_provider_that_got_no_node_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProviderError):
        check_placed(GRAPH[1:], Options(), monkeypatch)


@NEEDS_GPU
@pytest.mark.gpu
def test_cuda_runs_every_node(make: Make) -> None:
    text = "g (float[n, 4] x, float[4, 4] w) => (float[n, 4] y) { m = MatMul (x, w)  y = Relu (m) }"
    with Session(make(text), "cuda") as session:
        x, w = np.ones((3, 4), np.float32), np.eye(4, dtype=np.float32)
        assert (session(x=x, w=w)["y"] == x).all()
        assert (session.bind()(x=x, w=w)["y"] == x).all()
        assert set(session.last_placement.values()) == {CUDA}
        assert session.choice.why == "asked for"


@NEEDS_GPU
@pytest.mark.gpu
def test_cuda_leaves_shapes_on_the_cpu_and_says_so(make: Make) -> None:
    text = """
        g (float[n, s, 4] x) => (float[k, 4] y) <int64[1] four = {4}, int64[1] all = {-1}> {
            shape = Shape <start = 2> (x)
            target = Concat <axis = 0> (all, shape)
            r = Reshape (x, target)
            y = Relu (r)
        }
    """
    with Session(make(text), "cuda") as session:
        assert session(x=np.ones((2, 3, 4), np.float32))["y"].shape == (6, 4)
        assert session.placement_summary[CUDA]["Relu"] == 1


@NEEDS_GPU
@pytest.mark.gpu
def test_cuda_refuses_an_op_without_a_kernel(make: Make) -> None:
    text = "g (float[n, n] x) => (float y) { y = Det (x) }"
    with pytest.raises(ProviderError) as caught:
        Session(make(text), "cuda")
    assert caught.value.code == "EP_FALLBACK"
    assert "Det x1" in caught.value.what
