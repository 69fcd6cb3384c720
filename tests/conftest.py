"""Small real models that several tests share; everything is seeded."""

import os
import tempfile

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from burnish.testing import parse

ENCODER = """
    g (int64[batch, sequence] input_ids, float[batch, sequence, 1] weight)
        => (float[batch, sequence, 8] hidden, float[batch, 8] pooled)
    {
        e = Gather (table, input_ids)
        i = Identity (e)
        m = MatMul (i, w1)
        a = Add (m, b1)
        d = Div (a, root2)
        erf = Erf (d)
        plus = Add (erf, one)
        prod = Mul (a, plus)
        gelu = Mul (prod, half)
        n = MatMul (gelu, w2)
        o = Add (n, b2)
        r = Add (o, e)
        hidden = LayerNormalization <axis = -1, epsilon = 0.00001> (r, gamma, beta)
        weighted = Mul (hidden, weight)
        pooled = ReduceMean <keepdims = 0> (weighted, axis1)
    }
"""


def encoder_weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of ENCODER: 20 tokens, width 8, inner width 16."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.5).astype(np.float32)

    return {
        "table": normal(20, 8), "w1": normal(8, 16), "b1": normal(16), "w2": normal(16, 8), "b2": normal(8),
        "gamma": np.ones(8, np.float32), "beta": np.zeros(8, np.float32),
        "root2": np.float32(np.sqrt(2)), "one": np.float32(1), "half": np.float32(0.5),
        "axis1": np.array([1], np.int64),
    }  # fmt: skip


@pytest.fixture(autouse=True, scope="session")
def no_cost_tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a pass decides must not depend on what was measured on the machine that runs the tests."""
    nowhere = tmp_path_factory.getbasetemp() / "no-costs.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("burnish.costs.shipped_path", lambda: nowhere)
        patch.setattr("burnish.costs.own_path", lambda: nowhere)
        yield


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """As `tmp_path`, in memory where that can be: for what needs no real disk, as fsync is slow on one."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def encoder() -> ir.Model:
    """A small text encoder as an exporter writes it: embedding, MLP with an erf GELU, residual, norm."""
    return parse(ENCODER, weights=encoder_weights())


@pytest.fixture
def encoder_path(encoder: ir.Model, tmp_path: Path) -> Path:
    """The same as a plain .onnx file."""
    path = tmp_path / "encoder.onnx"
    ir.save(encoder, path)
    return path


@pytest.fixture
def encoder_feeds() -> Callable[[int], list[dict[str, np.ndarray]]]:
    """Samples for the encoder."""

    def make(count: int) -> list[dict[str, np.ndarray]]:
        rng = np.random.default_rng(3)
        return [
            {
                "input_ids": rng.integers(0, 20, (2, 6)),
                "weight": np.ones((2, 6, 1), np.float32),
            }
            for _ in range(count)
        ]

    return make
