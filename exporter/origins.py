"""Where each node comes from, out of what torch 2.13's exporter writes into its metadata.

torch gives every node `name_scopes` (paths of the modules around it, then the name of its fx node),
`class_hierarchy` (their classes, then the fx target) and `stack_trace`, with absolute paths. What is kept is
short and says nothing of the machine: see `burnish.provenance`.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import onnx_ir as ir

from burnish.passes.base import bodies
from burnish.provenance import Origin, origins, write_origins

SCOPES: Final = "pkg.torch.onnx.name_scopes"
CLASSES: Final = "pkg.torch.onnx.class_hierarchy"
_STACK: Final = "pkg.torch.onnx.stack_trace"
_NO_MODULE: Final = "_empty_nn_module_stack_from_metadata_hook"  # torch's own nodes: sizes, checks
_NOT_THE_MODULES: Final = ("torch/", "burnish/exporter/")  # torch's own lines, and what stands in for them
_FRAME: Final = re.compile(r'File "([^"\n]+)", line (\d+), in ([^\n]+)')


def note_origins(model: ir.Model) -> None:
    """Write the origin of every node of an export (see `burnish.provenance`), those in bodies included.

    What torch made for no module (sizes of inputs, checks) belongs to the root module. torch says nothing
    of the modules inside a branch or a loop body: those nodes belong to the module of the node around them.
    """
    root = next((o for n in model.graph.all_nodes() if (o := _outermost(n.metadata_props))), Origin(""))
    _note(model.graph, root)
    for function in model.functions.values():
        _note(function, root)


def _note(graph: ir.Graph | ir.Function, around: Origin) -> None:
    for node in graph:
        origin = _origin(node.metadata_props, around)
        if not origins(node.metadata_props):
            write_origins(node.metadata_props, [origin])
        for body in bodies(node):
            _note(body, origin)


def _origin(metadata: Mapping[str, str], around: Origin) -> Origin:
    scopes, classes = read_list(metadata, SCOPES), read_list(metadata, CLASSES)
    if not scopes or len(scopes) != len(classes) or _NO_MODULE in scopes:
        return around
    source = source_of(metadata.get(_STACK, ""))
    if len(scopes) == 1:  # in a branch or a loop body
        return dataclasses.replace(around, source=source or around.source)
    return Origin(scopes[-2], _class(classes[-2]), source)


def _outermost(metadata: Mapping[str, str]) -> Origin | None:
    scopes, classes = read_list(metadata, SCOPES), read_list(metadata, CLASSES)
    known = len(scopes) > 1 and len(scopes) == len(classes) and scopes[0] == ""
    return Origin("", _class(classes[0])) if known else None


def read_list(metadata: Mapping[str, str], key: str) -> Sequence[str]:
    """A list that torch wrote with repr; empty where it is not one."""
    try:
        found = ast.literal_eval(metadata.get(key, "[]"))
    except (ValueError, SyntaxError):
        return []
    return [str(item) for item in found] if isinstance(found, list) else []


def _class(name: str) -> str:
    return name.rpartition(".")[2]


def source_of(stack: str) -> str:
    """The innermost line of a stack trace that is the module's own; where none is, the innermost."""
    frames = [match.groups() for match in _FRAME.finditer(stack) if not match[1].startswith("<")]
    places = [(_relative(file), line, function) for file, line, function in frames]
    if not places:
        return ""
    own = [place for place in places if not place[0].startswith(_NOT_THE_MODULES)]
    file, line, function = (own or places)[-1]
    return f"{file}:{line} in {function}"


@functools.cache
def _relative(file: str) -> str:
    """The file from its outermost package on: the same wherever that package is installed."""
    path = Path(file)
    if not path.is_absolute():
        return path.as_posix()
    top = path.parent
    while (top / "__init__.py").is_file():
        top = top.parent
    return path.relative_to(top).as_posix()
