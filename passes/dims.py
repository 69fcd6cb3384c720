"""Sizes that are not known yet: polynomials in named dims, so that equal sizes compare equal.

`batch * sequence` is the same `Dim` as `sequence * batch`, and `(4 * batch * 8) / batch` is 32. Every name
stands for a size: an integer that is at least 0.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Final, final

Monomial = tuple[str, ...]
"""The names of a product, sorted; a power repeats its name, the empty tuple is 1."""

_ONE: Final = (((), 1),)  # the terms of 1
_MAX_TERMS: Final = 24  # sums longer than this come from no real model, and products of them explode


class DimOverflowError(ArithmeticError):
    """An expression has too many terms to be worth following."""


@final
@dataclasses.dataclass(frozen=True)
class Dim:
    """A size as a sum of products of named sizes.

    Example::

        batch, four = Dim.named("batch"), Dim.of(4)
        assert (batch * four).divided_by(batch) == four
    """

    terms: tuple[tuple[Monomial, int], ...] = ()
    """(names, coefficient), sorted, without zeros; empty: the size is 0."""

    @staticmethod
    @functools.lru_cache(maxsize=1 << 14)
    def of(size: int) -> Dim:
        """The known size."""
        return Dim((((), int(size)),)) if size else Dim()

    @staticmethod
    def named(name: str) -> Dim:
        """The size that `name` stands for."""
        return Dim((((name,), 1),))

    @property
    def size(self) -> int | None:
        """The size, when it is known."""
        if not self.terms:
            return 0
        names, coefficient = self.terms[0]
        return coefficient if len(self.terms) == 1 and not names else None

    @property
    def name(self) -> str | None:
        """The name, when this is one name and nothing else."""
        names, coefficient = self.terms[0] if len(self.terms) == 1 else ((), 0)
        return names[0] if len(names) == 1 and coefficient == 1 else None

    @property
    def minimum(self) -> int | None:
        """A lower bound; None when there is none (something is subtracted)."""
        if any(names and coefficient < 0 for names, coefficient in self.terms):
            return None
        return next((coefficient for names, coefficient in self.terms if not names), 0)

    def is_at_least(self, bound: int) -> bool:
        """True when this is `bound` or more, whatever the names stand for."""
        minimum = self.minimum
        return minimum is not None and minimum >= bound

    def __add__(self, other: Dim) -> Dim:
        if not self.terms or not other.terms:
            return self if self.terms else other
        return _collect([*self.terms, *other.terms])

    def __sub__(self, other: Dim) -> Dim:
        return self + other * Dim.of(-1)

    def __mul__(self, other: Dim) -> Dim:
        if self.terms == _ONE or other.terms == _ONE:
            return other if self.terms == _ONE else self
        return _collect((tuple(sorted(a + b)), x * y) for a, x in self.terms for b, y in other.terms)

    def divided_by(self, other: Dim) -> Dim | None:
        """The exact quotient by a single product, where no name of it is 0; None: not exact."""
        if len(other.terms) != 1:
            return Dim.of(1) if self == other and self.terms else None
        names, divisor = other.terms[0]
        quotient = []
        for own, coefficient in self.terms:
            left = _without(own, names)
            if left is None or coefficient % divisor:
                return None
            quotient.append((left, coefficient // divisor))
        return _collect(quotient)

    def __str__(self) -> str:
        return "+".join(_spelt(names, coefficient) for names, coefficient in self.terms) or "0"


def product(dims: Iterable[Dim]) -> Dim:
    """The product of sizes; 1 for none."""
    result = Dim.of(1)
    for dim in dims:
        result = result * dim
    return result


def total(dims: Iterable[Dim]) -> Dim:
    """The sum of sizes; 0 for none."""
    result = Dim()
    for dim in dims:
        result = result + dim
    return result


def _collect(terms: Iterable[tuple[Monomial, int]]) -> Dim:
    sums: dict[Monomial, int] = {}
    for names, coefficient in terms:
        sums[names] = sums.get(names, 0) + coefficient
    kept = tuple(sorted((names, x) for names, x in sums.items() if x))
    if len(kept) > _MAX_TERMS or any(len(names) > _MAX_TERMS for names, _ in kept):
        raise DimOverflowError
    return Dim(kept)


def _spelt(names: Monomial, coefficient: int) -> str:
    return "*".join(names if names and coefficient == 1 else (str(coefficient), *names))


def _without(names: Monomial, divisor: Monomial) -> Monomial | None:
    left = list(names)
    for name in divisor:
        if name not in left:
            return None
        left.remove(name)
    return tuple(left)
