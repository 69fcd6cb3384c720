"""What torch's failures mean: a typed error with the operator, or the line of the module, that it names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from burnish.errors import ExportError
from burnish.exporter.dims import Axis

_UNSUPPORTED: Final = re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)'")
_RAISED_AT: Final = re.compile(r'File "([^"]+)", line (\d+), in (\w+)\n\s*(.+)')


def typed(error: Exception, axes: Sequence[Axis]) -> ExportError:
    """What torch's failure means, as the error that the user sees."""
    chain = _chain(error)
    text = "\n".join(str(each) for each in chain)
    if found := _UNSUPPORTED.search(text):
        return ExportError(
            f"ONNX has no translation for {found[1]}.",
            "Write that part of the module with other operators.",
            code="EXPORT_UNSUPPORTED_OP",
        )
    if "data-dependent" in text:
        return ExportError(
            f"The module branches on the values of a tensor{_raised_at(text)}.",
            "Use torch.where or torch.cond there, or take the decision outside the module.",
            code="EXPORT_DATA_DEPENDENT",
        )
    if "specialized it to be a constant" in text or "static shape" in text:
        names = ", ".join(repr(name) for name in dict.fromkeys(axis.name for axis in axes))
        return ExportError(
            f"A dim did not stay dynamic (of {names}): {said(chain[-1])}",
            "Use the tensor's own shape there instead of a number, or leave the dim fixed.",
            code="EXPORT_SPECIALISED",
        )
    return ExportError(
        f"torch cannot export the module: {said(chain[-1])}{_raised_at(text)}",
        "Try torch.export.export on it alone; its message has the details.",
    )


def _chain(error: BaseException) -> list[BaseException]:
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def _raised_at(text: str) -> str:
    found = list(_RAISED_AT.finditer(text))
    if not found:
        return ""
    file, line, function, code = found[-1].groups()
    return f" at {_base(file)}:{line} in {function}: {code.strip()}"


def said(error: BaseException) -> str:
    """The error's class and the first line that it says (and the next, where that is only a heading)."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"{type(error).__name__}: {text}"


def _base(file: str) -> str:
    return re.split(r"[/\\]", file)[-1]
