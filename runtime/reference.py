"""Run a model as it is written: CPU, onnxruntime's own optimiser off (or on, to see what is deployed).

This is the judge of every rewrite, so it does nothing clever. For speed use `burnish.runtime.session`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, final

import numpy as np
import onnxruntime as ort

from burnish.errors import ModelError
from burnish.runtime.faults import ORT_ERRORS

ModelSource = bytes | Path
"""A serialised ModelProto, or the path of a model file (needed where weights are external)."""


_DATA_FOLDER: Final = "session.model_external_initializers_file_folder_path"
LENT: Final = Path(__file__).name
"""What a model in memory names as the file of lent weights: this one, as it must exist. Nobody opens it."""
_NO_KERNEL: Final = (
    "The judge is onnxruntime's CPU provider, which has no kernel for the type at that node: export or "
    "convert the model to float32 (--dtype float32)."
)


@final
class Reference:
    """A session that runs exactly the given graph.

    Args:
        model: bytes of a ModelProto, or a path.
        optimize: False switches onnxruntime's optimiser off; True uses its default (all).
        threads: intra-op threads; 0: all cores.
        weights: memory to be used for initializers by name, in place of what the model's data files hold.
            It is read where it is: nothing is packed for speed, so that it is not held twice.
        frugal: give memory back after every run, instead of keeping it for the next; sizes are known early.

    Raises:
        ModelError: onnxruntime cannot load the model (MODEL_LOAD); its message is kept.
    """

    def __init__(
        self, model: ModelSource, *, optimize: bool = False, threads: int = 1,
        weights: Mapping[str, np.ndarray] | None = None, frugal: bool = False,
    ) -> None:  # fmt: skip
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
        self._weights = {n: ort.OrtValue.ortvalue_from_numpy(array) for n, array in (weights or {}).items()}
        for name, value in self._weights.items():
            options.add_initializer(name, value)
        if weights:
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.enable_cpu_mem_arena = False
        if frugal:
            options.enable_cpu_mem_arena = options.enable_mem_pattern = False
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # Shape and Size as soon as they can
        if weights and isinstance(model, bytes):
            options.add_session_config_entry(_DATA_FOLDER, str(Path(__file__).parent))
        try:
            self._session = ort.InferenceSession(
                model if isinstance(model, bytes) else str(model), options,
                providers=["CPUExecutionProvider"],
            )  # fmt: skip
        except ORT_ERRORS as error:
            raise ModelError(
                f"onnxruntime cannot load the model: {error}.",
                _NO_KERNEL if "NOT_IMPLEMENTED" in str(error) else "Look at the node it names.",
                code="MODEL_LOAD",
            ) from error
        self.outputs: tuple[str, ...] = tuple(output.name for output in self._session.get_outputs())

    def __call__(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Run once; all outputs, or the named ones.

        Raises:
            ModelError: a node fails on this input (MODEL_RUN); onnxruntime's message names it.
        """
        names = list(outputs) if outputs is not None else list(self.outputs)
        if not names:  # which onnxruntime would take for all of them
            return {}
        try:
            arrays = self._session.run(names, dict(feeds))
        except ORT_ERRORS as error:
            raise _does_not_run(error) from error
        return dict(zip(names, arrays, strict=True))

    def each(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Run once; name and array of the named outputs, one copied at a time: never all are held twice.

        Raises:
            ModelError: as above.
        """
        if not outputs:
            return
        try:
            given = {
                name: ort.OrtValue.ortvalue_from_numpy(np.require(array, requirements="C"))
                for name, array in feeds.items()
            }
            found = list(self._session.run_with_ort_values(list(outputs), given))[::-1]
        except ORT_ERRORS as error:
            raise _does_not_run(error) from error
        for name in outputs:
            yield name, found.pop().numpy()


def _does_not_run(error: Exception) -> ModelError:
    return ModelError(
        f"The model does not run on this input: {error}.",
        "Check the shapes of the inputs against the model.",
        code="MODEL_RUN",
    )
