import numpy as np
import pytest

from burnish.passes.base import Context
from burnish.passes.cleanup.remove_guards import RemoveGuards
from burnish.testing import check_pass, parse

LOWEST = np.finfo(np.float32).min
WEIGHTS = {
    "scale": np.array(0.125, np.float32), "eight": np.array([8], np.float32),
    "zero": np.zeros((), np.float32), "one": np.ones((), np.float32), "low": np.array(LOWEST, np.float32),
    "inf": np.array(-np.inf, np.float32), "causal": np.triu(np.full((3, 3), LOWEST, np.float32), 1),
}  # fmt: skip
INPUTS = "float[N, 3, 4] q, float[N, 4, 3] k, bool[3, 3] keep, float[3, 3] mask, float[N, 3, 3] s"


def guarded(scores: str, guard: str = "n = IsNaN (w)  y = Where (n, zero, w)") -> str:
    return f"g ({INPUTS}) => (float[N, 3, 3] y) {{ p = MatMul (q, k)  {scores}  w = Softmax (a)  {guard} }}"


def used(text: str) -> dict[str, np.ndarray]:
    words = text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    return {name: array for name, array in WEIGHTS.items() if name in words}


HARMLESS = [
    "a = Mul (p, scale)", "a = Div (p, eight)", "b = Mul (p, scale)  a = Add (b, causal)",
    "m = Where (keep, zero, low)  a = Add (p, m)", "a = Where (keep, p, low)",
    "c = Cast <to = 1> (keep)  d = Sub (one, c)  m = Mul (d, low)  a = Add (p, m)",
    "b = Tanh (s)  a = Mul (b, eight)",
]  # fmt: skip


@pytest.mark.parametrize("scores", HARMLESS)
def test_goes(scores: str) -> None:
    text = guarded(scores)
    model = check_pass(RemoveGuards(), text, count=1, weights=used(text))
    assert model.graph.node(-1).op_type == "Softmax"


@pytest.mark.parametrize(
    ("scores", "fault"),
    [
        ("a = Add (p, mask)", "mask"), ("m = Where (keep, zero, inf)  a = Add (p, m)", "inf"),
        ("m = Where (keep, zero, low)  b = Add (p, m)  a = Add (b, causal)", "a"),
        ("a = Identity (s)", "s"), ("b = Exp (p)  a = Log (b)", "a"), ("a = Div (p, mask)", "mask"),
    ],
)  # fmt: skip
def test_stays_and_says_why(scores: str, fault: str) -> None:
    text, context = guarded(scores), Context()
    assert RemoveGuards().rewrite(parse(text, weights=used(text)), context) == 0
    assert [miss.why for miss in context.misses] == [f"'{fault}' may make a whole row of the scores -inf"]


@pytest.mark.parametrize(
    "guard",
    [
        "n = IsNaN (w)  y = Where (n, one, w)", "n = IsNaN (w)  y = Where (n, zero, a)",
        "n = IsNaN (w)  y = Where (n, w, zero)", "n = IsInf (w)  y = Where (n, zero, w)",
    ],
)  # fmt: skip
def test_what_is_no_guard(guard: str) -> None:
    text, context = guarded("a = Mul (p, scale)", guard), Context()
    assert RemoveGuards().rewrite(parse(text, weights=used(text)), context) == 0
    assert context.misses == []


def test_half_precision_overflows_early() -> None:
    text = guarded("a = Mul (p, scale)").replace("float", "float16")
    weights = {name: array.astype(np.float16) for name, array in used(text).items()}
    context = Context()
    assert RemoveGuards().rewrite(parse(text, weights=weights), context) == 0
    assert "may make a whole row" in context.misses[0].why
