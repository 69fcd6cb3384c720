"""What a pass is: a frozen dataclass with a name, a numeric promise and `rewrite(model, context) -> int`.

How to write one: copy `passes/cleanup/remove_identity.py`, add its line to `passes/registry.py` and its
test. Visit every graph with `all_graphs(model)`, so that subgraphs and functions are rewritten too; ask
`context.permit(...)` as the last step before each change, so that a wrong rewrite can be bisected; say
`context.miss(...)` when a pattern almost fits, so that the user learns why it did not fire.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, final

import numpy as np
import onnx_ir as ir

from burnish.costs import Costs, Ratio
from burnish.passes.graphs import Census as Census
from burnish.passes.graphs import Names as Names
from burnish.passes.graphs import all_graphs as all_graphs
from burnish.passes.graphs import bodies as bodies
from burnish.passes.graphs import is_templated as is_templated
from burnish.passes.graphs import nested as nested
from burnish.passes.graphs import op_types as op_types
from burnish.passes.graphs import value_names as value_names
from burnish.target import TARGETS, Target
from burnish.weights import byte_size

if TYPE_CHECKING:
    from burnish.passes.shapes import Shapes

Arrays = Mapping[str, np.ndarray]
"""Arrays by value name."""


class Numerics(enum.Enum):
    """How far a pass may move the outputs, against the model before it.

    Floating outputs are compared by `max |a - b| <= tolerance * max(1, max |b|)`, so the tolerance is
    relative to the largest magnitude in the output. LOSSY is judged by the relative L2 norm
    `|a - b| / |b|` instead. Integer and boolean outputs must be equal, except under LOSSY.

    No pass declares COARSE: it is what ROUNDING means on a model that rounds to integers (`on`), where the
    last bit of a float decides between two integers. It is judged as LOSSY is.
    """

    EXACT = 0.0
    ROUNDING = 1e-4
    COARSE = 0.1
    LOSSY = 0.35

    @property
    def tolerance(self) -> float:
        """The declared bound; see the class."""
        return float(self.value)

    @property
    def by_norm(self) -> bool:
        """Judged by the relative L2 norm, not by the largest difference."""
        return self in (Numerics.COARSE, Numerics.LOSSY)

    def on(self, model: ir.Model) -> Numerics:
        """What a pass that declares this can keep on that model."""
        return self.among(op_types(model)) if self is Numerics.ROUNDING else self

    def among(self, operators: Iterable[str]) -> Numerics:
        """`on` a model of those operators."""
        return Numerics.COARSE if self is Numerics.ROUNDING and any(map(_rounds, operators)) else self


def _rounds(operator: str) -> bool:
    """True for an op that makes integers of floats by a scale: QuantizeLinear, DynamicQuantizeMatMul ..."""
    return operator.startswith(("Quantize", "DynamicQuantize", "QLinear"))


@final
@dataclasses.dataclass(frozen=True)
class Range:
    """The calibrated range of a float tensor: low <= x <= high."""

    low: float
    high: float


@final
@dataclasses.dataclass(frozen=True)
class Rewrite:
    """One change that a pass made: its place, in the words of the graph."""

    node: str
    """Name of the node (or its op type when it has none)."""
    value: str
    """Name of the first value that the change produces."""


@final
@dataclasses.dataclass(frozen=True)
class Miss:
    """A place where a pattern nearly fitted, and why it did not fire."""

    node: str
    """Name of the node (or its op type when it has none)."""
    why: str
    value: str = "?"
    """Name of the first value that the node makes."""
    op: str = ""
    """The node's op type; empty where the place is a value."""


@final
@dataclasses.dataclass
class Context:
    """What the orchestration hands to a pass: plain values and callables, never a library.

    The callables are None where nobody can run the model (a pure graph rewrite in a notebook, a test);
    a pass that needs one then changes nothing and says so through `miss`.
    """

    target: Target = TARGETS["cpu"]
    calibrate: Callable[[ir.Model, Sequence[str]], Mapping[str, Range]] | None = None
    """(model, names of float values) -> range of each over the calibration data."""
    probe: Callable[[ir.Model, Sequence[str]], Arrays] | None = None
    """(model, names of values) -> their arrays for one typical input (for shapes and realistic data)."""
    compare_speed: Callable[[ir.Model, ir.Model, Arrays], Ratio] | None = None
    """(a, b, feeds) -> time of a divided by time of b, interleaved in one run; > 1 means b is faster."""
    costs: Costs | None = None
    """What was measured before, on machines like the one the model is for; None: nothing is known."""
    before_first: Callable[[], None] | None = None
    """Called ahead of the first rewrite, when the model is still as it was."""
    limit: int | None = None
    """At most this many rewrites; None: no limit. Bisection sets it."""
    facts: Facts = dataclasses.field(default_factory=lambda: Facts())
    """What `shapes` found last."""
    rewrites: list[Rewrite] = dataclasses.field(default_factory=list)
    misses: list[Miss] = dataclasses.field(default_factory=list)
    measured: list[str] = dataclasses.field(default_factory=list)
    """What was timed, in words with numbers; differs from run to run, so receipts keep it apart."""

    def permit(self, where: ir.Node | ir.Value | str) -> bool:
        """Ask for leave to make one more rewrite at `where`; the call counts it when it says True.

        `where` is a name for what is neither a node nor a value, such as a function.
        """
        if self.limit is not None and len(self.rewrites) >= self.limit:
            return False
        if self.before_first is not None and not self.rewrites:
            self.before_first()
        self.facts.outdate()
        self.rewrites.append(Rewrite(*_place(where)))
        return True

    def permit_unless(self, why: str | None, node: ir.Node) -> bool:
        """`permit`, unless there is a reason against it, which is recorded by `miss`."""
        if why is not None:
            self.miss(node, why)
            return False
        return self.permit(node)

    def shapes(self, model: ir.Model) -> Shapes:
        """What is known of every value; from pass to pass only what was changed is looked at again.

        Once this pass has leave to change something, more may change after every call.
        """
        return self.facts.of(model, is_changing=bool(self.rewrites))

    def nodes(self, model: ir.Model) -> Iterator[ir.Node]:
        """Every node of every graph, but those that are removed before their turn; new ones are left out.

        A body comes after the graph that holds it, as in `all_graphs`.
        """
        if not self.rewrites:
            census = self.facts.census_of(model)
            if len(census.graphs) == 1:  # nearly every model: gathered once for all passes
                yield from (node for node in census.nodes if node.graph is not None)
                return
        for graph in all_graphs(model):
            yield from (node for node in list(graph) if node.graph is not None)

    def miss(self, where: ir.Node | ir.Value, why: str) -> None:
        """Record why a pattern did not fire at `where`."""
        node, value = _place(where)
        self.misses.append(Miss(node, why, value, where.op_type if isinstance(where, ir.Node) else ""))


@final
@dataclasses.dataclass
class Facts:
    """What was found last of a model, and whether it was changed since then."""

    model: ir.Model | None = None
    shapes: Shapes | None = None
    census: Census | None = None
    is_old: bool = False

    def of(self, model: ir.Model, *, is_changing: bool) -> Shapes:
        """The facts of the model as it is now.

        Args:
            model: facts of another one are forgotten.
            is_changing: it may be changed after this without a word.
        """
        from burnish.passes.shapes import Shapes  # here: that module imports this one

        self._turn_to(model)
        if self.shapes is None or self.is_old or is_changing:
            self.shapes, self.is_old = Shapes(model, self.shapes), is_changing
        return self.shapes

    def census_of(self, model: ir.Model) -> Census:
        """The graphs and nodes of the model, where nothing has been changed since they were last gathered.

        Not for a pass that has had leave to change something: the last change may be still to come.
        """
        self._turn_to(model)
        if self.census is None:
            self.census = Census.of(model)
        return self.census

    def _turn_to(self, model: ir.Model) -> None:
        if self.model is not model:
            self.model, self.shapes, self.census = model, None, None

    def outdate(self) -> None:
        """Say that the model is going to be changed."""
        self.is_old, self.census = True, None

    def forget(self) -> None:
        """Let go of the model."""
        self.model = self.shapes = self.census = None


def _place(where: ir.Node | ir.Value | str) -> tuple[str, str]:
    if isinstance(where, str):
        return where, where
    if isinstance(where, ir.Value):
        return where.name or "?", where.name or "?"
    value = where.outputs[0].name if where.outputs else None
    return where.name or where.op_type, value or "?"


@dataclasses.dataclass(frozen=True)
class Pass(abc.ABC):
    """A pure graph rewrite. Subclasses are final frozen dataclasses; their fields are their options.

    The text form is `name{field=value,...}` with the fields that differ from their defaults.
    """

    name: ClassVar[str]
    numerics: ClassVar[Numerics]
    looks_for: ClassVar[frozenset[str]] = frozenset()
    """Op types of which there must be one for the pass to change or say anything; none: it always may."""

    @abc.abstractmethod
    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Rewrite `model` in place; return how many rewrites were made (0: nothing changed)."""

    def __str__(self) -> str:
        changed = [
            f"{f.name}={_text(getattr(self, f.name))}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        ]
        return f"{self.name}{{{','.join(changed)}}}" if changed else self.name


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def constant_of(value: ir.Value | None, max_bytes: int | None = None) -> np.ndarray | None:
    """The array of an initializer or of a Constant node's output; None when it is not constant.

    A graph input with a default is not constant. Arrays over `max_bytes` are not touched (they may be
    memory-mapped) and give None.
    """
    tensor = None if value is None else tensor_of(value)
    if tensor is None or (max_bytes is not None and byte_size(tensor) > max_bytes):
        return None
    return tensor.numpy()


def tensor_of(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor of an initializer or a Constant node, not read yet; None for anything else."""
    if value.is_graph_input():
        return None
    node = value.producer()
    if node is None:
        return value.const_value
    attributes = node.attributes.data
    if node.op_type != "Constant" or "sparse_value" in attributes:
        return None
    given = attributes.get("value")
    if given is None or given.is_ref() or value.const_value is not None or len(attributes) > 1 or node.domain:
        return ir.convenience.get_const_tensor(value)
    tensor: ir.TensorProtocol = given.value  # what that function returns, without its slow type check
    tensor.name = value.name
    return tensor


def is_op(node: ir.Node | None, op_type: str, domain: str = "") -> bool:
    """True when `node` is that operator (`ai.onnx` is the same as the empty domain)."""
    return (
        node is not None
        and node.op_type == op_type
        and (node.domain if node.domain != "ai.onnx" else "") == domain
    )


def new_initializer(graph: ir.Graph | ir.Function, name: str, array: np.ndarray) -> ir.Value:
    """A new initializer with a free name close to `name`, registered in the model's main graph.

    Raises:
        TypeError: `graph` is a function; functions cannot hold initializers (use a Constant node).
    """
    if isinstance(graph, ir.Function):
        raise TypeError("A function cannot hold initializers.")
    free, number = name, 0
    while free in graph.initializers:
        number += 1
        free = f"{name}_{number}"
    value = ir.Value(name=free, const_value=ir.Tensor(array, name=free))
    value.shape = ir.Shape(array.shape)
    value.dtype = ir.DataType.from_numpy(array.dtype)
    graph.register_initializer(value)
    return value
