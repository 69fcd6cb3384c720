"""A graph from one opset to a higher one, by the converters that exist.

onnx's own converter knows every opset from 7 on, bodies of If, Loop and Scan included, but drops metadata and
holds the whole model in one protobuf; it is given the graph without its large weights. onnxscript's works on
the graph in place from opset 18 on, and knows steps that onnx's lacks (GroupNormalization 20 to 21).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Final, final

import onnx
import onnx.version_converter
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import version_converter

from burnish.errors import ExportError, shown
from burnish.model import copy_model
from burnish.weights import SMALLEST_EXTERNAL

_NO_ADAPTER: Final = re.compile(r"No Adapter (?:From|To) Version \$?(\d+) for (\w+)")
_IN_PLACE_FROM: Final = 18  # the first opset that onnxscript's converter starts from
_NO_INPUTS_BEFORE: Final = 4  # the IR version from which on initializers need not be inputs


@final
@dataclasses.dataclass(frozen=True)
class Conversion:
    """A model at the asked opset, and how it got there."""

    model: ir.Model
    before: int
    how: str
    notes: tuple[str, ...]


def conversions(model: ir.Model, opset: int) -> Iterator[Conversion]:
    """What each converter makes of a model that onnx's checker accepts; the best one first.

    Args:
        model: stays as it is.
        opset: the version of the default domain that is asked for.

    Raises:
        ExportError: it is lower than the model's, or no converter knows an operator (EXPORT_OPSET).
    """
    before = model.graph.opset_imports.get("", 1)
    if opset < before:
        raise _refused(
            f"The model has opset {before}, which is above {opset}; burnish does not convert downwards.",
            f"Ask for --opset {before} or higher, or export the model again at opset {opset}.",
        )
    if opset == before:
        yield Conversion(copy_model(model), before, "copied", (f"opset {before}, as it was",))
        return
    accepted = not _complaint(model)
    failures: list[tuple[str, str]] = []
    made = 0
    for how, convert in _converters(before):
        try:
            found = _converted(model, opset, convert)
        except Exception as error:  # noqa: BLE001 - converters fail with any class; the next one comes then
            failures.append((how, str(error)))
            continue
        if accepted and (why := _complaint(found)):
            failures.append((how, why))
            continue
        made += 1
        note = f"opset {before} -> {opset} by {how}'s converter"
        functions = [f"functions inlined: {len(model.functions)}"] if model.functions else []
        yield Conversion(found, before, how, (note, *functions))
    if not made:
        raise _unconverted(model, before, opset, failures)


def _converters(before: int) -> list[tuple[str, Callable[[ir.Model, int], ir.Model]]]:
    through_onnx = ("onnx", _by_onnx)
    return [("onnxscript", _by_onnxscript), through_onnx] if before >= _IN_PLACE_FROM else [through_onnx]


def _converted(model: ir.Model, opset: int, convert: Callable[[ir.Model, int], ir.Model]) -> ir.Model:
    copy = copy_model(model)
    if copy.functions:
        common.InlinePass()(copy)
    if (copy.ir_version or 0) < _NO_INPUTS_BEFORE:
        inner = [value for value in copy.graph.inputs if value.is_initializer()]
        for value in inner:
            copy.graph.inputs.remove(value)
        copy.ir_version = _NO_INPUTS_BEFORE
    found = convert(copy, opset)
    found.graph.opset_imports[""] = opset
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in found.opset_imports.items()
               if domain in ("", "ai.onnx.ml")]  # fmt: skip
    found.ir_version = max(model.ir_version or 0, onnx.helper.find_min_ir_version_for(imports))
    found.doc_string, found.graph.doc_string = model.doc_string, model.graph.doc_string
    found.metadata_props.update(model.metadata_props)
    return found


def _by_onnxscript(model: ir.Model, opset: int) -> ir.Model:
    version_converter.convert_version(model, opset)
    for node in model.graph.all_nodes():
        node.version = None  # one version for the whole graph again
    return model


def _by_onnx(model: ir.Model, opset: int) -> ir.Model:
    """Large weights become inputs for the time of the conversion: only their shapes are looked at."""
    large = _light(model)
    origins = {value.name: node for node in model.graph.all_nodes() for value in node.outputs if value.name}
    proto = onnx.version_converter.convert_version(ir.to_proto(model), opset)
    found: ir.Model = ir.from_proto(proto)
    for value in list(found.graph.inputs):
        if value.name in large:
            found.graph.inputs.remove(value)
            value.const_value = large[value.name]
            found.graph.register_initializer(value)
    for node in found.graph.all_nodes():
        before = next((origins[v.name] for v in node.outputs if v.name in origins), None)
        if before is not None:
            node.metadata_props.update(before.metadata_props)
    return found


def _light(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Turn, in place, the large initializers of the main graph into inputs; return them by name."""
    large: dict[str, ir.TensorProtocol] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.nbytes < SMALLEST_EXTERNAL:
            continue
        large[name] = tensor
        value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
        model.graph.initializers.pop(name)
        value.const_value = None
        if value not in model.graph.inputs:
            model.graph.inputs.append(value)
    return large


def _complaint(model: ir.Model) -> str:
    """What onnx's checker says against a model (without its large weights); empty when it is content."""
    copy = copy_model(model)
    _light(copy)
    try:
        onnx.checker.check_model(ir.to_proto(copy))
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        return str(error)
    return ""


def _unconverted(model: ir.Model, before: int, opset: int, failures: list[tuple[str, str]]) -> ExportError:
    for _, text in failures:
        if found := _NO_ADAPTER.search(text):
            version, op = found.groups()
            where = next((node for node in model.graph.all_nodes() if node.op_type == op), None)
            node = f" (node {shown(where.name)!r})" if where is not None and where.name else ""
            return _refused(
                f"No converter takes {op}{node} from opset {before} to {opset}: nothing is known beyond "
                f"its version {version}.",
                f"Replace {op} in the source by its successor and export again, or ask for a lower --opset.",
            )
    said = "; ".join(f"{how}: {next(iter(text.splitlines()), '')}" for how, text in failures)
    return _refused(
        f"No converter takes the model from opset {before} to {opset}: {shown(said)}",
        "Ask for another --opset, or export the model again from its source.",
    )


def _refused(what: str, hint: str) -> ExportError:
    return ExportError(what, hint, code="EXPORT_OPSET")
