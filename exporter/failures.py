"""What torch's failures mean: a typed error with the operator, or the line of the module, that it names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from burnish.errors import ExportError
from burnish.exporter.blame import place_of
from burnish.exporter.dims import Axis

_UNSUPPORTED: Final = re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)'")
_ALTERNATIVES: Final = tuple(
    (re.compile(pattern), hint)
    for pattern, hint in (
        (
            r"linalg_|svd|eig|qr|lu|cholesky|inverse|lstsq|triangular|geqrf|ormqr",
            "ONNX has no factorisations or solvers: compute it outside the module, or beforehand.",
        ),
        (
            r"rand|multinomial|bernoulli|normal|poisson|exponential",
            "Draw the random numbers outside the module and pass them in.",
        ),
        (r"bincount|histc", "Count with torch.zeros(n).scatter_add(0, values, ones), which ONNX has."),
        (
            r"unique|masked_select",
            "Use torch.where with a fixed size, or take the selection outside the module.",
        ),
        (r"grid_sampler|affine_grid", "Ask for --opset 20 or higher, which has more of it."),
        (
            r"fft|stft|istft",
            "Use torch.stft with a fixed window, or compute the spectrum outside the module.",
        ),
        (
            r"median|nanmedian|kthvalue|mode|quantile",
            "Sort and take the element there: x.sort(dim).values.select(dim, k), which ONNX has.",
        ),
        (r"sparse|to_sparse|coalesce", "Make the tensor dense first: ONNX has no sparse computation."),
        (r"quantize|dequantize|fake_quant", "Export the float model and quantise it with burnish quantize."),
    )
)
_TRANSLATION: Final = re.compile(r"\baten_(\w+)")  # the function of onnxscript that gave up
_RAISED_AT: Final = re.compile(r'File "([^"]+)", line (\d+), in (\w+)\n\s*(.+)')


def typed(error: Exception, axes: Sequence[Axis], module: Any = None) -> ExportError:
    """What torch's failure means, as the error that the user sees.

    Args:
        error: what torch raised.
        axes: the dims that were to be dynamic.
        module: that was exported; its parts are named by their paths.
    """
    chain = _chain(error)
    if own := next((each for each in chain if isinstance(each, ExportError)), None):
        return own
    text = "\n".join(str(each) for each in chain)
    if found := _UNSUPPORTED.search(text):
        return ExportError(
            f"ONNX has no translation for {found[1]}{place_of(error, module)}.",
            alternatives(found[1]),
            code="EXPORT_UNSUPPORTED_OP",
        )
    if "data-dependent" in text:
        return ExportError(
            f"The module branches on the values of a tensor{place_of(error, module) or _raised_at(text)}.",
            "Use torch.where or torch.cond there, or take the decision outside the module; where a size "
            "depends on values, say its range with torch._check.",
            code="EXPORT_DATA_DEPENDENT",
        )
    if "specialized it to be a constant" in text or "static shape" in text:
        names = ", ".join(repr(name) for name in dict.fromkeys(axis.name for axis in axes))
        return ExportError(
            f"A dim did not stay dynamic (of {names}): {said(chain[-1])}",
            "Use the tensor's own shape there instead of a number, or leave the dim fixed.",
            code="EXPORT_SPECIALISED",
        )
    name = _TRANSLATION.search(said(chain[-1]))
    return ExportError(
        f"torch cannot export the module: {said(chain[-1])}{place_of(error, module) or _raised_at(text)}",
        alternatives(name[1])
        if name
        else "Try torch.export.export on it alone; its message has the details.",
    )


def alternatives(op: str) -> str:
    """What can be done about an operator that ONNX has nothing for."""
    name = op.rpartition(".")[2].lstrip("_")
    for pattern, hint in _ALTERNATIVES:
        if pattern.match(name):
            return hint
    return "Write that part with other operators, or compute it outside the module and pass the result in."


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
