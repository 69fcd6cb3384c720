"""Recurrent layers, over sequences of several lengths too, against torch's own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from burnish.errors import ExportError
from burnish.exporter.parity import check_parity
from burnish.exporter.recurrent import lengths_kept
from burnish.exporter.torch_export import Exported, export_module
from burnish.model import to_bytes
from burnish.provenance import origins
from burnish.runtime.reference import Reference

pytestmark = pytest.mark.torch

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lstm": (torch.nn.LSTM, {"bidirectional": True, "num_layers": 2}),
    "lstm-no-bias": (torch.nn.LSTM, {"bias": False}),
    "gru": (torch.nn.GRU, {"bidirectional": True, "num_layers": 2, "dropout": 0.5}),
    "rnn-tanh": (torch.nn.RNN, {"num_layers": 3}),
    "rnn-relu": (torch.nn.RNN, {"bidirectional": True, "nonlinearity": "relu", "bias": False}),
}
WIDTH, HIDDEN = 3, 4


class Plain(torch.nn.Module):
    """A layer with all that it returns."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        of, more = KINDS[kind]
        self.layer = of(WIDTH, HIDDEN, **more, **options)

    def forward(self, steps: Any) -> Any:
        found, hidden = self.layer(steps)
        return found, *(hidden if isinstance(hidden, tuple) else (hidden,))


class Packed(Plain):
    """The same of sequences of several lengths, with a linear layer on what is packed."""

    def __init__(self, kind: str, sorted_first: bool = False, padding: float = 0.0, **options: Any) -> None:
        super().__init__(kind, **options)
        self.before = torch.nn.Linear(WIDTH, WIDTH)
        self.sorted_first, self.padding = sorted_first, padding

    def forward(self, steps: Any, lengths: Any) -> Any:
        first = self.layer.batch_first
        packed = pack_padded_sequence(steps, lengths, first, enforce_sorted=self.sorted_first)
        packed = PackedSequence(self.before(packed.data), *packed[1:])
        found, hidden = self.layer(packed)
        padded, sizes = pad_packed_sequence(found, first, padding_value=self.padding)
        return padded, sizes, *(hidden if isinstance(hidden, tuple) else (hidden,))


def exported_packed(net: torch.nn.Module, lengths: list[int], first: bool = True) -> Exported:
    shape = (len(lengths), max(lengths), WIDTH) if first else (max(lengths), len(lengths), WIDTH)
    dims = {0: "batch", 1: "sequence"} if first else {1: "batch", 0: "sequence"}
    return export_module(
        net, {"steps": torch.randn(shape), "lengths": torch.tensor(lengths)},
        dynamic={"steps": dims, "lengths": {0: "batch"}},
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_at_every_length(kind: str) -> None:
    exported = export_module(
        Plain(kind, batch_first=True),
        torch.randn(2, 5, WIDTH),
        dynamic={"steps": {0: "batch", 1: "sequence"}},
    )
    receipt = check_parity(exported, Reference(to_bytes(exported.model)))
    assert {a["sequence"] for a in receipt.assignments} >= {1, 2, 7}
    assert receipt.notes == ()
    nodes = [node for node in exported.model.graph if node.op_type == kind.partition("-")[0].upper()]
    places = [origin for node in nodes for origin in origins(node.metadata_props)]
    assert len(nodes) == KINDS[kind][1].get("num_layers", 1)
    assert {(place.module, place.source.rpartition("/")[2].partition(":")[0]) for place in places} == {
        ("layer", Path(__file__).name)
    }


def test_a_sequence_without_a_batch() -> None:
    exported = export_module(Plain("gru"), torch.randn(5, WIDTH), dynamic={"steps": {0: "sequence"}})
    assert exported.signature.outputs[0].shape == ("sequence", 2 * HIDDEN)
    assert check_parity(exported, Reference(to_bytes(exported.model))).notes == ()


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_of_several_lengths(kind: str) -> None:
    exported = exported_packed(Packed(kind, batch_first=True), [5, 2, 6])
    run = Reference(to_bytes(exported.model))
    receipt = check_parity(exported, run)
    assert {(a["batch"], a["sequence"]) for a in receipt.assignments} >= {(1, 1), (2, 7), (3, 16)}
    rng = np.random.default_rng(0)
    for lengths in ([1, 4, 3, 1], [7, 7], [2, 1, 9]):
        feeds = {"steps": rng.standard_normal((len(lengths), 9, WIDTH)).astype(np.float32),
                 "lengths": np.array(lengths)}  # fmt: skip
        wanted, found = exported.reference(feeds), run(feeds)
        assert found["output_0"].shape == (len(lengths), max(lengths), wanted["output_0"].shape[2])
        for name, array in wanted.items():
            np.testing.assert_allclose(found[name], array, atol=1e-5)


def test_time_first_sorted_lengths_and_a_padding_value() -> None:
    exported = exported_packed(Packed("lstm", sorted_first=True, padding=-2.0), [6, 5, 2], first=False)
    run = Reference(to_bytes(exported.model))
    check_parity(exported, run)
    feeds = {"steps": np.ones((6, 2, WIDTH), np.float32), "lengths": np.array([4, 2])}
    assert (run(feeds)["output_0"][2:, 1] == -2.0).all()


class Total(torch.nn.Module):
    """Padded to the length that came in, and back in a layer of another kind from a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.GRU(WIDTH, HIDDEN)

    def forward(self, steps: Any, lengths: Any, state: Any) -> Any:
        packed = pack_padded_sequence(steps, lengths, enforce_sorted=False)
        found, hidden = self.layer(packed, state)
        return pad_packed_sequence(found, total_length=steps.shape[0])[0], hidden


def test_a_total_length_and_a_first_state() -> None:
    exported = export_module(
        Total(),
        {"steps": torch.randn(5, 3, WIDTH), "lengths": torch.tensor([2, 5, 4]),
         "state": torch.randn(1, 3, HIDDEN)},
        dynamic={"steps": {0: "sequence", 1: "batch"}, "lengths": {0: "batch"}, "state": {1: "batch"}},
    )  # fmt: skip
    assert exported.signature.outputs[0].shape == ("sequence", "batch", HIDDEN)
    receipt = check_parity(exported, Reference(to_bytes(exported.model)))
    assert len(receipt.assignments) >= 4


def test_projections_are_refused_by_name() -> None:
    net = torch.nn.LSTM(WIDTH, HIDDEN, proj_size=2)
    with pytest.raises(ExportError, match="proj_size") as caught:
        export_module(net, {"input": torch.randn(5, 2, WIDTH)}, dynamic={"input": {1: "batch"}})
    assert caught.value.code == "EXPORT_UNSUPPORTED_OP"


def test_torch_is_itself_again_outside() -> None:
    before = pack_padded_sequence.__code__, pad_packed_sequence.__code__, torch.nn.RNN.forward
    with lengths_kept():
        assert torch.nn.RNN.forward is not before[2]
    with pytest.raises(ZeroDivisionError), lengths_kept():
        _ = 1 / 0
    assert (pack_padded_sequence.__code__, pad_packed_sequence.__code__, torch.nn.RNN.forward) == before


@pytest.mark.parametrize("lengths", [None, torch.tensor([2, 5, 4])])
def test_the_operators_run_as_torch_does(lengths: torch.Tensor | None) -> None:
    net = torch.nn.LSTM(WIDTH, HIDDEN, 2, bidirectional=True).eval()
    steps = torch.randn(5, 3, WIDTH)
    zeros = [torch.zeros(4, 3, HIDDEN)] * 2
    with torch.no_grad():
        found = torch.ops.burnish.lstm(steps, lengths, zeros, net._flat_weights, True, 2, True)
        if lengths is None:
            wanted, states = net(steps)
        else:
            packed, states = net(pack_padded_sequence(steps, lengths, enforce_sorted=False))
            wanted = pad_packed_sequence(packed)[0]
    for one, two in zip(found, (wanted, *states), strict=True):
        assert torch.equal(one, two)
