"""The tables of kernels in `burnish.target`, against what onnxruntime places."""

import os
import subprocess
import sys

import onnx
import onnxruntime as ort
import pytest
from single_ops import single

from burnish.runtime.opening import placement
from burnish.runtime.providers import availability
from burnish.target import OWN_IN_DEFAULT_DOMAIN, TARGETS

GPU = availability("cuda")
NEEDS_GPU = pytest.mark.skipif(not GPU.usable, reason=f"needs CUDA: {GPU.why}")
NAMES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_GPU])]
DTYPES = ("float", "float16", "bfloat16")


def placed(domain: str, op_type: str, provider: str) -> bool:
    """True where the provider takes the operator with one of the types, and not its steps."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for dtype in DTYPES:
        try:
            session = ort.InferenceSession(
                single(domain, op_type, dtype), options,
                providers=list(dict.fromkeys([provider, "CPUExecutionProvider"])),
            )  # fmt: skip
        except Exception:  # noqa: BLE001 - whatever it is, that type is not taken
            continue
        if any(node.op_type == op_type and node.provider == provider for node in placement(session)):
            return True
    return False


def all_placed(pairs: list[tuple[str, str]], provider: str) -> set[str]:
    """Those that the provider takes, asked in another process: loading some of them crashes."""
    names = [f"{domain}:{op_type}" for domain, op_type in pairs]
    done = subprocess.run(
        [sys.executable, "-P", __file__, provider, *names], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    return set(done.stdout.splitlines()[-1].split())


def key(op_type: str) -> tuple[str, str]:
    return ("", op_type) if op_type in OWN_IN_DEFAULT_DOMAIN else ("com.microsoft", op_type)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_table_names_is_taken(name: str) -> None:
    target = TARGETS[name]
    taken = all_placed([key(op) for op in sorted(target.contrib)], target.provider)
    assert target.contrib - taken == set()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_inlined_is_not(name: str) -> None:
    target = TARGETS[name]
    assert all_placed([("", op) for op in sorted(target.inlined)], target.provider) == set()
    assert onnx.defs.has("Gelu")
    assert all_placed([("", "Gelu")], target.provider) == {"Gelu"}


if __name__ == "__main__":
    if sys.argv[1] != "CPUExecutionProvider":
        ort.preload_dlls()
    pairs = [name.split(":") for name in sys.argv[2:]]
    print(" ".join(op for domain, op in pairs if placed(domain, op, sys.argv[1])))
