"""What the examples share: training, data, the ways to run a model, and the table that compares them."""

import os

# torch's workers otherwise spin on into the run of whoever is timed next; onnxruntime's are told to stop.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
