"""A model loaded on exactly the provider asked for, or an error that says why not."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar, final

import msgspec
import onnxruntime as ort

from burnish.errors import InputError, ModelError, ProviderError, SessionError, TargetError, nearest
from burnish.manifest import Manifest, TensorSpec
from burnish.runtime.binding import Binding, resident
from burnish.runtime.faults import ORT_ERRORS, run_error
from burnish.runtime.inputs import Array, InputChecker, is_opaque, unwrap
from burnish.runtime.opening import Opener, placement
from burnish.runtime.options import Options, make_options
from burnish.runtime.outline import Outline, op_counts, outlines, rankless_inputs
from burnish.runtime.profiling import Profile, read_profile
from burnish.runtime.providers import find_target
from burnish.runtime.signature import make_specs, manifest_specs
from burnish.runtime.source import Opened, Source, open_model
from burnish.runtime.threads import ThreadPlan, plan_threads
from burnish.runtime.values import is_foreign, run_values

T = TypeVar("T")

AUTO: Final = ("cuda", "cpu")
"""What provider="auto" tries, in order."""


class Choice(msgspec.Struct, frozen=True):
    """The provider of a session and why it is that one."""

    provider: str
    why: str


@final
class Session:
    """A loaded model. Call it with arrays by input name; it gives arrays by output name.

    Args:
        source: a path of an `.onnx` file or an artifact folder, an Artifact, or a model's bytes.
        provider: `cpu`, `openvino`, `cuda`, `tensorrt`: that one or an error. `auto`: cuda where it works
            with this model, else cpu; `session.choice` says which and why.
        threads: intra-op threads; None: what cores, affinity and the cgroup quota allow.
        options: more settings (`burnish.runtime.options.Options`, or a mapping of its fields).

    Raises:
        ModelError, ExternalDataError, ArtifactError: the model cannot be used; the code says why.
        ProviderError: EP_UNAVAILABLE names the missing libraries and the pip command; EP_FALLBACK names
            the ops that would run elsewhere; EP_UNKNOWN.
        TargetError: the artifact was made for another target (TARGET_MISMATCH).

    Example::

        with Session("model.burnish") as session:
            out = session(input_ids=ids, attention_mask=mask)
    """

    def __init__(
        self,
        source: Source,
        provider: str = "cpu",
        *,
        threads: int | None = None,
        options: Options | Mapping[str, object] | None = None,
    ) -> None:
        self._model = open_model(source)
        self.threads: ThreadPlan = plan_threads(threads)
        self._options = make_options(options)
        self._opener, session, self.choice = self._choose(provider)
        self._session: ort.InferenceSession | None = session
        known = manifest_specs(self._model.manifest)
        self.inputs: tuple[TensorSpec, ...] = make_specs(
            session.get_inputs(), known[0], lambda: rankless_inputs(self._model.data)
        )
        self.outputs: tuple[TensorSpec, ...] = make_specs(session.get_outputs(), known[1])
        optional = make_specs(session.get_overridable_initializers(), known[0])
        dims = self._model.manifest.dims if self._model.manifest is not None else {}
        self._check = InputChecker(self.inputs, dims, optional=optional)
        self._names = [spec.name for spec in self.outputs]
        every = (*self.inputs, *self.outputs)
        self._foreign = any(map(is_foreign, every))
        self._slow = self._foreign or any(map(is_opaque, every))
        self._run: Callable[..., Sequence[Any]] = session.run

    def __call__(self, feeds: Mapping[str, Any] | None = None, /, **named: Any) -> dict[str, Array]:
        """Run once: `session(x=array)` or `session({"x": array})`.

        Raises:
            InputError: INPUT_MISSING, INPUT_UNKNOWN, INPUT_DTYPE, INPUT_RANK, INPUT_SHAPE.
            ModelError: a node fails on these inputs (MODEL_RUN); the message names it.
            SessionError: the session is closed.
        """
        if feeds is None:
            feeds = named
        elif not isinstance(feeds, Mapping):
            raise InputError(
                f"The inputs were given as a {type(feeds).__name__}, without names.",
                f"Pass them by name, such as session({self.inputs[0].name if self.inputs else 'x'}=array).",
                code="INPUT_UNKNOWN",
            )
        elif named:
            feeds = {**feeds, **named}
        arrays, _ = self._check(feeds)
        if self._slow:
            return self._run_slowly(arrays, self.outputs)
        try:
            return dict(zip(self._names, self._run(self._names, arrays), strict=True))
        except ORT_ERRORS as error:
            raise run_error(error) from error

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once for the named outputs only (all, where None); errors as for a call.

        Raises:
            ModelError: the model has no output of that name (OUTPUT_UNKNOWN).
        """
        if outputs is None:
            return self(feeds)
        by_name = {spec.name: spec for spec in self.outputs}
        for name in outputs:
            if name not in by_name:
                raise ModelError(
                    f"The model has no output {name!r}.",
                    nearest(name, by_name),
                    code="OUTPUT_UNKNOWN",
                )
        return self._run_slowly(self._check(feeds)[0], [by_name[name] for name in outputs])

    def bind(self) -> Binding:
        """A callable like the session that writes its outputs into the same arrays in every call.

        Raises:
            SessionError: an input or output is text or no tensor (BIND_UNSUPPORTED); or it is closed.
        """
        return Binding(self._live, self._check, self.inputs, self.outputs)

    def resident(self, feeds: Mapping[str, Any]) -> Callable[[], None]:
        """A call without arguments, for timing: the inputs lie on the provider's device, outputs stay there.

        What is measured is the model, then, and no copy from or to the device.

        Raises:
            InputError, ModelError, SessionError: as for a call.
        """
        session, device = self._live(), find_target(self.provider).device
        arrays, _ = self._check(feeds)
        try:
            return resident(session, arrays, self._names, device)
        except ORT_ERRORS as error:
            raise run_error(error) from error

    @property
    def provider(self) -> str:
        """The provider that runs the model, by burnish's name."""
        return self.choice.provider

    @property
    def last_placement(self) -> dict[str, str]:
        """Node → onnxruntime's name of the provider it was given to (before late fusions)."""
        return {node.name: node.provider for node in placement(self._live())}

    @property
    def placement_summary(self) -> dict[str, dict[str, int]]:
        """Provider → op → how many of its nodes run there."""
        summary: dict[str, dict[str, int]] = {}
        for node in placement(self._live()):
            ops = summary.setdefault(node.provider, {})
            ops[node.op_type] = ops.get(node.op_type, 0) + 1
        return summary

    def profile(self, feeds: Mapping[str, Any], runs: int = 10) -> Profile:
        """Where the time goes: a second session on the same model, profiled over `runs` runs.

        The first two runs warm up and are left out. The profile file lives in a temporary folder.

        Raises:
            InputError, ModelError, SessionError: as for a call.
        """
        self._live()
        arrays, _ = self._check(feeds)
        folder = Path(tempfile.mkdtemp(prefix="burnish-profile-"))
        try:
            session = self._opener.open(lambda options: _profile_into(options, folder))
            for _ in range(runs + _WARM_UP):
                self._execute(session, self.outputs, arrays)
            return read_profile(Path(session.end_profiling()), skip=_WARM_UP)
        except ORT_ERRORS as error:
            raise run_error(error) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def executed_ops(self) -> dict[str, int]:
        """How many nodes of each op onnxruntime really executes, after its own fusions; most frequent first.

        Raises:
            SessionError: the provider compiles the graph into one piece (EP_OPAQUE), or it is closed.
        """
        return self._executed(op_counts)

    def executed_nodes(self) -> list[Outline]:
        """The nodes of the main graph that onnxruntime really executes: names, and the values they make.

        A fused node has a name of onnxruntime's own, but still makes a value of the model.

        Raises:
            SessionError: as for `executed_ops`.
        """
        return self._executed(outlines)

    def _executed(self, read: Callable[[Path], T]) -> T:
        self._live()
        return _executed(self._opener, read)

    def close(self) -> None:
        """Free the model; calls after that raise SessionError. Closing again does nothing."""
        self._session = None
        self._run = _refuse_closed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._session is None else f"{self.threads.intra_op} threads"
        return f"<Session {self._model.name} on {self.provider}, {state}>"

    def _live(self) -> ort.InferenceSession:
        if self._session is None:
            _refuse_closed()
        return self._session

    def _run_slowly(self, arrays: Mapping[str, Any], outputs: Sequence[TensorSpec]) -> dict[str, Array]:
        """Any inputs and outputs: sequences, dtypes foreign to numpy, only some outputs."""
        try:
            values = self._execute(self._live(), outputs, arrays)
        except ORT_ERRORS as error:
            raise run_error(error) from error
        return {spec.name: value for spec, value in zip(outputs, values, strict=True)}

    def _execute(
        self,
        session: ort.InferenceSession,
        outputs: Sequence[TensorSpec],
        arrays: Mapping[str, Any],
    ) -> Sequence[Any]:
        plain = {name: unwrap(value) for name, value in arrays.items()}
        if self._foreign:
            return run_values(session, outputs, plain)
        values: Sequence[Any] = session.run([spec.name for spec in outputs], plain)
        return values

    def _choose(self, provider: str) -> tuple[Opener, ort.InferenceSession, Choice]:
        if provider != "auto":
            opener = self._make_opener(provider)
            return opener, opener.open(), Choice(provider, "asked for")
        reasons = []
        for name in self._candidates():
            opener = self._make_opener(name)
            try:
                session = opener.open()
            except ProviderError as error:
                reasons.append(error.what)
                continue
            return opener, session, Choice(name, " ".join(reasons) or "the first that works here")
        raise ProviderError(" ".join(reasons), "Run `burnish doctor` for what is missing.")

    def _candidates(self) -> tuple[str, ...]:
        manifest = self._model.manifest
        return AUTO if manifest is None or manifest.target == "portable" else (manifest.target,)

    def _make_opener(self, provider: str) -> Opener:
        find_target(provider)
        _check_target(self._model, provider)
        inputs = self._model.manifest.inputs if self._model.manifest is not None else ()
        return Opener(self._model, provider, self._options, self.threads.intra_op, tuple(inputs))


_WARM_UP: Final = 2


def _check_target(model: Opened, provider: str) -> None:
    manifest: Manifest | None = model.manifest
    if manifest is not None and manifest.target not in ("portable", provider):
        raise TargetError(
            f"{model.name} was made for {manifest.target}, not for {provider}.",
            f"Use provider={manifest.target!r}, or optimize the source model for {provider}.",
            code="TARGET_MISMATCH",
        )


def executed_ops(source: Source) -> dict[str, int]:
    """As `Session.executed_ops` on the CPU, without a session beside: a large model is loaded once.

    Raises:
        ModelError, ExternalDataError, ArtifactError: the model cannot be used; the code says why.
        SessionError: onnxruntime cannot load it (EP_OPAQUE).
    """
    opener = Opener(open_model(source), "cpu", make_options(None), threads=1)
    return _executed(opener, op_counts)


def _executed(opener: Opener, read: Callable[[Path], T]) -> T:
    with tempfile.TemporaryDirectory(prefix="burnish-ops-") as folder:
        path = Path(folder) / "executed.onnx"
        try:
            opener.open(lambda options: _save_into(options, path))
        except ModelError as error:
            raise SessionError(
                f"The ops that {opener.provider} executes cannot be listed: {error.what}",
                "Such a provider compiles the graph; see session.placement_summary.",
                code="EP_OPAQUE",
            ) from error
        return read(path)


def _profile_into(options: ort.SessionOptions, folder: Path) -> None:
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "run")


def _save_into(options: ort.SessionOptions, path: Path) -> None:
    """Weights go to a file of their own: otherwise a model over 2 GB cannot be saved. Nothing is packed."""
    options.optimized_model_filepath = str(path)
    prefix = "session.optimized_model_external_initializers"
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry(f"{prefix}_file_name", "weights")
    options.add_session_config_entry(f"{prefix}_min_size_in_bytes", "1024")


def _refuse_closed(*_arguments: object) -> Any:
    raise SessionError("The session is closed.", "Open it again, or close it later.", code="SESSION_CLOSED")
