"""Sizes in bytes, read and shown."""

import pytest

from burnish.byte_sizes import parse_bytes, show_bytes
from burnish.errors import InputError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500MB", 500_000_000),
        ("2GiB", 2**31),
        ("1.5 gb", 1_500_000_000),
        ("64k", 64_000),
        (12, 12),
        ("7B", 7),
    ],
)
def test_sizes_in_bytes(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1MB", "0", "1e9", "5 apples", "1.2.3MB", 0, -4])
def test_what_is_no_size(text: str | int) -> None:
    with pytest.raises(InputError, match="is not a size in bytes"):
        parse_bytes(text)


def test_sizes_are_shown_with_three_digits() -> None:
    shown = [show_bytes(size) for size in (12, 1500, 999_700, 1_250_000_000, 45_600_000)]
    assert shown == ["12 bytes", "1.5 kB", "1000 kB", "1.25 GB", "45.6 MB"]
