import numpy as np
import pytest

from burnish.passes.cleanup.drop_zero_states import DropZeroStates
from burnish.testing import check_pass

RNG = np.random.default_rng(0)


def random(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / 2).astype(np.float32)


WEIGHTS = {"w": random(1, 12, 4), "r": random(1, 12, 3), "w3": random(1, 9, 4), "r3": random(1, 9, 3),
           "z": np.zeros((1, 2, 3), np.float32), "z0": np.zeros((), np.float32),
           "o": np.ones((1, 2, 3), np.float32),
           "sizes": np.array([1, 2, 3]), "b": random(1, 24)}  # fmt: skip
LSTM = "y = LSTM <hidden_size = 3> (x, w, r, b, , {})"
ZEROS = {
    "initializers": LSTM.format("z, z"),
    "expanded": f"e = Expand (z0, sizes)  {LSTM.format('e, e')}",
    "of a shape": f"e = ConstantOfShape (sizes)  {LSTM.format('e, z')}",
    "one of them alone": LSTM.format("z"),
    "the cells alone": "y = LSTM <hidden_size = 3> (x, w, r, , , , z)",
    "of a GRU": "y = GRU <hidden_size = 3> (x, w3, r3, , , z)",
}


def graph(nodes: str) -> str:
    return f"g (float[S, 2, 4] x) => (float[S, 1, 2, 3] y) {{ {nodes} }}"


def used(nodes: str) -> dict[str, np.ndarray]:
    words = nodes.replace(",", " ").replace("(", " ").replace(")", " ").split()
    return {name: array for name, array in WEIGHTS.items() if name in words}


@pytest.mark.parametrize("nodes", ZEROS.values(), ids=ZEROS)
def test_zeros_are_left_out(nodes: str) -> None:
    op = "GRU" if "GRU" in nodes else "LSTM"
    model = check_pass(DropZeroStates(), graph(nodes), [op], count=1, weights=used(nodes))
    assert all(value is not None for value in model.graph.node(0).inputs[-1:])
    assert len(model.graph.node(0).inputs) <= 4


KEPT = {
    "ones": LSTM.format("o, o"),
    "ones in one": LSTM.format("z, o"),
    "none": LSTM.format(", ").replace(", , )", ")"),
}


@pytest.mark.parametrize("nodes", KEPT.values(), ids=KEPT)
def test_others_stay(nodes: str) -> None:
    check_pass(DropZeroStates(), graph(nodes), count=0, weights=used(nodes))


def test_states_from_outside_stay() -> None:
    nodes = LSTM.format("h, z")
    text = f"g (float[S, 2, 4] x, float[1, 2, 3] h) => (float[S, 1, 2, 3] y) {{ {nodes} }}"
    check_pass(DropZeroStates(), text, count=0, weights=used(nodes))
