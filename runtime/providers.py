"""Execution providers: which really work here, and what is missing where one does not.

onnxruntime-gpu lists CUDA and TensorRT as available on any machine, and a session that asks for them
runs on the CPU without an error (seen in 1.31.1). So nothing it lists is believed: the libraries are
looked up, and after loading the placement of every node is read back.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec
import onnxruntime as ort

from burnish.errors import ProviderError, nearest
from burnish.runtime import libraries
from burnish.runtime.faults import ORT_ERRORS, message
from burnish.target import TARGETS, Target

if TYPE_CHECKING:
    from burnish.runtime.options import Options

OPENVINO_PACKAGE: Final = "onnxruntime_ep_openvino"
_PLUGIN_ERRORS: Final[tuple[type[Exception], ...]] = (*ORT_ERRORS, OSError)
_GPU_WHEEL: Final = f"pip uninstall onnxruntime; {libraries.CUDA_FIX}"


class Availability(msgspec.Struct, frozen=True):
    """Whether a provider can be used here, as far as can be said without running a model."""

    provider: str
    usable: bool
    why: str
    """What was found, in words."""
    missing: tuple[str, ...] = ()
    """Shared libraries that do not load."""
    fixes: tuple[str, ...] = ()
    """What to run to get them."""


def find_target(name: str) -> Target:
    """The target of that name.

    Raises:
        ProviderError: there is none (EP_UNKNOWN).
    """
    if name not in TARGETS:
        raise ProviderError(
            f"No provider named {name!r}.", nearest(name, [*TARGETS, "auto"]), code="EP_UNKNOWN"
        )
    return TARGETS[name]


def availability(name: str) -> Availability:
    """Look for a provider and its libraries; CUDA's are loaded from their pip packages if they are there.

    Raises:
        ProviderError: no such provider (EP_UNKNOWN).
    """
    target = find_target(name)
    if name == "cpu":
        return Availability(name, True, "always there")
    if name == "openvino":
        return _openvino(target)
    if target.provider not in ort.get_available_providers():
        why = "this onnxruntime is built without it"
        return Availability(name, False, why, fixes=(_GPU_WHEEL,))
    libraries.preload()
    missing = libraries.missing(libraries.provider_library(name))
    if not missing:
        return _complete(name)
    why = f"{', '.join(missing)} cannot be loaded"
    if name == "tensorrt" and "libnvinfer.so.10" in missing and _other_tensorrt():
        why += f" ({_other_tensorrt()} is installed: the wrong major version)"
    return Availability(name, False, why, missing, libraries.fixes(missing))


def require(name: str) -> Target:
    """The target of that name, if its provider can be used here.

    Raises:
        ProviderError: it cannot (EP_UNAVAILABLE); the error names what is missing and the command that
            brings it. Or there is no such provider (EP_UNKNOWN).
    """
    found = availability(name)
    if not found.usable:
        raise ProviderError(
            f"Provider {name!r} does not work here: {found.why}.",
            f"To get it: {'; '.join(found.fixes)}." if found.fixes else "Use provider='cpu'.",
        )
    return find_target(name)


def plugin_devices(name: str, options: Options) -> list[ort.OrtEpDevice]:
    """The devices to hand to `add_provider_for_devices`; empty for a provider built into onnxruntime.

    Raises:
        ProviderError: the plugin has no device of the wanted kind (EP_UNAVAILABLE).
    """
    if name != "openvino":
        return []
    devices = _plugin_devices(find_target(name).provider)
    wanted = options.openvino_device
    chosen = [d for d in devices if d.ep_metadata.get("ov_device") == wanted]
    if devices and not chosen:
        known = [d.ep_metadata.get("ov_device", "?") for d in devices]
        raise ProviderError(f"OpenVINO offers no device {wanted!r} on this machine.", nearest(wanted, known))
    return chosen[:1]


def _complete(name: str) -> Availability:
    if name != "cuda" or libraries.loads(libraries.CUDNN):
        return Availability(name, True, "all its libraries load")
    why = f"works without cuDNN ({libraries.CUDNN} cannot be loaded): nodes that need it, such as Conv, fail"
    return Availability(name, True, why, (libraries.CUDNN,), (libraries.CUDA_FIX,))


def _openvino(target: Target) -> Availability:
    if target.provider in ort.get_available_providers():
        return Availability("openvino", True, "built into this onnxruntime")
    if importlib.util.find_spec(OPENVINO_PACKAGE) is None:
        why = f"package {OPENVINO_PACKAGE.replace('_', '-')} is not installed"
        return Availability("openvino", False, why, fixes=(libraries.OPENVINO_FIX,))
    problem = _register_openvino()
    if problem:
        return Availability("openvino", False, problem, fixes=(libraries.OPENVINO_FIX,))
    devices = _plugin_devices(target.provider)
    if devices:
        names = ", ".join(d.ep_metadata.get("ov_device", "?") for d in devices)
        return Availability("openvino", True, f"plugin with devices: {names}")
    return Availability("openvino", False, f"the plugin offers no device here ({_hardware()})")


@functools.cache
def _register_openvino() -> str:
    """Register the plugin's library with onnxruntime, once; the problem, or an empty text."""
    plugin = importlib.import_module(OPENVINO_PACKAGE)
    try:
        ort.register_execution_provider_library("burnish-openvino", plugin.get_library_path())
    except _PLUGIN_ERRORS as error:
        return f"the plugin cannot be registered: {message(error)}"
    return ""


def _plugin_devices(provider: str) -> list[ort.OrtEpDevice]:
    return [device for device in ort.get_ep_devices() if device.ep_name == provider]


def _hardware() -> str:
    """Vendors of what onnxruntime sees: OpenVINO's plugin takes Intel's only."""
    seen: Sequence[ort.OrtEpDevice] = ort.get_ep_devices()
    kinds = (f"{d.device.vendor or 'unknown'} {d.device.type.name}" for d in seen)
    return ", ".join(dict.fromkeys(kinds))


def _other_tensorrt() -> str:
    """`libnvinfer.so.11` when that is what the pip package brought."""
    names = (path.name for path in libraries.tensorrt_packages())
    return next((n for n in names if n.startswith("libnvinfer.so.") and n != "libnvinfer.so.10"), "")
