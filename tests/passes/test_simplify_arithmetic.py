import numpy as np
import pytest

from burnish.model import to_bytes
from burnish.passes.base import Context
from burnish.passes.cleanup.simplify_arithmetic import SimplifyArithmetic
from burnish.runtime.reference import Reference
from burnish.testing import check_pass, parse

NUMBERS = {
    "two": np.array(2, np.float32), "three": np.array([3], np.float32), "minus": np.array(-2, np.float32),
    "row": np.array([1, -2, 0.5, 4], np.float32), "other": np.array([2, -3, 0.25, 1], np.float32),
    "column": np.ones((3, 1), np.float32), "wide": np.ones((2, 3, 4), np.float32),
    "zero": np.zeros((), np.float32), "zeros": np.zeros(4, np.float32), "nought": -np.zeros(4, np.float32),
    "tiny": np.array(1e-30, np.float32), "huge": np.array(1e30, np.float32), "six": np.array(6, np.float32),
    "i2": np.array(2), "i3": np.array([3]), "max64": np.array(2**63 - 1), "nan": np.array(np.nan, np.float32),
    "eps": np.array(1e-5, np.float32),
}  # fmt: skip


def used(text: str) -> dict[str, np.ndarray]:
    words = text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    return {name: array for name, array in NUMBERS.items() if name in words}


def graph(nodes: str, dtype: str = "float", rank: int = 2) -> str:
    dims = "M, K, L" if rank == 3 else "N, 4"
    return f"g ({dtype}[N, 4] x, {dtype}[N, 4] z) => ({dtype}[{dims}] y) {{ {nodes} }}"


@pytest.mark.parametrize("op_type", ["Relu", "Abs", "Ceil", "Floor", "Round", "Sign"])
def test_twice_is_once(op_type: str) -> None:
    nodes = f"a = {op_type} (x)  b = {op_type} (a)  y = Exp (b)"
    check_pass(SimplifyArithmetic(), graph(nodes), f"a = {op_type} (x)\ny = Exp (a)", count=1)


def test_there_and_back() -> None:
    check_pass(SimplifyArithmetic(), graph("a = Neg (x)  b = Neg (a)  y = Exp (b)"), "y = Exp (x)", count=1)
    text = "g (bool[N] x) => (bool[N] y) { a = Not (x)  b = Not (a)  y = And (b, x) }"
    check_pass(SimplifyArithmetic(), text, "y = And (x, x)", count=1)
    check_pass(SimplifyArithmetic(), graph("a = Reciprocal (x)  y = Reciprocal (a)"), count=0)


ALIKE = [
    ("float16", 1, 11), ("float16", 11, 1), ("float16", 1, 9), ("int8", 7, 6), ("int32", 11, 1),
    ("int64", 7, 6), ("uint8", 1, 7), ("bool", 6, 1), ("bool", 1, 7), ("int32", 7, 3), ("float", 11, 16),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "between", "last"), ALIKE)
def test_a_cast_that_keeps_every_number(dtype: str, between: int, last: int) -> None:
    text = f"g ({dtype}[N] x) => (y) {{ a = Cast <to = {between}> (x)  y = Cast <to = {last}> (a) }}"
    assert SimplifyArithmetic().rewrite(parse(text), Context()) == 1


def test_there_and_back_to_a_dtype() -> None:
    text = "g (float16[N] x) => (float16[N] y) { a = Cast <to = 1> (x)  b = Cast <to = 10> (a)  y = Neg (b) }"
    check_pass(SimplifyArithmetic(), text, "y = Neg (x)", count=1)


@pytest.mark.parametrize(
    ("dtype", "between", "last"),
    [("float", 10, 1), ("float", 7, 1), ("int64", 1, 7), ("int8", 1, 2), ("float16", 1, 6), ("float", 11, 17),
     ("int32", 12, 7), ("float16", 16, 1)],
)  # fmt: skip
def test_casts_that_change_something_stay(dtype: str, between: int, last: int) -> None:
    text = f"g ({dtype}[N] x) => (y) {{ a = Cast <to = {between}> (x)  y = Cast <to = {last}> (a) }}"
    assert SimplifyArithmetic().rewrite(parse(text), Context()) == 0


CLAMPED = [
    "a = Clip (x, minus, two)  b = Clip (a, zero, six)",
    "a = Clip (x, zero)  b = Clip (a, , two)",
    "a = Relu (x)  b = Clip (a, minus, two)",
    "a = Clip (x, minus, two)  b = Relu (a)",
    "a = Max (x, zero)  b = Min (six, a)",
    "a = Min (x, minus)  b = Max (a, zero)",
    "a = Relu (x)  b = Min (a, minus)",
    "a = Clip (x, two, six)  b = Clip (a, minus, zero)",
]


@pytest.mark.parametrize("nodes", CLAMPED)
def test_bounds_in_a_row(nodes: str) -> None:
    check_pass(
        SimplifyArithmetic(), graph(f"{nodes}  y = Neg (b)"), ["Clip", "Neg"], count=1, weights=used(nodes)
    )


@pytest.mark.parametrize("kind", ["float", "double", "int32"])
@pytest.mark.parametrize(
    "nodes",
    [
        "a = Min (x, six)  b = Min (a, two)",
        "a = Max (minus, x)  b = Max (a, zero)",
        "a = Relu (x)  b = Max (a, two)",
        "a = Min (x, six)  b = Clip (a, , two)",
        "a = Clip (x, , six)  b = Min (a, two)",
        "a = Clip (x, zero)  b = Max (a, two)",
    ],
)
def test_what_is_infinite_ends_where_it_did(nodes: str, kind: str) -> None:
    dtype = np.dtype("float32" if kind == "float" else kind)
    weights = {name: array.astype(dtype) for name, array in used(nodes).items()}
    model = parse(graph(f"{nodes}  y = Neg (b)", kind), weights=weights)
    extremes = [-np.inf, np.inf, np.nan, 1] if dtype.kind == "f" else [-(2**31) + 1, 2**31 - 1, 0, 1]
    feeds = {"x": np.array([extremes], dtype), "z": np.zeros((1, 4), dtype)}
    before = Reference(to_bytes(model))(feeds)["y"]
    assert SimplifyArithmetic().rewrite(model, Context()) == 1
    np.testing.assert_array_equal(Reference(to_bytes(model))(feeds)["y"], before)


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Clip (x, six, two)  y = Clip (a, zero, two)",
        "a = Clip (x, nan, two)  y = Clip (a, zero, two)",
        "a = Max (x, row)  y = Min (a, two)",
        "a = Max (x, zero)  b = Min (a, two)  y = Add (a, b)",
        "a = Max (x, z)  y = Min (a, two)",
    ],
)
def test_bounds_that_stay(nodes: str) -> None:
    assert SimplifyArithmetic().rewrite(parse(graph(nodes), weights=used(nodes)), Context()) == 0


@pytest.mark.parametrize(
    "expression", ["Add (a, zero)", "Add (zeros, a)", "Sub (a, zeros)", "Add (a, nought)"]
)
def test_nothing_is_added(expression: str) -> None:
    nodes = f"a = Relu (x)  b = {expression}  y = Neg (b)"
    check_pass(SimplifyArithmetic(), graph(nodes), ["Relu", "Neg"], count=1, weights=used(nodes))


SEEN = [
    ("b = Add (a, zero)  y = Reciprocal (b)", 0), ("b = Add (a, zero)  y = Div (x, b)", 0),
    ("b = Add (a, zero)  c = Sqrt (b)  d = Mul (c, z)  y = Div (x, d)", 0),
    ("b = Add (a, zero)  y = Pow (b, minus)", 0), ("b = Sub (a, nought)  y = Reciprocal (b)", 0),
    ("b = Sub (a, zero)  y = Reciprocal (b)", 1), ("b = Add (a, nought)  y = Reciprocal (b)", 1),
    ("b = Add (a, zero)  y = Div (b, x)", 1), ("b = Add (a, zero)  y = Pow (b, two)", 1),
    ("b = Add (a, zero)  c = Add (b, eps)  y = Div (x, c)", 1),
    ("b = Add (a, zero)  c = Exp (b)  y = Div (x, c)", 1),
    ("b = Add (a, zero)  c = Max (b, eps)  y = Reciprocal (c)", 2),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "count"), SEEN)
def test_the_sign_of_a_zero_below_a_fraction_bar(nodes: str, count: int) -> None:
    nodes, context = f"a = Relu (x)  {nodes}", Context()
    assert SimplifyArithmetic().rewrite(parse(graph(nodes), weights=used(nodes)), context) == count
    assert bool(context.misses) == (not count)


@pytest.mark.parametrize(("last", "count"), [("Neg (b)", 1), ("Reciprocal (b)", 0)])
def test_the_sign_of_a_zero_behind_an_if_is_seen_where_its_result_is(last: str, count: int) -> None:
    text = f"""<ir_version: 10, opset_import: ["": 20]>
        g (bool c, float[N] x) => (float[N] y) <float zero = {{0}}> {{
            a = Relu (x)  z = Add (a, zero)
            b = If (c) <then_branch = t () => (float[N] p) {{ p = Identity (z) }},
                        else_branch = e () => (float[N] q) {{ q = Neg (z) }}>
            y = {last}
        }}"""
    assert SimplifyArithmetic().rewrite(parse(text), Context()) == count


def test_the_sign_of_a_zero_in_branches_and_functions() -> None:
    text = """
        <ir_version: 10, opset_import: ["": 20, "local": 1]>
        g (bool c, float[N] x) => (float[N] y, float[N] z) <float zero = {0}> {
            b = If (c) <
                then_branch = t () => (float[N] p) { p0 = Relu (x)  p = Add (p0, zero) },
                else_branch = e () => (float[N] q) { q = Exp (x) }
            >
            y = Reciprocal (b)  a = Relu (x)  d = Add (a, zero)  z = local.f (d)
        }
        <domain: "local", opset_import: ["": 20]>
        f (x) => (y) { y = Reciprocal (x) }
    """
    assert SimplifyArithmetic().rewrite(parse(text), Context()) == 0


def test_nothing_is_added_but_the_shape_grows() -> None:
    nodes = "a = Mul (x, wide)  b = Sub (a, zero)  c = Add (x, wide)  y = Add (b, c)"
    text = f"g (float[4] x) => (float[2, 3, 4] y) {{ {nodes} }}"
    check_pass(SimplifyArithmetic(), text, ["Mul", "Add", "Add"], count=1, weights=used("wide zero"))
    text = "g (float[4] x) => (float[2, 3, 4] y) { r = Relu (x)  y = Add (r, n) }"
    model = parse(text, weights={"n": np.zeros((2, 3, 4), np.float32)})
    assert SimplifyArithmetic().rewrite(model, Context()) == 0
