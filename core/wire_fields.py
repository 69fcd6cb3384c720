"""The fields of ONNX's messages that a walk over their bytes looks at. Source: onnx/onnx.proto, IR 13."""

from __future__ import annotations

from typing import Final

TEXT: Final = "text"
# Message kind -> field number -> kind of the field. What is not listed is skipped.
FIELDS: Final[dict[str, dict[int, str]]] = {
    "model": {
        2: TEXT, 3: TEXT, 4: TEXT, 6: TEXT, 7: "graph", 8: "opset", 14: "entry", 20: "training",
        25: "function",
    },
    "graph": {
        1: "node", 2: TEXT, 5: "tensor", 10: TEXT, 11: "value", 12: "value", 13: "value",
        14: "annotation", 15: "sparse", 16: "entry",
    },
    "node": {
        1: TEXT, 2: TEXT, 3: TEXT, 4: TEXT, 5: "attribute", 6: TEXT, 7: TEXT, 8: TEXT, 9: "entry",
    },
    "attribute": {
        1: TEXT, 5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 13: TEXT, 14: "type", 15: "type",
        21: TEXT, 22: "sparse", 23: "sparse",
    },
    "function": {
        1: TEXT, 4: TEXT, 5: TEXT, 6: TEXT, 7: "node", 8: TEXT, 9: "opset", 10: TEXT,
        11: "attribute", 12: "value", 13: TEXT, 14: "entry",
    },
    "sparse": {1: "tensor", 2: "tensor"},
    "training": {1: "graph", 2: "graph", 3: "entry", 4: "entry"},
    "value": {1: TEXT, 2: "type", 3: TEXT, 4: "entry"},
    "type": {
        1: "tensor_type", 4: "holder", 5: "map", 6: TEXT, 7: "entry", 8: "tensor_type", 9: "holder",
    },
    "holder": {1: "type"},
    "map": {2: "type"},
    "tensor_type": {2: "shape"},
    "shape": {1: "dim"},
    "dim": {2: TEXT, 3: TEXT},
    "annotation": {1: TEXT, 2: "entry"},
    "entry": {1: TEXT, 2: TEXT},
}  # fmt: skip
# Protobuf merges a singular message that occurs twice, and no reader does it alike: refused.
ONCE: Final = {
    "model": {7}, "attribute": {5, 6, 14, 22}, "sparse": {1, 2}, "training": {1, 2}, "value": {2},
    "tensor_type": {2},
}  # fmt: skip
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# The same fields by the byte that they begin with, where that is one byte.
USUAL: Final = {
    kind: {number << 3 | BYTES: inner for number, inner in fields.items() if number < 16}
    for kind, fields in FIELDS.items()
}
REPEATED: Final = frozenset({"entry", "type", "attribute"})
NAMED: Final = frozenset({"node", "value", "function"})
LABELLED: Final = frozenset({"node", "attribute", "sparse", "value", "type"})
