"""What `burnish export` takes: `package.module:callable`, a Hugging Face folder, a GGUF file, or a module."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from burnish.errors import BurnishError, ExportError, MissingDependencyError, nearest
from burnish.exporter.source import Adopt, Recast, TorchParts, TorchSource, left_as_is

_CALLABLE: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
# Each of these is a pickle, or an archive with one inside: loading it runs the code that it carries.
PICKLES: Final = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pt2", ".pth", ".torch"})


def resolve(
    source: Any,
    inputs: Any = None,
    *,
    task: str | None = None,
    last_logits_only: bool = True,
    trust_code: bool = False,
    adopt: Adopt = left_as_is,
) -> TorchSource | TorchParts:
    """Find the module to export.

    Args:
        source: `package.module:callable`, imported with the current folder on the path, whose callable
            returns `(module, inputs)` or `(module, inputs, dynamic)`; or a Hugging Face folder with
            config.json and safetensors weights; or a GGUF file; or a `torch.nn.Module` or
            `torch.export.ExportedProgram`.
        inputs: example inputs, or the path of a `.npz` file with them; only with a module or a program.
        task: see `burnish.exporter.tasks.TASKS`; only with a folder, whose configuration says it by default.
        last_logits_only: of a language model: `logits` of each row's last token only.
        trust_code: load what runs code when it is loaded: pickles, and folders with code of their own.
        adopt: told of a module that is loaded here, before it runs for the first time.

    Raises:
        ExportError: there is no such module, callable or folder, or it cannot be used (EXPORT_SOURCE); it
            is a pickle (PICKLE_REFUSED) or code in a folder (CODE_REFUSED).
        MissingDependencyError: torch or transformers is not installed.
    """
    if isinstance(inputs, (str, os.PathLike)):
        from burnish.exporter.trusted import read_inputs

        inputs = read_inputs(Path(inputs))
    if not isinstance(source, (str, os.PathLike)):
        _need_no_task(task)
        return _module(source, inputs)
    text = os.fspath(source)
    path = Path(text)
    if inputs is not None:
        _need_pickle(path)
    if path.suffix.lower() in PICKLES and trust_code:
        from burnish.exporter.trusted import load_trusted

        return load_trusted(path, inputs, adopt)
    _refuse_pickle(path)
    if path.is_dir():
        from burnish.exporter.huggingface import load_folder

        return load_folder(path, task, last_logits_only=last_logits_only, trust_code=trust_code, adopt=adopt)
    if path.suffix.lower() == ".gguf" or path.is_file():
        from burnish.exporter.gguf import gguf_source, is_gguf

        if is_gguf(path):
            _only_generation(task)
            return gguf_source(path, last_logits_only=last_logits_only)
    if _CALLABLE.fullmatch(text):
        _need_no_task(task)
        return _from_callable(text, adopt)
    raise _unknown(text, path)


def _need_pickle(path: Path) -> None:
    """Refuse example inputs for a source that brings its own, rather than leave them unused."""
    if path.suffix.lower() not in PICKLES:
        raise ExportError(
            f"{str(path)!r} brings its own example inputs.",
            "Leave the inputs out; they go with a module, a program or a .pt file.",
            code="EXPORT_INPUTS",
        )


def _need_no_task(task: str | None) -> None:
    if task is not None:
        raise _bad("A task goes with a Hugging Face folder only.", "Leave it out.")


def _only_generation(task: str | None) -> None:
    if task not in (None, "text-generation"):
        raise _bad("A GGUF file is for text-generation only.", "Leave the task out.")


def _module(module: Any, inputs: Any) -> TorchSource:
    from burnish.exporter.needs import torch

    if isinstance(module, torch.export.ExportedProgram):
        from burnish.exporter.programs import program_source

        return program_source(module, inputs)
    if not isinstance(module, torch.nn.Module):
        raise _bad(
            f"Cannot export a {type(module).__name__}.",
            "Give a torch.nn.Module, package.module:callable, a Hugging Face folder or a GGUF file.",
        )
    if inputs is None:
        raise ExportError(
            f"No example inputs for {type(module).__name__}.",
            "Give a dict of tensors by parameter name, or a tuple.",
            code="EXPORT_INPUTS",
        )
    kind = type(module)
    described = f"torch: {kind.__module__}.{kind.__qualname__}"
    return TorchSource(module, inputs, description=described, recast=Recast(module, lambda model: model))


def _refuse_pickle(path: Path) -> None:
    if path.suffix.lower() in PICKLES:
        raise ExportError(
            f"{path.name!r} is a pickle: loading it runs the code inside.",
            "Pass --trust-code where you trust it, or load it in a function that returns (module, inputs).",
            code="PICKLE_REFUSED",
        )


def _from_callable(text: str, adopt: Adopt) -> TorchSource:
    name, _, attribute = text.partition(":")
    with _current_folder():
        build: Any = _import(name)
        for part in attribute.split("."):
            if not hasattr(build, part):
                known = [each for each in vars(build) if not each.startswith("_")]
                raise _bad(f"{name!r} has no {attribute!r}.", nearest(part, known))
            build = getattr(build, part)
        if not callable(build):
            raise _bad(f"{text!r} is not callable.", "Name a function that returns (module, inputs).")
        made = _call(text, build)
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        raise _bad(
            f"{text!r} returned {type(made).__name__}, not (module, inputs).",
            "Return (module, inputs) or (module, inputs, dynamic).",
        )
    found = _module(*made[:2])
    dynamic = made[2] if len(made) == 3 else None
    adopted = found.adopted(adopt) if found.program is None else found
    return dataclasses.replace(adopted, dynamic=dynamic or found.dynamic, description=f"torch: {text}")


def _call(text: str, build: Any) -> Any:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout may carry JSON
            return build()
    except BurnishError:
        raise
    except (Exception, SystemExit) as error:
        raise _bad(
            f"{text!r} raised {type(error).__name__}: {error}.", "Call it by hand to see where."
        ) from error


def _import(name: str) -> ModuleType:
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if missing in ("torch", "transformers"):
            raise MissingDependencyError(
                f"{name!r} needs {missing}, which is not installed.",
                'Install it: pip install "burnish[export]"',
            ) from error
        if not f"{name}.".startswith(f"{missing}."):
            raise _bad(
                f"{name!r} needs the module {missing!r}, which is not installed.", "Install it."
            ) from error
        raise _bad(f"No module named {missing!r}.", _nearest_module(missing)) from error
    except (Exception, SystemExit) as error:
        raise _bad(
            f"Importing {name!r} raised {type(error).__name__}: {error}.",
            "Import it by hand to see where.",
        ) from error


def _nearest_module(name: str) -> str:
    parent, _, _leaf = name.rpartition(".")
    folders = [Path.cwd()] if not parent else _folders_of(parent)
    near = {
        ".".join(filter(None, (parent, path.stem)))
        for folder in folders
        for path in folder.iterdir()
        if (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").is_file()
    }
    if not near:
        return "Run it from the folder that holds the module, or install its package."
    return nearest(name, near)


def _folders_of(package: str) -> list[Path]:
    module = sys.modules.get(package)
    return [Path(path) for path in getattr(module, "__path__", ())]


@contextlib.contextmanager
def _current_folder() -> Iterator[None]:
    folder = os.getcwd()
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _unknown(text: str, path: Path) -> ExportError:
    if path.suffix == ".onnx":
        return _bad(f"{text!r} is an ONNX file already.", f"Try: burnish optimize {text} -o OUT")
    if path.suffix == ".safetensors":
        return _bad(f"{text!r} holds weights only.", "Give its folder, with config.json beside the weights.")
    if path.suffix == ".py" or path.is_file():
        return _bad(
            f"{text!r} is a file.", "Give package.module:callable, a Hugging Face folder or a GGUF file."
        )
    parent = path.parent if path.parent.is_dir() else Path()
    folders = [str(each) for each in parent.iterdir() if each.is_dir() and each.name[0] != "."]
    hint = nearest(text, folders) if folders else ""
    return _bad(
        f"No folder {text!r}, and it is not package.module:callable.",
        hint if hint.startswith("Did") else "Give package.module:callable, or a Hugging Face folder.",
    )


def _bad(what: str, hint: str) -> ExportError:
    return ExportError(what, hint, code="EXPORT_SOURCE")
