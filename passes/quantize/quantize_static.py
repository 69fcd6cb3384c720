"""Linear and Conv with calibrated ranges: y = dequantised(x_u8) @ dequantised(w_s8) + dequantised(b_s32)"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Final, final

import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, Range, all_graphs
from burnish.passes.quantize import find, flow
from burnish.passes.quantize.exclude import check_exclude, is_excluded
from burnish.passes.quantize.find import pair_of
from burnish.passes.quantize.flow import Site
from burnish.passes.quantize.gate import speedups
from burnish.passes.quantize.lower_qdq import ANY_RULES, lower
from burnish.passes.quantize.plan import Granularity, NodePlan, Plan, TensorPlan
from burnish.passes.quantize.tables import table_plan

_QDQ_OPSET: Final = 10
_CHANNEL_OPSET: Final = 13  # DequantizeLinear has no axis before


@final
@dataclasses.dataclass(frozen=True)
class QuantizeStatic(Pass):
    """Quantise to int8 with ranges from calibration data, written as the target really runs it.

    Linear (MatMul or Gemm with constant weight, its bias included) and Conv become int8; so do, between
    Convs, residual Adds, Concat and ops that only move elements. LayerNorm, Gelu and Softmax stay float.
    A large embedding table is stored as int8 and looked up before it is dequantised. Where the context
    can time models, each distinct region is timed in float and in int8 and stays float when int8 is not
    faster. Source of the rules: reference/compression.md section 4.
    """

    name: ClassVar[str] = "quantize-static"
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    weights: Granularity = "channel"
    """One scale for each output channel of a weight, or one for the tensor (needs only opset 10)."""
    exclude: str = ""
    """Regular expression; nodes whose whole name matches stay float."""
    embeddings: bool = True
    """Store large lookup tables as int8, one scale a column."""
    attention: bool = False
    """Quantise MatMuls of two activations (the products inside attention) too."""
    reduce_range: bool = False
    """7-bit weights: for x86 CPUs without VNNI, whose int8 kernels add pairs of products in 16 bits."""
    min_speedup: float = 1.0
    """A region stays float when int8 is less than this many times faster."""

    def __post_init__(self) -> None:
        check_exclude(self.name, self.exclude)

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many nodes became int8."""
        return lower(model, self.plan(model, context), context)

    def plan(self, model: ir.Model, context: Context) -> Plan:
        """What would become int8, and why the rest would not; `lower_qdq.lower` writes it."""
        kept = [node for node in model.graph if not is_excluded(node, self.exclude)]
        tables = table_plan(kept) if self.embeddings and _opset(model) >= _CHANNEL_OPSET else Plan()
        heavy = self._heavy(model, kept, context)
        if not heavy or context.target.qdq is None:
            return tables
        light = flow.joined(heavy, kept, context.target.qdq)
        ranges = _ranges(model, [*heavy, *light], context)
        heavy = [site for site in heavy if _is_calibrated(site, ranges, context)]
        light = flow.joined(heavy, kept, context.target.qdq)
        sites = _in_order([*heavy, *light], model.graph)
        static = _static_plan(sites, ranges, self)
        plan = self._faster(model, sites, static, context)
        return Plan((*tables.nodes, *plan.nodes), (*tables.tensors, *plan.tensors))

    def _heavy(self, model: ir.Model, kept: Sequence[ir.Node], context: Context) -> list[Site]:
        """Linears and Convs of the main graph; those elsewhere, and near misses, are said."""
        rules, found = context.target.qdq or ANY_RULES, []
        for graph in all_graphs(model):
            for node in kept if graph is model.graph else graph:
                find.note_packed(node, context)
                site = flow.heavy_site(node, rules, context, attention=self.attention)
                if site and graph is not model.graph:
                    context.miss(node, "Only the main graph is calibrated; quantize-dynamic is for bodies.")
                elif site:
                    found.append(site)
        if found and (why := self._obstacle(model, context)):
            context.miss(found[0].nodes[0], why)
            return []
        return found

    def _obstacle(self, model: ir.Model, context: Context) -> str:
        """Why nothing here can have a calibrated range in int8; empty when it can."""
        if context.target.qdq is None:
            return f"Target {context.target.name} has no int8 kernels for calibrated activations."
        needed = _CHANNEL_OPSET if self.weights == "channel" else _QDQ_OPSET
        if _opset(model) < needed:
            return f"Opset {_opset(model)} has no QDQ per {self.weights}; convert to {needed} or later."
        return ""

    def _faster(self, model: ir.Model, sites: Sequence[Site], plan: Plan, context: Context) -> Plan:
        """The plan, with the regions in float that were timed and found slower."""
        groups = [_in_order(group, model.graph) for group in flow.regions(sites)]
        cuts = [[node for site in group for node in site.nodes] for group in groups]

        def rewrite(region: ir.Model) -> None:
            lower(region, plan, Context(context.target))

        slow: dict[str, str] = {}
        for group, speed in zip(groups, speedups(model, cuts, rewrite, context), strict=True):
            if speed is not None and speed < self.min_speedup:
                why = f"int8 was measured below {self.min_speedup:g} × the speed of float, so it stays float."
                context.miss(group[0].nodes[0], why)
                slow |= dict.fromkeys((site.key for site in group), why)
        return plan.float_only(slow)


def _opset(model: ir.Model) -> int:
    return model.graph.opset_imports.get("", 1)


def _ranges(model: ir.Model, sites: Sequence[Site], context: Context) -> Mapping[str, Range]:
    values = {value.name or "": value for site in sites for value in site.ranged}
    names = [name for name, value in values.items() if pair_of(value) is None]
    if context.calibrate is None:
        context.miss(sites[0].nodes[0], "There is no calibration data, so nothing has a range.")
        return {}
    return context.calibrate(model, names)


def _is_calibrated(site: Site, ranges: Mapping[str, Range], context: Context) -> bool:
    for value in site.ranged:
        if (value.name or "") not in ranges and pair_of(value) is None:
            if context.calibrate is not None:
                context.miss(site.nodes[0], f"No calibrated range for {value.name!r}.")
            return False
    return True


def _in_order(sites: Iterable[Site], graph: ir.Graph) -> list[Site]:
    order = {node: index for index, node in enumerate(graph)}
    return sorted(sites, key=lambda site: order[site.nodes[0]])


def _static_plan(sites: Sequence[Site], ranges: Mapping[str, Range], options: QuantizeStatic) -> Plan:
    tensors: dict[str, TensorPlan] = {}
    for site in sites:
        for value in site.ranged:
            name = value.name or ""
            if name in ranges:
                low, high = ranges[name].low, ranges[name].high
                tensors[name] = TensorPlan(name, "activation", low=low, high=high)
        if site.weight is not None:
            name = site.weight.name or ""
            axis = site.axis if options.weights == "channel" else None
            bits = 7 if options.reduce_range else 8
            tensors[name] = TensorPlan(name, "weight", options.weights, axis, bits)
    return Plan(tuple(_node_plan(site) for site in sites), tuple(tensors.values()))


def _node_plan(site: Site) -> NodePlan:
    node = site.nodes[0]
    return NodePlan(site.key, node.op_type, "static", node=node.name or "")
