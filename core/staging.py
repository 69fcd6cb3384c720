"""Where the weights of an export are while it is made and checked: in torch's memory, or in a file.

Part of the orchestration. Large weights go once, tensor by tensor, into a scratch folder beside the output;
PyTorch and onnxruntime both compute on that file, and at the end it is moved into the artifact.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from burnish.artifact import DATA, Artifact, DataFile
from burnish.errors import ExportError, nearest
from burnish.files import scratch_folder, write_scratch
from burnish.lending import judge
from burnish.model import graph_bytes
from burnish.runtime.reference import Reference
from burnish.weights import weight_bytes

if TYPE_CHECKING:
    import onnx_ir as ir

    from burnish.exporter.storage import Storage
    from burnish.manifest import Manifest

STREAMED: Final = 256_000_000
"""Bytes of weights from which on they are streamed into a file instead of copied in memory."""

DTYPES: Final = ("auto", "float32", "float16", "bfloat16")
"""What weights can be converted to; `auto`: float32 where onnxruntime cannot run what is stored."""


@final
class Stage:
    """One export on its way.

    Args:
        output: where it is to be written; None: in memory.
        dtype: one of `DTYPES`.
        tell: told what is being done, whenever that changes.

    Raises:
        ExportError: there is no such dtype (EXPORT_DTYPE).
    """

    def __init__(
        self, output: Path | None, dtype: str = "auto", tell: Callable[[str], object] = lambda _: None
    ) -> None:
        if dtype not in DTYPES:
            raise ExportError(f"There is no dtype {dtype!r}.", nearest(dtype, DTYPES), code="EXPORT_DTYPE")
        self.output, self._dtype, self.tell = output, dtype, tell
        self._cleanup = contextlib.ExitStack()
        self.storage: Storage | None = None
        self.owned = False
        """The module is burnish's own: nobody will change its weights."""
        self.replayed = False
        """Layers of a graph that was made on it were exported once."""

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def adopt(self, module: Any) -> tuple[str, ...]:
        """Take a module that burnish loaded itself: convert and place its weights; say what was changed."""
        from burnish.exporter.storage import convert, main_type, wanted_type

        self.owned = True
        main = main_type(module)
        wanted = wanted_type(self._dtype, main)
        if self._is_large(module, wanted):
            self._store(module, wanted, adopt=True)
        elif wanted is not None:
            convert(module, main, wanted)
        if wanted is None:
            return ()
        old, new = (str(each).removeprefix("torch.") for each in (main, wanted))
        why = ": onnxruntime's CPU provider has no kernels for it" if self._dtype == "auto" else ""
        return (f"weights converted from {old} to {new}{why}",)

    def place(self, module: Any) -> None:
        """Place the weights of a module that stays as it is, if they are large and not placed yet.

        Raises:
            ExportError: a dtype was asked for (EXPORT_DTYPE).
        """
        if self.owned:
            return
        if self._dtype != "auto":
            raise ExportError(
                f"A module given in Python is exported as it is, not as {self._dtype}.",
                f"Convert it first: module.to(torch.{self._dtype}).",
                code="EXPORT_DTYPE",
            )
        if self._is_large(module, None):
            self._store(module, None, adopt=False)

    @contextlib.contextmanager
    def reference(self, model: ir.Model, name: str) -> Iterator[Reference]:
        """A model on its way, ready to run. It stays so after the block."""
        if self.storage is None:
            yield judge(model)
            return
        path = self.storage.path.with_name(f"{name}.onnx")
        path.unlink(missing_ok=True)  # of an attempt that was no success
        write_scratch(path, [graph_bytes(model)], self.output or path)
        yield Reference(path, threads=self.storage.threads, weights=self.storage.arrays(model))

    def artifact(self, model: ir.Model, manifest: Manifest, attachments: Any, *, alone: bool) -> Artifact:
        """The finished artifact; its data file is the stage's, if it is the only one that needs it."""
        if self.storage is None:
            return Artifact.create(model, manifest, attachments)
        inside = weight_bytes(model, external=False)
        whole = alone and inside < STREAMED and self.storage.used_wholly(model)
        data = DataFile(self.storage.path, self.storage.record) if whole else None
        return Artifact.create(model, manifest, attachments, data=data, external_from=0)

    def _is_large(self, module: Any, dtype: Any) -> bool:
        from burnish.exporter.storage import weight_size

        return self.output is not None and weight_size(module, dtype) >= STREAMED

    def _store(self, module: Any, dtype: Any, *, adopt: bool) -> None:
        from burnish.exporter.storage import Storage, weight_size

        output = self.output or Path(DATA)
        self.tell(f"storing {weight_size(module, dtype) / 1e9:.2f} GB of weights")
        folder = self._cleanup.enter_context(scratch_folder(output))
        self.storage = Storage(folder / DATA, module, output=output, dtype=dtype, adopt=adopt)
