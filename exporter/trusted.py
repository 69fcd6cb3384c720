"""Sources that run code when they are loaded: read only where the user said that they are trusted.

`.pt2` is a program that torch exported. `.pt`, `.pth` and the like hold whatever was pickled: a whole module
can be exported, given example inputs; a TorchScript archive or bare weights cannot.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from burnish.errors import ExportError
from burnish.exporter.needs import torch
from burnish.exporter.programs import program_source
from burnish.exporter.quiet import quiet
from burnish.exporter.source import TRUSTED, Adopt, TorchSource, left_as_is


def load_trusted(path: Path, inputs: Any = None, adopt: Adopt = left_as_is) -> TorchSource:
    """Load a pickle or an exported program, and with it whatever code it carries.

    Args:
        path: a file that `torch.export.save` or `torch.save` wrote.
        inputs: example inputs by parameter name; needed for a module.
        adopt: told of a module before it runs.

    Raises:
        ExportError: there is no such file, it does not load, or it holds no module (EXPORT_SOURCE); a
            module comes without example inputs (EXPORT_INPUTS).
    """
    if not path.is_file():
        raise _bad(f"There is no file {str(path)!r}.", "Check the path.")
    try:
        with quiet():
            found = _load(path)
    except Exception as error:
        raise _bad(
            f"torch cannot load {path.name!r}: {type(error).__name__}: {_first(error)}",
            "Load it by hand to see more; modules need their class to be importable.",
        ) from error
    description = f"torch: {path.name}"
    if isinstance(found, torch.export.ExportedProgram):
        source = program_source(found, inputs, description)
    else:
        source = TorchSource(_module(found, path), _needed(inputs, path)).adopted(adopt)
    return source.described(description, {}, (TRUSTED,))


def _load(path: Path) -> Any:
    if path.suffix.lower() == ".pt2":
        return torch.export.load(path)
    if _is_script(path):
        return torch.jit.load(str(path), map_location="cpu")
    return torch.load(path, map_location="cpu", weights_only=False)


def _is_script(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _module(found: Any, path: Path) -> Any:
    if isinstance(found, torch.jit.ScriptModule):
        raise _bad(
            f"{path.name!r} is a TorchScript archive, which torch.export does not take.",
            "Export the Python module that it was scripted from: package.module:callable.",
        )
    if isinstance(found, torch.nn.Module):
        return found
    held = found if isinstance(found, dict) else {}
    if any(isinstance(value, (torch.Tensor, dict)) for value in held.values()):
        names = ", ".join(repr(name) for name in list(held)[:3])
        raise _bad(
            f"{path.name!r} holds weights only ({len(held)} entries: {names}), not the module.",
            "Write a function that makes the module, calls load_state_dict and returns (module, inputs); "
            "export package.module:function.",
        )
    raise _bad(
        f"{path.name!r} holds a {type(found).__name__}, not a torch.nn.Module.",
        "Save the module itself: torch.save(module, path).",
    )


def _needed(inputs: Any, path: Path) -> Any:
    if inputs is None:
        raise ExportError(
            f"The module in {path.name!r} comes without example inputs.",
            "Give --inputs FILE.npz with an array for each parameter of forward (in Python: example_inputs).",
            code="EXPORT_INPUTS",
        )
    return inputs


def read_inputs(path: Path) -> dict[str, Any]:
    """Example inputs by parameter name, out of a `.npz` file.

    Raises:
        ExportError: it cannot be read, or holds something else than arrays (EXPORT_INPUTS).
    """
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
    except (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ExportError(
            f"Cannot read example inputs from {str(path)!r}: {_first(error)}",
            "Give a .npz file with one array for each input: numpy.savez('inputs.npz', x=array).",
            code="EXPORT_INPUTS",
        ) from error


def _first(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _bad(what: str, hint: str) -> ExportError:
    return ExportError(what, hint, code="EXPORT_SOURCE")
