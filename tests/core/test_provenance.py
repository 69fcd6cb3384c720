"""Origins in a node's metadata: written, read back, bounded."""

import pytest

from burnish.provenance import (
    CLASS,
    JOINED,
    KEYS,
    LONGEST,
    MODULE,
    MOST,
    SOURCE,
    Origin,
    ancestors,
    bounded,
    common_module,
    home_module,
    origins,
    write_origins,
)  # fmt: skip

QUERY = Origin("encoder.layer.0.attention.self.query", "Linear", "bert.py:12 in forward")
SELF = Origin("encoder.layer.0.attention.self", "SelfAttention", "bert.py:20 in forward")
ROOT = Origin("", "Bert")


@pytest.mark.parametrize("found", [[], [QUERY], [ROOT], [QUERY, SELF, ROOT], [Origin("a"), Origin("b")]])
def test_what_is_written_is_read(found: list[Origin]) -> None:
    metadata = {"other": "kept"}
    write_origins(metadata, found)
    assert list(origins(metadata)) == found
    assert metadata["other"] == "kept"


def test_one_origin_is_plain_text() -> None:
    metadata: dict[str, str] = {}
    write_origins(metadata, [QUERY])
    assert metadata == {MODULE: QUERY.module, CLASS: "Linear", SOURCE: "bert.py:12 in forward"}


def test_each_once_in_order_and_what_was_there_goes() -> None:
    metadata = dict.fromkeys(KEYS, "old")
    write_origins(metadata, [SELF, QUERY, SELF])
    assert origins(metadata) == (SELF, QUERY)
    write_origins(metadata, [])
    assert metadata == {}


def test_many_are_bounded_and_keep_their_common_module() -> None:
    many = [Origin(f"encoder.layer.{number}.dense", "Linear") for number in range(100)]
    kept = bounded(many)
    assert len(kept) == MOST
    assert kept[-1] == Origin("encoder.layer", JOINED)
    assert common_module(kept) == common_module(many) == "encoder.layer"
    assert bounded([*kept, many[0]]) == kept


def test_long_lines_lose_their_middle_but_paths_stay_whole() -> None:
    path = ".".join(["module"] * 100)
    metadata: dict[str, str] = {}
    write_origins(metadata, [Origin(path, "K" * 1000, "first\nsecond" + "x" * 1000 + ".py:7 in forward")])
    (origin,) = origins(metadata)
    assert origin.module == path
    assert len(origin.kind) == len(origin.source) == LONGEST
    assert origin.source.startswith("first second")
    assert origin.source.endswith(".py:7 in forward")


def test_uneven_lines_of_a_foreign_tool_are_read_as_far_as_they_go() -> None:
    assert origins({MODULE: "a\nb", CLASS: "A", SOURCE: "1\n2\n3"}) == (
        Origin("a", "A", "1"),
        Origin("b", "", "2"),
    )
    assert origins({CLASS: "A"}) == ()


@pytest.mark.parametrize(
    ("paths", "expected"),
    [(["a.b.c", "a.b.d"], "a.b"), (["a.b", "a.b.c"], "a.b"), (["a.bc", "a.b"], "a"), (["a", "b"], ""),
     (["a.b", ""], ""), (["a.b"], "a.b"), ([""], "")],
)  # fmt: skip
def test_common_module(paths: list[str], expected: str) -> None:
    assert common_module(map(Origin, paths)) == expected


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ([], ""),
        ([""], ""),
        (["a.b"], "a.b"),
        (["a", ""], ""),
        (["layers.0.up", "layers.0"], "layers.0"),
        (["n.layers.0.up", "n.layers.0.act", "n.mask"], "n.layers.0"),
        (["l.0.attn"] * 4 + ["l.1.attn", "l.2.attn", "l.3.attn", "", "", ""], "l.0.attn"),
        (["l.0.attn"] * 3 + ["l.1.attn"] * 2 + ["l.2.attn"], "l"),
        (["attn.q", "attn.k", "attn.v", "attn.q"], "attn"),
    ],
)
def test_home_module(paths: list[str], expected: str) -> None:
    assert home_module(map(Origin, paths)) == expected


def test_ancestors() -> None:
    assert ancestors("a.b.c") == ["", "a", "a.b", "a.b.c"]
    assert ancestors("") == [""]
