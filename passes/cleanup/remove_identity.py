"""Identity(x)  ->  x"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, final

import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, all_graphs, is_op
from burnish.passes.editing import Editor


@final
@dataclasses.dataclass(frozen=True)
class RemoveIdentity(Pass):
    """Remove Identity nodes.

    Kept: an Identity that joins two names that both must stay (an input or initializer, and an output),
    or whose source lives in an outer graph while its result is an output of the inner one.
    """

    name: ClassVar[str] = "remove-identity"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    looks_for: ClassVar[frozenset[str]] = frozenset({"Identity"})

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many Identity nodes were removed."""
        editor = Editor(model)
        nodes = [node for graph in all_graphs(model) for node in graph if is_op(node, "Identity")]
        return sum(_remove(node, editor, context) for node in nodes)


def _remove(node: ir.Node, editor: Editor, context: Context) -> bool:
    source, result = node.inputs[0], node.outputs[0]
    if source is None or not editor.can_replace(result, source) or not context.permit(node):
        return False
    editor.replace(result, source)
    return True
