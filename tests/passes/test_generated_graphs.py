"""Random graphs of mixed types, with planted patterns and bodies, through the recipes of all targets.

`make fuzz-graphs` does the same with ten thousand of them and writes down what fails, made small.
"""

import onnx
import pytest

from burnish.benchmarks.random_graphs.campaign import Tally, check_relations, check_seeds
from burnish.benchmarks.random_graphs.generate import generate
from burnish.benchmarks.random_graphs.relations import RELATIONS


def assert_right(tally: Tally, graphs: int) -> None:
    assert [(each.seed, each.check, each.step, each.failure) for each in tally.found] == []
    counts = tally.counts
    assert counts["graphs"] == graphs
    assert counts["runs nowhere"] <= 0.02 * graphs
    assert counts["cases"] >= 3.5 * graphs
    assert counts["judged_twice"] >= 0.9 * counts["cases"]  # not a Softmax of opsets 11 and 12
    assert counts["compared at changes"] >= 0.8 * counts["changes by passes"] > graphs / 2
    assert tally.notes["a kernel takes no empty batch or sequence"] <= 0.1 * graphs
    other = sum(count for note, count in tally.notes.items() if note.startswith("another order"))
    assert other <= 0.02 * graphs


def test_sixty_graphs() -> None:
    assert_right(check_seeds(range(60)), 60)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("first", range(0, 1000, 250))
def test_a_thousand_graphs(first: int) -> None:
    assert_right(check_seeds(range(first, first + 250)), 250)


def test_what_is_put_in_vanishes_or_is_said_to_stay() -> None:
    tally = Tally()
    for seed in (*range(1000, 1015), 22945, 23373):  # of the last two, sizes go through a higher rank
        check_relations(generate(seed).model, seed, tally)
    assert [(each.seed, each.check, each.failure) for each in tally.found] == []
    assert all(tally.counts[relation] >= 3 for relation in RELATIONS), tally.counts
    assert tally.counts["other names"] == tally.counts["other order"] == 17
    assert not any(note.startswith("another order") for note in tally.notes)


def test_what_is_said_to_stay_does() -> None:
    """So that a reason does not outlive what it explains."""
    tally = Tally()
    for seed in (*range(1000, 1010), 1089, 1113):  # where a division reads the 0.0 are the last two
        model = generate(seed).model
        proto = onnx.ModelProto.FromString(model)
        if not any(node.op_type in ("Loop", "Scan") for node in proto.graph.node):
            check_relations(model, seed, tally)
    staying = {note.partition(" stays:")[0] for note in tally.notes if " stays:" in note}
    assert staying == {"Add of 0.0"}
