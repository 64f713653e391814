"""Sequences in the order of their urgency."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import attrgetter

from cleave.runtime.sequence import Sequence

_urgency = attrgetter("urgency")


class UrgencyQueue:
    """A sorted list of sequences; no two have the same urgency."""

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        """Most urgent first."""
        return iter(self._sequences)

    def __reversed__(self) -> Iterator[Sequence]:
        return reversed(self._sequences)

    @property
    def first(self) -> Sequence:
        """The most urgent one. Raises IndexError where there is none."""
        return self._sequences[0]

    @property
    def last(self) -> Sequence:
        """The least urgent one. Raises IndexError where there is none."""
        return self._sequences[-1]

    def add(self, sequence: Sequence) -> None:
        """Put a sequence where it belongs."""
        insort(self._sequences, sequence, key=_urgency)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out; it must be there."""
        index = bisect_left(self._sequences, sequence.urgency, key=_urgency)
        if index == len(self._sequences) or self._sequences[index] is not sequence:
            raise ValueError(f"sequence {sequence.id} is not in the queue")
        del self._sequences[index]
