"""What a recipe made of a model's layers: which operators were fused, and why others were not.

Layers are torch modules where the nodes say theirs, the prefixes of node names otherwise. Layers of which the
same is to be said are told as one: `model.layers.0–23.self_attn`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec
import onnx_ir as ir

from burnish.model import op_name
from burnish.modules import Grouping, ModuleTree
from burnish.passes.base import Miss, all_graphs, is_op
from burnish.passes.drop_slower import DropSlower
from burnish.passes.matching import MADE_BY
from burnish.passes.recipe import Recipe
from burnish.passes.runner import Outcome
from burnish.target import OWN_IN_DEFAULT_DOMAIN

_FUSED: Final = OWN_IN_DEFAULT_DOMAIN.keys() | {
    "Attention", "Gelu", "GroupNormalization", "LayerNormalization", "RMSNormalization", "RotaryEmbedding",
    "Swish", "TensorScatter",
}  # fmt: skip
"""Standard operators (and onnxruntime's in their domain) that stand for several simpler ones."""
_HEAVY: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Told where a pass made them."""
_ATTENTION: Final = ("lower-kv-cache", "fuse-attention")
_STEPS: Final = 4  # between a softmax and the product with the values


class Missed(msgspec.Struct, frozen=True, rename={"pass_": "pass"}):
    """A pattern that nearly fitted in each of the modules, and why it did not fire."""

    pass_: str
    op: str
    """The node at which it was found; empty: a value."""
    why: str
    count: int = 1
    """How often in each module."""


class Layer(msgspec.Struct, frozen=True):
    """Modules of which the same is to be said."""

    label: str
    """All of their paths in short, such as `model.layers.0–23.mlp`; empty: the whole model."""
    modules: tuple[str, ...]
    fused: dict[str, int]
    """How many operators of a kind each module has that stand for several simpler ones."""
    missed: tuple[Missed, ...] = ()


class Explanation(msgspec.Struct, frozen=True):
    """Every layer in which something was fused, or nearly."""

    grouped_by: Grouping
    layers: tuple[Layer, ...]
    notes: tuple[str, ...] = ()


def explain(recipe: Recipe, outcome: Outcome) -> Explanation:
    """What the passes of a recipe made of each layer; misses that a later pass made good are left out.

    Args:
        recipe: the passes.
        outcome: what running them gave.
    """
    tree, nodes = ModuleTree(outcome.model), [n for graph in all_graphs(outcome.model) for n in graph]
    fused: dict[str, Counter[str]] = {}
    missed: dict[str, Counter[Missed]] = {}
    homes = {node: tree.home([node]) for node in nodes}
    for node in nodes:
        if _is_fused(node):
            fused.setdefault(homes[node], Counter())[op_name(node)] += 1
    said = (*_standing(recipe, outcome, nodes), *_unseen(recipe, outcome, nodes), *_taken_back(nodes))
    for pass_name, miss, place in said:
        home = "" if place is None else homes[place]
        where = miss.node if tree.grouped_by == "nothing" else home
        told = Missed(pass_name, miss.op, miss.why)
        missed.setdefault(where, Counter())[told] += 1
    notes = [f"Layers are told apart by {_WORDS[tree.grouped_by]}."] if tree.grouped_by != "module" else []
    undone = [receipt.step for receipt in outcome.receipts if receipt.status == "rolled-back"]
    notes += [f"Taken back, as it changed the result or failed: {step}." for step in undone]
    order = dict.fromkeys([*(homes[node] for node in nodes), *missed])
    label = _first_and_more if tree.grouped_by == "nothing" else folded
    return Explanation(tree.grouped_by, tuple(_layers(order, fused, missed, label)), tuple(notes))


_WORDS: Final[Mapping[Grouping, str]] = {
    "module": "torch module",
    "node name": "the prefixes of node names: the nodes do not say which torch modules they come from",
    "nothing": "node: neither torch modules nor prefixes of names are known",
}


def _is_fused(node: ir.Node) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type in _FUSED:
        return True
    return node.op_type in _HEAVY and MADE_BY in node.metadata_props


def _standing(
    recipe: Recipe, outcome: Outcome, nodes: Sequence[ir.Node]
) -> Iterator[tuple[str, Miss, ir.Node | None]]:
    """What each pass missed when it ran for the last time, where the node is still there."""
    last = {pass_.name: misses for pass_, misses in zip(recipe.passes, outcome.misses, strict=True)}
    by_name = {node.name: node for node in nodes if node.name}
    by_value = {value.name: node for node in nodes for value in node.outputs if value.name}
    inputs = {value.name for value in outcome.model.graph.inputs}
    for name, misses in last.items():
        for miss in dict.fromkeys(misses):
            node = by_value.get(miss.value) or by_name.get(miss.node)
            there = miss.value in inputs if node is None else miss.op in ("", node.op_type)
            if there:
                yield name, miss, node


def _unseen(
    recipe: Recipe, outcome: Outcome, nodes: Sequence[ir.Node]
) -> Iterator[tuple[str, Miss, ir.Node | None]]:
    """Attentions in single steps that none of the passes found anything like one in."""
    names = [name for name in _ATTENTION if any(pass_.name == name for pass_ in recipe.passes)]
    said = {miss.value for misses in outcome.misses for miss in misses if miss.op == "Softmax"}
    for node in nodes if names else ():
        if is_op(node, "Softmax") and node.outputs[0].name not in said and _weighs(node.outputs[0]):
            miss = Miss(node.name or "Softmax", "no attention was recognised around it", op="Softmax")
            yield names[-1], miss, node


def _taken_back(nodes: Sequence[ir.Node]) -> Iterator[tuple[str, Miss, ir.Node | None]]:
    """The standard operators that were measured faster than a fused one."""
    for node in nodes:
        if node.metadata_props.get(MADE_BY) == DropSlower.name:
            why = "measured faster than the fused operator"
            yield DropSlower.name, Miss(node.name or node.op_type, why, op=node.op_type), node


def _weighs(weights: ir.Value) -> bool:
    """True when a few steps on a MatMul takes the value as its first operand."""
    todo = [weights]
    for _ in range(_STEPS):
        users = [use for value in todo for use in value.uses()]
        if any(is_op(node, "MatMul") and index == 0 for node, index in users):
            return True
        todo = [value for node, _ in users for value in node.outputs]
    return False


def _layers(
    order: Iterable[str],
    fused: Mapping[str, Counter[str]],
    missed: Mapping[str, Counter[Missed]],
    label: Callable[[Sequence[str]], Mapping[str, tuple[str, ...]]],
) -> Iterator[Layer]:
    groups: dict[tuple[object, ...], list[str]] = {}
    for path in order:
        if path in fused or path in missed:
            told = (tuple(sorted(fused.get(path, {}).items())), _counted(missed.get(path, {})))
            groups.setdefault(told, []).append(path)
    found = [
        Layer(name, members, dict(fused.get(members[0], {})), _counted(missed.get(members[0], {})))
        for paths in groups.values()
        for name, members in label(paths).items()
    ]
    place = {path: number for number, path in enumerate(order)}
    yield from sorted(found, key=lambda layer: place[layer.modules[0]])


def _counted(misses: Mapping[Missed, int]) -> tuple[Missed, ...]:
    return tuple(msgspec.structs.replace(miss, count=count) for miss, count in misses.items())


def _first_and_more(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return {f"{names[0]}{more}": tuple(names)}


def folded(paths: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Paths that differ in numbers only as one label: `layers.0.mlp`, `layers.1.mlp` -> `layers.0–1.mlp`."""
    rows: dict[tuple[str, ...], tuple[str, ...]] = {tuple(path.split(".")): (path,) for path in paths}
    for place in reversed(range(max(map(len, rows), default=0))):
        alike: dict[tuple[str, ...], dict[int, tuple[str, ...]]] = {}
        merged: dict[tuple[str, ...], tuple[str, ...]] = {}
        for parts, members in rows.items():
            if len(parts) > place and parts[place].isdecimal():
                key = (*parts[:place], "*", *parts[place + 1 :])
                alike.setdefault(key, {})[int(parts[place])] = members
            else:
                merged[parts] = members
        for key, numbers in alike.items():
            parts = (*key[:place], _ranges(sorted(numbers)), *key[place + 1 :])
            merged[parts] = tuple(itertools.chain.from_iterable(numbers[n] for n in sorted(numbers)))
        rows = merged
    return {".".join(parts): members for parts, members in rows.items()}


def _ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> 0–2,5"""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
