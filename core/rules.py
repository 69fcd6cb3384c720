"""A rewrite as a pattern and its replacement, for packages of others. See docs/writing-a-rule.md.

The matcher is onnxscript's (`onnxscript.rewriter.pattern`), and patterns are written as for its rules. What
is replaced, and whether it may be, is burnish's business: nodes that something else uses stay, `check` says
why not, every rewrite asks for leave, and bodies and functions are rewritten as the main graph is.

burnish's own passes match on normal forms (polynomials, views of axes, masks by meaning), which patterns
cannot say; what patterns can say is for everybody.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol, final

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import pattern as onnxscript_pattern

from burnish.errors import RecipeError
from burnish.passes.base import Context, Numerics, Pass, all_graphs, constant_of, is_op, tensor_of
from burnish.passes.matching import Scope, obstacle, scopes
from burnish.passes.shapes import Fact, Shapes
from burnish.target import Target

__all__ = ["Match", "Numerics", "Rule"]

_MOST: Final = 64  # ways to write a pattern by swapping operands of Add, Mul and the like


@dataclasses.dataclass(frozen=True)
class Rule(Pass):
    """A pass that replaces a pattern by something else; subclasses say what by what.

    Example::

        class FuseSilu(Rule):
            "Fuse x * sigmoid(x) into onnxruntime's QuickGelu."

            name = "acme-fuse-silu"
            numerics = Numerics.ROUNDING

            def pattern(self, op, x):
                return op.Mul(x, op.Sigmoid(x))

            def check(self, match):
                return None if match.dtype("x") == "FLOAT" else "QuickGelu takes float32"

            def replacement(self, op, x):
                return op.QuickGelu(x, alpha=1.0, _domain="com.microsoft")

    A subclass with options is a frozen dataclass; its fields are the options.
    """

    @abc.abstractmethod
    def pattern(self, op: Any, *values: Any, **_: Any) -> Any:
        """What is looked for: `op.Name(operand, ..., attribute=value)` for nodes, parameters for any value.

        It ends in one node; its value, or several of the pattern's, are returned. Operands may be numbers
        (constants of one element and no dims) and lists of numbers. A parameter given as an attribute stands
        for that attribute, whatever it is. Attributes that are not named must be absent, unless the node has
        `_allow_other_attributes=True`; another domain is `_domain=...`, several outputs `_outputs=2`.
        Operands of Add, Mul and other commutative operators are tried in both orders.
        """

    @abc.abstractmethod
    def replacement(self, op: Any, *values: Any, **_: Any) -> Any:
        """What stands there instead, written with the same parameters: one value for each of the pattern's.

        Operands are values, None (left out) or numpy arrays (constants, whose dtype counts). `op.target` is
        the target. The version of another domain is `_version=...` (1).
        """

    def check(self, match: Match) -> str | None:
        """Why this match is not to be replaced, in a few words; None: it is. Without this method all are."""
        return None

    @final
    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Replace the pattern wherever it may be; return how often.

        Raises:
            RecipeError: the pattern does not end in one node (RULE_PATTERN).
        """
        ways = _ways(self)
        _know_constants(model)
        done, facts = 0, functools.cache(lambda: context.shapes(model))
        for scope in scopes(model):
            for node in list(scope.graph):
                if node.graph is not None and ways.may_end_in(node):
                    done += self._apply(model, node, scope, ways, facts, context)
        return done

    def _apply(
        self, model: ir.Model, node: ir.Node, scope: Scope, ways: _Ways, facts: Facts, context: Context
    ) -> bool:
        found = [
            (each, Match(node, dict(each.bindings), scope.opset, context.target, facts))
            for each in ways.matches(model, node)
        ]
        reasons = [obstacle(each.nodes, each.outputs) or self.check(match) for each, match in found]
        if None not in reasons:
            for why in reasons[:1]:
                context.miss(node, why or "")
            return False
        if not context.permit(node):
            return False
        (chosen, match), shapes = found[reasons.index(None)], facts()
        maker = _Maker(scope, node, context.target)
        results = maker.results(self.replacement(maker, **ways.taken(match.bindings)), len(chosen.outputs))
        nodes = [*(each for each in chosen.nodes if each is not node), node]
        known = [shapes[value] for value in chosen.outputs]
        scope.replace(nodes, maker.nodes, dict(zip(chosen.outputs, results, strict=True)), self.name)
        maker.import_domains()
        for made in maker.nodes:
            shapes.add(made)
        for value, fact in zip(results, known, strict=True):
            shapes[value] = fact
        return True


class Facts(Protocol):
    """Makes the facts of a model when they are first asked for."""

    def __call__(self) -> Shapes:
        """The facts."""


@final
@dataclasses.dataclass(frozen=True)
class Match:
    """A place where the pattern fits, for `check`. Names are those of the pattern's parameters."""

    node: ir.Node
    """The last node of the pattern."""
    bindings: Mapping[str, ir.Value | ir.Attr | None]
    """What each parameter stands for."""
    opset: int
    """Version of the standard operators here."""
    target: Target
    """What the model is optimised for; `match.target.has_kernel(domain, op_type)` asks for a kernel."""
    _facts: Facts

    def __getitem__(self, name: str) -> ir.Value:
        """The value of a parameter.

        Raises:
            KeyError: it stands for none, or for an attribute.
        """
        value = self.bindings[name]
        if not isinstance(value, ir.Value):
            raise KeyError(name)
        return value

    def fact(self, name: str) -> Fact:
        """What is provably known of a value: `dtype`, `shape` (dims, with names for dynamic ones), `rank`."""
        return self._facts()[self[name]]

    def dtype(self, name: str) -> str:
        """The dtype of a value as ONNX spells it, `FLOAT` or `INT64`; empty: not known."""
        dtype = self.fact(name).dtype
        return "" if dtype is None else dtype.name

    def shape(self, name: str) -> tuple[int | str, ...] | None:
        """The dims of a value; None: unknown. Dynamic ones have names, and those of one name are equal."""
        shape = self.fact(name).shape
        return None if shape is None else tuple(str(d) if d.size is None else d.size for d in shape)

    def constant(self, name: str, max_bytes: int = 1 << 20) -> np.ndarray | None:
        """The array of a constant; None where it is none, or larger."""
        return constant_of(self[name], max_bytes=max_bytes)

    def attribute(self, name: str) -> Any:
        """The value of an attribute: a number, a text or a tuple of those; None where it is not there."""
        attribute = self.bindings[name]
        return attribute.value if isinstance(attribute, ir.Attr) else None


@final
class _Ways:
    """A pattern, in every order of the operands of commutative operators."""

    def __init__(
        self, rules: Sequence[Any], last: tuple[str, str] | None, replacement: Callable[..., Any]
    ) -> None:
        self._rules, self._last = rules, last
        self._parameters = inspect.signature(replacement).parameters
        kinds = {each.kind for each in self._parameters.values()}
        self._takes_all = inspect.Parameter.VAR_KEYWORD in kinds

    def may_end_in(self, node: ir.Node) -> bool:
        """True when the last node of the pattern may be like that."""
        return self._last is None or self._last == (node.domain, node.op_type)

    def taken(self, bindings: Mapping[str, Any]) -> dict[str, Any]:
        """Of what was bound, what the replacement has a parameter for (outputs may have names, too)."""
        return {name: v for name, v in bindings.items() if self._takes_all or name in self._parameters}

    def matches(self, model: ir.Model, node: ir.Node) -> Iterator[Any]:
        """onnxscript's MatchResults, where the pattern is there."""
        for rule in self._rules:
            found = rule.match(model, node.graph, node, check_nodes_are_removable=False)
            if found and not any(_may_change(value) for value in found.value_bindings.values()):
                yield found


def _know_constants(model: ir.Model) -> None:
    """Let the outputs of Constant nodes say what they hold, as the matcher reads it there."""
    for graph in all_graphs(model):
        for node in graph:
            if is_op(node, "Constant") and node.outputs[0].const_value is None:
                node.outputs[0].const_value = tensor_of(node.outputs[0])


def _may_change(value: object) -> bool:
    """True for an input with a default, which the matcher takes for a constant."""
    return isinstance(value, ir.Value) and value.is_graph_input() and value.is_initializer()


def _ways(rule: Rule) -> _Ways:
    written = onnxscript_pattern.RewriteRule(_strict(rule.pattern), rule.replacement, name=rule.name)
    graph = written._target_pattern
    if not graph.has_single_output_node:
        raise RecipeError(
            f"The pattern of {rule.name!r} ends in {len(graph.output_nodes)} nodes; it has to end in one.",
            "Write a rule for each, or let one of them read what the others make.",
            code="RULE_PATTERN",
        )
    known = graph.output_node.op_identifier()
    rules = written.commute() if _swaps(graph) else [written]
    last = None if known is None else known[:2]
    return _Ways(rules if len(rules) <= _MOST else [written], last, rule.replacement)


def _swaps(graph: Iterable[Any]) -> bool:
    """onnxscript swaps operands of two; Max, Sum and the like may have more."""
    return all(len(node.inputs) == 2 or str(node.op) not in ("Max", "Mean", "Min", "Sum") for node in graph)


def _strict(pattern: Callable[..., Any]) -> Callable[..., Any]:
    """The same, but nodes must not have attributes that the pattern does not name."""

    def strict(op: Any, *values: Any) -> Any:
        return pattern(_StrictOps(op), *values)

    strict.__signature__ = inspect.signature(pattern)  # type: ignore[attr-defined]
    return strict


@final
class _StrictOps:
    def __init__(self, op: Any) -> None:
        self._op = op

    def __getattr__(self, name: str) -> Any:
        return functools.partial(getattr(self._op, name), _allow_other_attributes=False)


@final
class _Maker:
    """The `op` of a replacement: `op.Name(...)` makes a node and returns its value, or its values."""

    def __init__(self, scope: Scope, before: ir.Node, target: Target) -> None:
        self._scope, self._before = scope, before
        self._wish = before.outputs[0].name
        self.target = target
        self.nodes: list[ir.Node] = []
        self._domains: dict[str, int] = {}

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if op_type.startswith("_"):
            raise AttributeError(op_type)
        return functools.partial(self._make, op_type)

    def _make(
        self,
        op_type: str,
        *operands: ir.Value | np.ndarray | None,
        _domain: str = "",
        _version: int = 1,
        _outputs: int = 1,
        **attributes: Any,
    ) -> ir.Value | tuple[ir.Value, ...]:
        inputs = [self._operand(each) for each in operands]
        kept = {name: value for name, value in attributes.items() if value is not None}
        node = ir.node(op_type, inputs, kept, domain=_domain, num_outputs=_outputs)
        for value in node.outputs:
            value.name = self._scope.fresh(f"{self._wish}_{op_type}")
        self.nodes.append(node)
        if _domain not in ("", "ai.onnx"):
            self._domains[_domain] = _version
        return node.outputs[0] if _outputs == 1 else tuple(node.outputs)

    def _operand(self, operand: ir.Value | np.ndarray | None) -> ir.Value | None:
        if operand is None or isinstance(operand, ir.Value):
            return operand
        if isinstance(operand, np.ndarray | np.generic):
            return self._scope.constant(self._before, f"{self._wish}_constant", np.asarray(operand))
        raise TypeError(f"an operand is a {type(operand).__name__}: give a value, None or a numpy array")

    def results(self, returned: Any, count: int) -> list[ir.Value]:
        """What the replacement returned; a value that is not its own, or there twice, behind an Identity."""
        values = list(returned) if isinstance(returned, list | tuple) else [returned]
        if len(values) != count or not all(isinstance(value, ir.Value) for value in values):
            raise ValueError(f"the replacement is to return {count} value(s), as the pattern does")
        made = {value for node in self.nodes for value in node.outputs}
        found: list[ir.Value] = []
        for value in values:
            own = value in made and value not in found
            found.append(value if own else self._make("Identity", value))  # type: ignore[arg-type]
        return found

    def import_domains(self) -> None:
        """Let the graph import the domains of the new nodes.

        Raises:
            ValueError: it has one in another version.
        """
        imports = self._scope.root.opset_imports
        for domain, version in self._domains.items():
            if imports.setdefault(domain, version) != version:
                raise ValueError(f"the graph has {domain} in version {imports[domain]}, not {version}")
