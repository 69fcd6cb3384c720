"""burnish: PyTorch → ONNX → fast. Every rewrite checked."""

from burnish._version import __version__ as __version__
