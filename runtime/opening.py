"""Open onnxruntime sessions on exactly one provider, and read back which node ran where."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, final

import msgspec
import onnxruntime as ort

from burnish.errors import ProviderError
from burnish.manifest import TensorSpec
from burnish.runtime.faults import ORT_ERRORS, is_fallback, load_error, message
from burnish.runtime.options import Options, provider_options
from burnish.runtime.providers import plugin_devices, require
from burnish.runtime.source import Opened

Configure = Callable[[ort.SessionOptions], None]

CPU: Final = "CPUExecutionProvider"
_SILENT: Final = 4  # log fatal messages only: errors arrive as exceptions, and would be said twice
_PROVIDER_FAULT: Final = re.compile(r"ExecutionProvider|CUDA|CUDNN|cuBLAS|TensorRT|OpenVINO", re.IGNORECASE)
# What onnxruntime's GPU providers leave on the CPU on purpose, although they have kernels for it: arithmetic
# on shapes (core/framework/fallback_cpu_capability.cc). Any other op on the CPU is a fallback.
SHAPE_OPS: Final = frozenset(
    {
        "Abs", "Add", "And", "Cast", "Ceil", "Concat", "Constant", "ConstantOfShape", "Div", "Equal",
        "Expand", "Floor", "Gather", "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual",
        "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Range", "Reciprocal", "ReduceMax",
        "ReduceMin", "ReduceProd", "Reshape", "Shape", "Size", "Slice", "Sqrt", "Squeeze", "Sub",
        "Unsqueeze", "Where",
    }
)  # fmt: skip


@final
@dataclasses.dataclass(frozen=True)
class Placed:
    """A node and the provider that runs it, as onnxruntime assigned them (before its late fusions)."""

    name: str
    op_type: str
    provider: str


@final
@dataclasses.dataclass(frozen=True)
class Opener:
    """Everything that is needed to open one more session on the same model, provider and settings."""

    model: Opened
    provider: str
    """A name in `burnish.target.TARGETS`."""
    options: Options
    threads: int
    inputs: tuple[TensorSpec, ...] = ()

    def open(self, configure: Configure | None = None) -> ort.InferenceSession:
        """A session on exactly this provider.

        Raises:
            ProviderError: the provider is not there (EP_UNAVAILABLE), or nodes would run on the CPU
                although that was not allowed (EP_FALLBACK); the ops are named.
            ModelError: onnxruntime cannot load the model; the code says why.
        """
        targets = [require(name) for name in (self.provider, *self.options.beside)]
        if self.provider == "cpu":
            return self._create(strict=False, configure=configure)
        # With the strict key onnxruntime refuses before it makes kernels, but TensorRT has built its
        # engines by then (minutes). So there the placement is read back instead, which says the same.
        strict = not (self.options.shapes_on_cpu and self.provider == "tensorrt")
        try:
            session = self._create(strict=strict, configure=configure)
        except _Refused:
            session = self._create(strict=False, configure=configure)
        self._check_placement(session, [target.provider for target in targets])
        return session

    def _create(self, *, strict: bool, configure: Configure | None) -> ort.InferenceSession:
        options = self._session_options(strict=strict)
        if configure is not None:
            configure(options)
        providers = self._add_providers(options)
        try:
            # enable_fallback=0: otherwise it prints, and tries again on the CPU.
            return ort.InferenceSession(
                self.model.for_onnxruntime, options, providers=providers, enable_fallback=0
            )
        except ORT_ERRORS as error:
            if is_fallback(error):
                raise _Refused from error
            if self.provider != "cpu" and _PROVIDER_FAULT.search(str(error)):
                raise ProviderError(
                    f"Provider {self.provider!r} does not start: {message(error)}.",
                    "Run `burnish doctor` for what is missing on this machine.",
                ) from error
            raise load_error(error, self.model.name) from error

    def _session_options(self, *, strict: bool) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _SILENT
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = (
            levels.ORT_ENABLE_ALL if self.options.optimize else levels.ORT_DISABLE_ALL
        )
        entries = {"session.record_ep_graph_assignment_info": "1"}
        if isinstance(self.model.data, bytes):
            # Otherwise external data of a model in memory is looked up in the current folder.
            entries["session.model_external_initializers_file_folder_path"] = os.devnull
        if strict:
            entries["session.disable_cpu_ep_fallback"] = "1"
        for key, value in (entries | dict(self.options.session)).items():
            options.add_session_config_entry(key, value)
        return options

    def _add_providers(self, options: ort.SessionOptions) -> list[tuple[str, dict[str, str]]] | None:
        """What to pass as `providers`; None where a plugin was added to `options`."""
        devices = plugin_devices(self.provider, self.options)
        built = provider_options(self.provider, self.options, threads=self.threads, inputs=self.inputs)
        if devices:
            options.add_provider_for_devices(devices, built)
            return None
        plain = msgspec.structs.replace(self.options, provider={})
        others = (
            (require(name).provider, provider_options(name, plain, threads=self.threads))
            for name in self.options.beside
        )
        return [(require(self.provider).provider, built), *others]

    def _check_placement(self, session: ort.InferenceSession, allowed: Sequence[str]) -> None:
        nodes = placement(session)
        if allowed[0] not in session.get_providers():
            raise ProviderError(
                f"Provider {self.provider!r} did not start; onnxruntime would have used the CPU.",
                "Run `burnish doctor` for what is missing on this machine.",
                code="EP_FALLBACK",
            )
        tolerated = SHAPE_OPS if self.options.shapes_on_cpu else frozenset()
        stray = [n for n in nodes if n.provider not in allowed and n.op_type not in tolerated]
        used = any(node.provider in allowed for node in nodes)
        if stray or (nodes and not used):
            self._refuse(stray or nodes, len(nodes))

    def _refuse(self, stray: Sequence[Placed], total: int) -> None:
        counts = Counter(node.op_type for node in stray)
        ops = ", ".join(f"{op} x{count}" for op, count in counts.most_common(8))
        raise ProviderError(
            f"Provider {self.provider!r} cannot run {len(stray)} of {total} nodes: {ops} "
            f"(first: {stray[0].name!r}).",
            f"Optimize the model for it (--target {self.provider}), or use provider='auto'.",
            code="EP_FALLBACK",
        )


class _Refused(Exception):  # noqa: N818 - it never leaves this module
    """onnxruntime refused, because nodes would have gone to the CPU."""


def placement(session: ort.InferenceSession) -> list[Placed]:
    """Which provider onnxruntime gave each node to; a node without a name is called by its op and number."""
    placed: list[Placed] = []
    for part in session.get_provider_graph_assignment_info():
        for node in part.get_nodes():
            name = node.name or f"{node.op_type}_{len(placed)}"
            placed.append(Placed(name, node.op_type, part.ep_name))
    return placed
