"""Whether tests can run on CUDA here."""

import pytest

from burnish.runtime.providers import availability

GPU = availability("cuda")
NEEDS_GPU = pytest.mark.skipif(not GPU.usable, reason=f"needs CUDA: {GPU.why}")
