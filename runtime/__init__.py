"""Artifact → results: sessions, checking, calibration. Imports numpy and onnxruntime, never torch.

onnxruntime 1.29 and later sends telemetry by default, and only this variable, set before its first
import, stops that; a value that the user has set is kept.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
