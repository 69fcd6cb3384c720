"""What the judge does around a comparison."""

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import burnish.checking
from burnish.checking import model_file
from burnish.errors import OutputError


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of file sizes there")
def test_no_room_for_the_temporary_copy_of_a_large_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(burnish.checking, "_ONE_PROTO", 0)
    weight = ir.Value(name="w", const_value=ir.tensor(np.ones(4096, np.float32), name="w"))
    x = ir.Value(name="x", shape=ir.Shape([4096]), type=ir.TensorType(ir.DataType.FLOAT))
    added = ir.node("Add", [x, weight])
    model = ir.Model(
        ir.Graph([x], added.outputs, nodes=[added], initializers=[weight], opset_imports={"": 20}),
        ir_version=10,
    )
    with model_file(model) as source:
        assert Path(str(source)).is_file()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # python ignores SIGXFSZ: writing fails
    try:
        with pytest.raises(OutputError) as caught, model_file(model):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.code == "DISK_FULL"
    assert str(tmp_path) in caught.value.what
    assert "TMPDIR" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
