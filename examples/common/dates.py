"""Dates as people write them, and as machines do: made up, since no such set is in the kit."""

import datetime

import numpy as np

PADDING, START, LENGTH = 0, 1, len("2026-11-25")
LETTERS = " ,-./'0123456789abcdefghijklmnopqrstuvwxyz"
SIZE = 2 + len(LETTERS)

_FORMS = (
    "{day} {month} {year}", "{month} {day}, {year}", "{day} {short} '{late}", "{day}.{number}.{year}",
    "{weekday}, {day} {month} {year}", "the {day}{th} of {month}, {year}", "{short} {day}{th} {year}",
    "{year}/{number}/{day}", "{weekday} {short} {day}, '{late}",
)  # fmt: skip
_FIRST = datetime.date(1950, 1, 1)
_DAYS = 100 * 365


def dates(count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Dates as written `[count, longest]`, padded, and as `2026-11-25` `[count, 11]`, START before it."""
    days = [_FIRST + datetime.timedelta(int(number)) for number in random.integers(0, _DAYS, count)]
    written = [_numbers(_written(day, random)) for day in days]
    width = max(len(row) for row in written)
    source = np.array([row + [PADDING] * (width - len(row)) for row in written])
    return source, np.array([[START, *_numbers(day.isoformat())] for day in days])


def text(numbers: np.ndarray) -> str:
    """The letters of a row."""
    return "".join(LETTERS[number - 2] for number in numbers if number >= 2)


def _written(day: datetime.date, random: np.random.Generator) -> str:
    form = _FORMS[random.integers(len(_FORMS))]
    ordinal = "th" if 10 < day.day < 20 else {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10, "th")
    return form.format(
        day=day.day, month=f"{day:%B}".lower(), short=f"{day:%b}".lower(), year=day.year, number=day.month,
        late=f"{day.year % 100:02}", weekday=f"{day:%A}".lower(), th=ordinal,
    )  # fmt: skip


def _numbers(letters: str) -> list[int]:
    return [2 + LETTERS.index(letter) for letter in letters]
