"""Where int8 flows: the heavy nodes of a graph, and the ops between them that can stay in int8."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import final

import onnx_ir as ir

from burnish.passes.base import Context
from burnish.passes.quantize import find
from burnish.target import QdqRules


@final
@dataclasses.dataclass(frozen=True)
class Site:
    """One place that becomes int8."""

    nodes: tuple[ir.Node, ...]
    """The node, and the Add or Relu that belongs to it."""
    inputs: tuple[ir.Value, ...]
    """The activations that it reads as int8."""
    output: ir.Value
    rounded: bool
    """The output is rounded to int8, so that its readers may be int8 without a pair of their own."""
    weight: ir.Value | None = None
    axis: int = 0
    """The weight's axis of the output channels."""

    @property
    def key(self) -> str:
        """The name that the plan knows the site by."""
        return self.nodes[0].outputs[0].name or ""

    @property
    def ranged(self) -> tuple[ir.Value, ...]:
        """The values whose ranges the site needs; a copy hands on the range of its input."""
        own = self.rounded and self.nodes[0].op_type not in find.COPIES
        return (*self.inputs, self.output) if own else self.inputs


def heavy_site(node: ir.Node, rules: QdqRules, context: Context, *, attention: bool) -> Site | None:
    """The Linear, Conv or (if asked) attention MatMul at `node`."""
    if linear := find.linear_at(node, context):
        weight, axis = linear.weight, linear.axis
        return Site(linear.nodes, (linear.x,), linear.output, rules.linear_output, weight, axis)
    conv = find.conv_at(node, context)
    if conv and node.inputs[0] is not None:
        nodes = (node,) if conv.activation is None else (node, conv.activation)
        return Site(nodes, (node.inputs[0],), conv.output, rules.conv_output, conv.weight, 0)
    if attention and find.is_activation_matmul(node):
        inputs = tuple(value for value in node.inputs if value is not None)
        return Site((node,), inputs, node.outputs[0], rounded=False)
    return None


def joined(heavy: Sequence[Site], nodes: Sequence[ir.Node], rules: QdqRules) -> list[Site]:
    """Those of `nodes` (in graph order) that int8 flows through, from a rounded output to an int8 reader."""
    if not rules.conv_output:
        return []
    by_node = {site.nodes[0]: site for site in heavy}
    rounded = {site.output for site in heavy if site.rounded}
    covered = {node for site in heavy for node in site.nodes}
    found = []
    for node in nodes:
        site = None if node in covered or node in by_node else _light_site(node, rounded)
        if site is not None:
            found.append(site)
            rounded.add(site.output)
            covered.update(site.nodes)
    return _wanted(found, heavy)


def _light_site(node: ir.Node, rounded: set[ir.Value]) -> Site | None:
    first = node.inputs[0] if node.inputs else None
    if node.domain not in ("", "ai.onnx") or first not in rounded or first is None:
        return None
    if node.op_type in find.COPIES and len(node.outputs) == 1:
        return Site((node,), (first,), node.outputs[0], rounded=True)
    if node.op_type not in find.JOINS or not all(value in rounded for value in node.inputs):
        return None
    activation = find.folded_activation(node)
    nodes = (node,) if activation is None else (node, activation)
    inputs = tuple(dict.fromkeys(value for value in node.inputs if value is not None))
    return Site(nodes, inputs, nodes[-1].outputs[0], rounded=True)


def _wanted(light: Sequence[Site], heavy: Sequence[Site]) -> list[Site]:
    """Those whose output an int8 site reads; without one, rounding it is a loss."""
    read = {value for site in heavy for value in site.inputs}
    kept = []
    for site in reversed(light):
        if site.output in read:
            kept.append(site)
            read.update(site.inputs)
    return kept[::-1]


def regions(sites: Iterable[Site]) -> list[list[Site]]:
    """Sites that hand int8 to each other, in graph order: each group is int8 together or not at all."""
    group_of: dict[ir.Value, list[Site]] = {}
    groups: list[list[Site]] = []
    for site in sites:
        merged = [site]
        feeding = {id(g): g for v in site.inputs if (g := group_of.get(v)) is not None}
        for group in feeding.values():
            merged = group + merged
        groups = [group for group in groups if id(group) not in feeding] + [merged]
        for member in merged:
            if member.rounded:
                group_of[member.output] = merged
    return groups
