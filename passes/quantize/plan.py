"""What to quantise, in words that fit every target; how it is written is the lowering's business.

A plan is JSON that a person may edit: set a node's `mode` to `float`, or move a tensor's range, and lower
the model with it again. Nodes are known by the name of their first output, which is unique in a graph.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Mode = Literal["float", "static", "dynamic", "weight-only"]
"""`static`: int8 with calibrated ranges; `dynamic`: int8, ranges found at run time; `weight-only`: the
constant is stored as int8 and computed in float."""

Granularity = Literal["tensor", "channel"]


class NodePlan(msgspec.Struct, frozen=True, omit_defaults=True):
    """What becomes of one node, and why."""

    value: str
    """Name of the node's first output."""
    op: str
    mode: Mode
    why: str = ""
    node: str = ""


class TensorPlan(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one tensor is stored in 8 bits; a lowering chooses signed or unsigned."""

    value: str
    role: Literal["activation", "weight", "table"]
    granularity: Granularity = "tensor"
    axis: int | None = None
    """The axis with a scale of its own for each index; only with granularity `channel`."""
    bits: int = 8
    """7 for weights whose products must not saturate on x86 CPUs without VNNI."""
    low: float | None = None
    high: float | None = None
    """The calibrated range of an activation; a weight's range is read from its values."""


class Plan(msgspec.Struct, frozen=True, omit_defaults=True):
    """A plan for the main graph of one model; nodes that it does not name stay float."""

    nodes: tuple[NodePlan, ...] = ()
    tensors: tuple[TensorPlan, ...] = ()

    def mode(self, value: str) -> Mode:
        """The mode of the node whose first output is `value`."""
        return next((node.mode for node in self.nodes if node.value == value), "float")

    def float_only(self, values: dict[str, str]) -> Plan:
        """The plan with the nodes of those values kept in float; the dict says why for each."""
        nodes = (
            msgspec.structs.replace(node, mode="float", why=values[node.value])
            if node.value in values
            else node
            for node in self.nodes
        )
        return msgspec.structs.replace(self, nodes=tuple(nodes))


def encode_plan(plan: Plan) -> bytes:
    """The plan as indented JSON; the same plan gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(plan, order="sorted"), indent=2) + b"\n"


def decode_plan(data: bytes) -> Plan:
    """Read a plan.

    Raises:
        msgspec.DecodeError: not JSON, or a field is missing or of the wrong type.
    """
    return msgspec.json.decode(data, type=Plan)
