"""Options that are lists or ranges of whole numbers, as the command line takes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cleave.errors import BenchError


@dataclass(frozen=True, slots=True)
class Range:
    """Whole numbers from `low` to `high`, both included."""

    low: int
    high: int

    @classmethod
    def parse(cls, name: str, text: str) -> Range:
        """Read "512" or "100:1024". Raises BenchError for anything else."""
        low, _, high = text.partition(":")
        try:
            found = cls(int(low), int(high or low))
        except ValueError:
            raise BenchError(f"--{name} is {text!r}; give a number, or LOW:HIGH like 100:1024") from None
        if not 1 <= found.low <= found.high:
            raise BenchError(f"--{name} is {text!r}; it must start at 1 or more and not go down")
        return found

    def draw(self, generator: np.random.Generator, count: int) -> list[int]:
        """`count` of them, uniformly."""
        return [int(value) for value in generator.integers(self.low, self.high, count, endpoint=True)]

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}:{self.high}"


def numbers(name: str, text: str) -> list[int]:
    """Read "1,2,4": ascending, without repetitions. Raises BenchError for anything else."""
    try:
        found = sorted({int(part) for part in text.split(",") if part.strip()})
    except ValueError:
        found = []
    if not found or found[0] < 1:
        raise BenchError(f"--{name} is {text!r}; give whole numbers from 1 on, by commas: 1,2,4,8")
    return found
