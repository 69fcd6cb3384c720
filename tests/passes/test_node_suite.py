"""ONNX's own node tests, before and after the passes, on onnxruntime with its optimiser off.

None of the cases has an initializer or a dynamic dim, so each is run as it is, with all inputs frozen to
constants, with all but the first frozen, and with its sizes replaced by names.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Literal, get_args

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase as Case
from onnx.backend.test.loader import load_model_tests

from burnish.difference import difference
from burnish.errors import ModelError
from burnish.model import to_bytes
from burnish.passes.base import Context, Numerics, Pass
from burnish.passes.dims import Dim
from burnish.passes.registry import PASSES, load_pass
from burnish.passes.shapes import Shapes
from burnish.runtime.reference import Reference

NEWEST_OPSET = 26  # of onnxruntime 1.31.1
NEWEST_IR = 13
Feeds = dict[str, object]
Variant = Literal["as is", "frozen", "rest frozen", "named"]


@cache
def cases() -> list[Case]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sorted(load_model_tests(kind="node"), key=lambda case: case.name)


def safe_passes() -> list[Pass]:
    """Every registered pass that promises the same numbers and needs nothing but the graph."""
    loaded = [load_pass(name) for name in PASSES]
    return [cls() for cls in loaded if cls.numerics is not Numerics.LOSSY]


def runnable(case: Case, variant: Variant) -> tuple[onnx.ModelProto, Feeds]:
    """The model restamped to what onnxruntime knows, and its feeds; frozen ones become initializers."""
    model = onnx.ModelProto.FromString(case.model.SerializeToString())
    for imported in model.opset_import:
        if not imported.domain:
            imported.version = min(imported.version, NEWEST_OPSET)
    first_frozen = {"frozen": 0, "rest frozen": 1}.get(variant)
    model.ir_version = min(max(model.ir_version, 1 if first_frozen is None else 4), NEWEST_IR)
    feeds = {}
    for index, (info, data) in enumerate(zip(list(model.graph.input), case.data_sets[0][0], strict=False)):
        value = numpy_helper.to_array(data) if isinstance(data, onnx.TensorProto) else data
        freeze = first_frozen is not None and index >= first_frozen
        tensor = as_tensor(value, info.name) if freeze else None
        if tensor is None:
            feeds[info.name] = value
        else:
            model.graph.initializer.append(tensor)
            model.graph.input.remove(info)
    if variant == "named":
        name_dims(model, lambda _, size: f"n{size}")
    return model, feeds


def as_tensor(value: object, name: str) -> onnx.TensorProto | None:
    if value is None or isinstance(value, list):
        return None
    try:
        return numpy_helper.from_array(np.asarray(value), name)
    except (RuntimeError, TypeError, ValueError):
        return None


def run(model: bytes, feeds: Mapping[str, object]) -> dict[str, object]:
    return dict(Reference(model)(feeds))  # type: ignore[arg-type]


def same(a: object, b: object, tolerance: float) -> bool:
    if isinstance(a, list) or isinstance(b, list):
        pair = isinstance(a, list) and isinstance(b, list) and len(a) == len(b)
        return pair and all(same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if a is None or b is None:
        return a is b
    return difference("", np.asarray(a), np.asarray(b)).within(tolerance)


def outcome(case: Case, passes: list[Pass], variant: Variant) -> tuple[str, int]:
    """What became of one case, and how many rewrites were made in it."""
    model, feeds = runnable(case, variant)
    try:
        expected = run(model.SerializeToString(), feeds)
    except ModelError:
        return "not runnable", 0
    if not all(
        same(value, again, 0.0) for value, again in pairs(expected, run(model.SerializeToString(), feeds))
    ):
        return "random", 0
    rewritten, rewrites = ir.from_proto(model), 0
    for pass_ in passes:
        rewrites += pass_.rewrite(rewritten, Context())
    after = to_bytes(rewritten)
    if interface(onnx.ModelProto.FromString(after)) != interface(model):
        return "INTERFACE", rewrites
    try:
        actual = run(after, feeds)
    except ModelError as error:
        return f"INVALID {error.what[:200]}", rewrites
    tolerance = max((pass_.numerics.tolerance for pass_ in passes), default=0.0)
    equal = all(same(a, b, tolerance) for a, b in pairs(expected, actual))
    return ("same" if equal else "DIFFERENT"), rewrites


def pairs(a: dict[str, object], b: dict[str, object]) -> Iterator[tuple[object, object]]:
    assert a.keys() == b.keys()
    return ((a[name], b[name]) for name in a)


def interface(model: onnx.ModelProto) -> list[bytes]:
    return [info.SerializeToString(deterministic=True) for info in (*model.graph.input, *model.graph.output)]


def sweep(
    chosen: list[Case], passes: list[Pass], variant: Variant
) -> tuple[Counter[str], dict[str, str], int]:
    """Counts of outcomes, the failures by case, and the rewrites made."""
    counts, failures, rewrites = Counter[str](), dict[str, str](), 0
    for case in chosen:
        try:
            result, made = outcome(case, passes, variant)
        except Exception as error:  # noqa: BLE001 - every exception is a finding, whatever its kind
            result, made = f"EXCEPTION {type(error).__name__}: {error}"[:300], 0
        counts[result.split()[0]] += 1
        rewrites += made
        if result.split()[0].isupper():
            failures[case.name] = result
    return counts, failures, rewrites


def name_dims(model: onnx.ModelProto, name: Callable[[str, int], str]) -> dict[str, int]:
    """Replace the sizes of the inputs by names; return what they stand for."""
    sizes: dict[str, int] = {}
    for info in model.graph.input:
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            if dim.HasField("dim_value"):
                chosen = name(f"{info.name}.{axis}", dim.dim_value)
                sizes[chosen] = dim.dim_value
                dim.dim_param = chosen
    return sizes


def size_of(dim: Dim, sizes: Mapping[str, int]) -> int | None:
    """A symbolic size with the names filled in; None when a made-up name is in it."""
    if any(name not in sizes for names, _ in dim.terms for name in names):
        return None
    return sum(number * math.prod(sizes[name] for name in names) for names, number in dim.terms)


def wrong_facts(case: Case) -> list[str]:
    """What the analysis says of outputs and is not so, with every size of an input unknown to it."""
    model, feeds = runnable(case, "as is")
    try:
        actual = run(model.SerializeToString(), feeds)
    except ModelError:
        return []
    sizes = name_dims(model, lambda place, _: place)
    loaded, found = ir.from_proto(model), []
    shapes = Shapes(loaded)
    for value in loaded.graph.outputs:
        array, fact = actual[value.name or ""], shapes[value]
        if not isinstance(array, np.ndarray):
            continue
        checks = [("rank", fact.rank, array.ndim)] if fact.rank is not None else []
        checks += zip_named("dim", fact.shape, array.shape, sizes)
        checks += zip_named("element", fact.content, array.reshape(-1).tolist(), sizes)
        found.extend(f"{value.name} {what}: {said} is {real}" for what, said, real in checks if said != real)
    return found


def zip_named(
    what: str, said: Sequence[Dim] | None, real: Sequence[int], sizes: Mapping[str, int]
) -> list[tuple[str, int | None, int]]:
    pairs = [] if said is None else list(zip(said, real, strict=False))
    known = [(what, size_of(dim, sizes), int(size)) for dim, size in pairs]
    return [each for each in known if each[1] is not None]


@pytest.mark.parametrize("step", [12, pytest.param(1, marks=pytest.mark.slow)])
def test_symbolic_shapes_are_true(step: int) -> None:
    chosen = cases()[::step]
    wrong = {case.name: found for case in chosen if (found := wrong_facts(case))}
    assert wrong == {}


@pytest.mark.parametrize("variant", get_args(Variant))
def test_every_twelfth_case_is_the_same_after_all_passes(variant: Variant) -> None:
    counts, failures, rewrites = sweep(cases()[::12], safe_passes(), variant)
    assert failures == {}
    assert counts["same"] >= 110, counts
    assert rewrites >= 500, rewrites


@pytest.mark.slow
@pytest.mark.parametrize("variant", get_args(Variant))
def test_every_case_is_the_same_after_all_passes(variant: Variant) -> None:
    counts, failures, rewrites = sweep(cases(), safe_passes(), variant)
    assert failures == {}
    assert counts["same"] >= 1460, counts
    assert rewrites >= 6000, rewrites


@pytest.mark.slow
@pytest.mark.parametrize("name", PASSES)
def test_every_case_is_the_same_after_each_pass_alone(name: str) -> None:
    pass_ = load_pass(name)()
    if pass_.numerics is Numerics.LOSSY:
        pytest.skip("it may change the numbers")
    counts, failures, _ = sweep(cases(), [pass_], "frozen")
    assert failures == {}
    assert counts["same"] >= 1460, counts
