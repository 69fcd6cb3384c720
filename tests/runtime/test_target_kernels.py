"""The tables of kernels in `burnish.target`, against what onnxruntime places."""

import subprocess
import sys

import onnx
import pytest
import single_ops
from cuda_device import NEEDS_GPU

from burnish.target import OWN_IN_DEFAULT_DOMAIN, TARGETS

NAMES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_GPU])]


def all_placed(pairs: list[tuple[str, str]], provider: str) -> set[str]:
    """Those that the provider takes, asked in another process: loading some of them crashes."""
    names = [f"{domain}:{op_type}" for domain, op_type in pairs]
    done = subprocess.run(
        [sys.executable, "-P", single_ops.__file__, provider, *names],
        capture_output=True,
        text=True,
        check=True,
    )
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
