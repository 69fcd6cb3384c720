"""An export that is interrupted, or finds no room, leaves nothing behind: no output, no scratch folder."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import burnish
import burnish.staging
from burnish.errors import OutputError

pytestmark = pytest.mark.torch

OUTPUTS = ["net.onnx", "net.burnish"]


@pytest.fixture(params=["copied", "streamed"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where outputs and temporary files go; weights in memory, or in a scratch file beside the output."""
    if request.param == "streamed":
        monkeypatch.setattr(burnish.staging, "STREAMED", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(64, 64)


@pytest.mark.parametrize("stage", ["tracing", "comparing", "writing"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_ctrl_c(folder: Path, output: str, stage: str) -> None:
    def press(text: str) -> None:
        if text.startswith(stage):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        burnish.export(
            net(), torch.ones(2, 64), dynamic={"input": {0: "batch"}}, output=folder / output, tell=press
        )


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of file sizes there")
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("room", [500, 16_000])
def test_no_room(folder: Path, output: str, room: int) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))  # python ignores SIGXFSZ: writing fails
    try:
        with pytest.raises(OutputError) as caught:
            burnish.export(net(), torch.ones(2, 64), dynamic={"input": {0: "batch"}}, output=folder / output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.code == "DISK_FULL"
    assert output in caught.value.what
    assert len(str(caught.value).splitlines()) == 2
