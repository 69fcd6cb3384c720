"""IO binding: outputs written into arrays that are made once and used again in every call.

An output whose shape depends on data cannot be bound to memory in advance; it is bound anew in every call,
since onnxruntime would otherwise insist on the first shape. Source: onnxruntime docs, API, IOBinding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, final

import numpy as np
import onnxruntime as ort

from burnish.dim_sums import size_of
from burnish.errors import SessionError
from burnish.feeds import dtype_of
from burnish.manifest import TensorSpec
from burnish.runtime.faults import ORT_ERRORS, run_error
from burnish.runtime.inputs import STRING, Array, InputChecker, is_opaque
from burnish.runtime.values import is_foreign, to_array, to_value

_WRONG_SHAPE: Final = "OrtValue provided for output"


@final
class Binding:
    """Runs a session with reused outputs; made by `Session.bind`.

    The arrays that a call returns are overwritten by the next call with the same shapes: copy what must
    stay. Not for several threads at once: make one binding a thread.
    """

    def __init__(
        self,
        live: Callable[[], ort.InferenceSession],
        checker: InputChecker,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
    ) -> None:
        for spec in (*inputs, *outputs):
            _refuse_unbindable(spec)
        self._live = live
        self._checker = checker
        self._outputs = tuple(outputs)
        self._io = live().io_binding()
        self._inputs: dict[str, Array] = {}
        self._sizes: dict[str, int] | None = None
        self._arrays: dict[str, Array] = {}
        self._reuse = True

    def __call__(self, feeds: Mapping[str, Any] | None = None, /, **named: Any) -> dict[str, Array]:
        """Run once; the outputs by name.

        An input array that is given again (the same object) is read again in place, without rebinding.

        Raises:
            InputError: an input does not fit.
            ModelError: a node fails on these inputs (MODEL_RUN).
            SessionError: the session is closed.
        """
        session = self._live()
        if feeds is None or named:
            feeds = {**(feeds or {}), **named}
        arrays, sizes = self._checker(feeds)
        try:
            self._bind_inputs(arrays)
            self._bind_outputs(sizes)
            try:
                session.run_with_iobinding(self._io)
            except ORT_ERRORS as error:
                if not (self._reuse and _WRONG_SHAPE in str(error)):
                    raise
                self._give_up_reuse()
                session.run_with_iobinding(self._io)
            return self._collect()
        except ORT_ERRORS as error:
            self._sizes = None  # what is bound may be half of this call and half of the one before
            raise run_error(error) from error

    def _bind_inputs(self, arrays: Mapping[str, Array]) -> None:
        for name, array in arrays.items():
            if self._inputs.get(name) is array and array.flags.c_contiguous:
                continue
            if array.dtype.kind == "V":
                self._io.bind_ortvalue_input(name, to_value(array))
            else:
                self._io.bind_cpu_input(name, array)
            self._inputs[name] = array

    def _bind_outputs(self, sizes: dict[str, int]) -> None:
        if sizes is self._sizes and len(self._arrays) == len(self._outputs):
            return
        for spec in self._outputs:
            shape = _shape(spec, sizes) if self._reuse else None
            if shape is None:
                self._arrays.pop(spec.name, None)
                self._io.bind_output(spec.name, "cpu")
            elif sizes != self._sizes:
                array = np.empty(shape, dtype_of(spec.dtype))
                at = array.ctypes.data
                self._io.bind_output(spec.name, "cpu", 0, array.dtype.type, array.shape, at)
                self._arrays[spec.name] = array
        self._sizes = sizes

    def _give_up_reuse(self) -> None:
        """The model's dims are named wrongly: its outputs do not have the shapes it declares."""
        self._reuse = False
        self._bind_outputs({})

    def _collect(self) -> dict[str, Array]:
        values: Sequence[ort.OrtValue] = ()
        result = {}
        for index, spec in enumerate(self._outputs):
            array = self._arrays.get(spec.name)
            if array is None:
                values = values or self._io.get_outputs()
                array = to_array(values[index], spec)
            result[spec.name] = array
        return result


def resident(
    session: ort.InferenceSession, arrays: Mapping[str, Array], outputs: Sequence[str], device: str
) -> Callable[[], None]:
    """Run on inputs that are copied to a device (`cpu`, `cuda`) once; each call waits for the device."""
    io = session.io_binding()
    for name, array in arrays.items():
        if array.dtype.kind == "V":
            io.bind_ortvalue_input(name, to_value(array))
        else:
            io.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, device, 0))
    for name in outputs:
        io.bind_output(name, device)
    return functools.partial(session.run_with_iobinding, io)


def _shape(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...] | None:
    """The shape that an output will have, where inputs decide it and numpy can hold it."""
    if spec.shape is None or is_foreign(spec):
        return None
    dims = [dim if isinstance(dim, int) else size_of(dim or "", sizes) for dim in spec.shape]
    known = [dim for dim in dims if dim is not None]
    return tuple(known) if len(known) == len(dims) else None


def _refuse_unbindable(spec: TensorSpec) -> None:
    if spec.dtype == STRING or is_opaque(spec):
        raise SessionError(
            f"{spec.name!r} is {spec.dtype}, which onnxruntime cannot bind.",
            "Call the session itself for this model.",
            code="BIND_UNSUPPORTED",
        )
