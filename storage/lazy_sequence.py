"""Sequences whose items are made when they are asked for, from records that are kept in less space."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar, overload

T = TypeVar("T")

ITEMS = 2048
"""Items that are made at a time when all are asked for."""


def batched(items: Iterable[T], size: int = ITEMS) -> Iterator[list[T]]:
    """Yield the items in lists of ``size``; the last may be shorter, and none is empty."""
    iterator = iter(items)
    while block := list(islice(iterator, size)):
        yield block


class LazySequence(Sequence[T]):
    """A sequence that makes its items, and keeps none. It equals any sequence of equal items."""

    @abstractmethod
    def items(self, start: int, stop: int) -> list[T]:
        """Return the items from ``start`` up to ``stop``, with 0 <= start <= stop <= len(self)."""

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: int | slice) -> T | list[T]:
        """Return an item, or a list of items."""
        if isinstance(index, slice):
            numbers = range(*index.indices(len(self)))
            if numbers.step == 1:
                return self.items(numbers.start, max(numbers.start, numbers.stop))
            return [self[number] for number in numbers]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(index)
        return self.items(number, number + 1)[0]

    def __iter__(self) -> Iterator[T]:
        """Yield all items, some thousands of which are in memory at a time."""
        for start in range(0, len(self), ITEMS):
            yield from self.items(start, min(start + ITEMS, len(self)))

    def __eq__(self, other: object) -> bool:
        """Return whether another sequence has equal items."""
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Return the first items."""
        return f"{type(self).__name__}({self[:3]!r}, ... {len(self):,})"
