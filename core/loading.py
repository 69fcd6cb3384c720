"""`burnish.load`: open a model to run it, with numpy and onnxruntime alone."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from burnish.artifact import Artifact
    from burnish.runtime.session import Session


def load(model: str | os.PathLike[str] | Artifact, provider: str = "cpu", **options: Any) -> Session:
    """Open a model to run it; options are those of `burnish.runtime.session.Session`.

    Args:
        model: an artifact folder, an `.onnx` file, or an Artifact.
        provider: `cpu`, `openvino`, `cuda`, `tensorrt`, or `auto`.

    Raises:
        ModelError, ArtifactError: the model cannot be used.
        ProviderError: the provider is not there; the message names what is missing.
    """
    from burnish.runtime.session import Session

    return Session(model, provider, **options)
