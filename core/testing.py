"""For people who test passes: one call shows before and after, and asserts count, idempotence, numerics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

from burnish.difference import worst
from burnish.feeds import assignments, make_feeds
from burnish.manifest import DimRange
from burnish.model import copy_model, signature, to_bytes
from burnish.passes.base import Context, Numerics, Pass, op_types
from burnish.target import is_own


def parse(text: str, *, opset: int = 20, weights: Mapping[str, np.ndarray] | None = None) -> ir.Model:
    """A model from ONNX text: a graph, or a whole model that starts with its `<ir_version ...>` header.

    Types of inner values are inferred where onnx can. `weights` become (or replace) initializers.
    """
    if not text.lstrip().startswith("<"):
        text = f'<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1]>\n{text}'
    proto = onnx.parser.parse_model(text)
    for name, array in (weights or {}).items():
        kept = [tensor for tensor in proto.graph.initializer if tensor.name != name]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend([*kept, onnx.numpy_helper.from_array(array, name)])
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))


def text_of(model: ir.Model) -> str:
    """The nodes of a model as ONNX text, one a line, without types and initializers' values."""
    graph = ir.to_proto(model).graph
    return "\n".join(onnx.printer.to_text(node) for node in graph.node)


def check_pass(
    pass_: Pass,
    before: str | ir.Model,
    after: str | Sequence[str] | None = None,
    *,
    count: int,
    context: Context | None = None,
    opset: int = 20,
    weights: Mapping[str, np.ndarray] | None = None,
    dims: Mapping[str, DimRange] | None = None,
    seed: int = 0,
) -> ir.Model:
    """Apply a pass to a model and assert everything a pass promises; return the rewritten model.

    Asserted: it makes `count` rewrites; the ops that remain are `after` (ONNX text of the nodes, which is
    compared line by line without white space; or a list of op types in order); a second application makes
    0 rewrites and changes no byte; with `limit=k` it makes exactly k; names, types and shapes of inputs
    and outputs are kept; the ONNX checker accepts the result; outputs match within `pass_.numerics` on
    several assignments of the dynamic dims, with onnxruntime's optimiser off.

    Raises:
        AssertionError: one of these does not hold; the message shows the graph before and after.
    """
    model = parse(before, opset=opset, weights=weights) if isinstance(before, str) else before
    original, context = copy_model(model), context or Context()
    interface = _interface(model)
    made = pass_.rewrite(model, context)
    story = f"\n--- before\n{text_of(original)}\n--- after\n{text_of(model)}\n{context.misses}"

    assert made == count, f"{pass_.name} made {made} rewrites, expected {count}.{story}"
    assert made == len(context.rewrites), f"{len(context.rewrites)} permits for {made} rewrites."
    if after is not None:
        assert _shown(model, after) == _expected(after), f"Not the expected graph.{story}"
    assert _interface(model) == interface, f"Inputs or outputs changed.{story}"
    looked_for = not pass_.looks_for.isdisjoint(op_types(original)) or not pass_.looks_for
    assert looked_for or not (made or context.misses), f"It acts on other nodes than it looks for.{story}"
    _assert_idempotent(pass_, model, context, story)
    _assert_limit(pass_, original, context, made)
    _assert_valid(model)
    _assert_same_numbers(pass_.numerics, original, model, dims, seed, story)
    return model


def _interface(model: ir.Model) -> list[tuple[str | None, object, object]]:
    values = (*model.graph.inputs, *model.graph.outputs)
    return [(value.name, value.dtype, value.shape) for value in values]


def _shown(model: ir.Model, like: str | Sequence[str]) -> list[str]:
    if isinstance(like, str):
        return _lines(text_of(model))
    return [node.op_type for node in model.graph]


def _expected(after: str | Sequence[str]) -> list[str]:
    return _lines(after) if isinstance(after, str) else list(after)


def _lines(text: str) -> list[str]:
    return ["".join(line.split()) for line in text.strip().splitlines() if line.strip()]


def _again(context: Context, limit: int | None) -> Context:
    return Context(
        target=context.target, calibrate=context.calibrate, probe=context.probe,
        compare_speed=context.compare_speed, costs=context.costs, limit=limit,
    )  # fmt: skip


def _assert_idempotent(pass_: Pass, model: ir.Model, context: Context, story: str) -> None:
    copy = copy_model(model)
    again = pass_.rewrite(copy, _again(context, None))
    assert again == 0, f"A second application made {again} rewrites.{story}\n--- again\n{text_of(copy)}"
    assert text_of(copy) == text_of(model), f"A second application changed the graph.{story}"


def _assert_limit(pass_: Pass, original: ir.Model, context: Context, made: int) -> None:
    for limit in range(made):
        copy = copy_model(original)
        part = pass_.rewrite(copy, _again(context, limit))
        assert part == limit, f"With limit={limit} it made {part} rewrites."
        assert limit or text_of(copy) == text_of(original), "It changes the model before it has leave to."
        _assert_valid(copy)


def _assert_valid(model: ir.Model) -> None:
    proto = ir.to_proto(model)
    for node in proto.graph.node:
        if is_own(node.op_type, model.graph.opset_imports.get("", 1)):
            node.domain = "com.microsoft"  # where the checker leaves it alone
    onnx.checker.check_model(proto, full_check=False)


def _assert_same_numbers(
    numerics: Numerics,
    original: ir.Model,
    model: ir.Model,
    dims: Mapping[str, DimRange] | None,
    seed: int,
    story: str,
) -> None:
    from burnish.runtime.reference import Reference

    specs = signature(original).inputs
    before, after = Reference(to_bytes(original)), Reference(to_bytes(model))
    for number, assignment in enumerate(assignments(specs, dims)):
        feeds = make_feeds(specs, assignment, seed=seed + number)
        apart = worst(before(feeds), after(feeds))
        assert apart.within(numerics.tolerance, lossy=numerics.by_norm), f"{apart} at {assignment}.{story}"
