"""Shape profiles: the step sizes that a plan is built for."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

from cleave.errors import EngineError


@dataclass(frozen=True, slots=True)
class Range:
    """Sizes of a dimension from `low` to `high`, tuned for `optimum`."""

    low: int
    optimum: int
    high: int

    def __contains__(self, size: int) -> bool:
        return self.low <= size <= self.high

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low} to {self.high}"


@dataclass(frozen=True, slots=True)
class Profile:
    """The steps that one optimisation profile takes."""

    name: str
    tokens: Range
    rows: Range
    """Rows that reach the final norm and lm_head."""

    @property
    def dimensions(self) -> dict[str, Range]:
        """Name of a dimension in the graphs -> its sizes."""
        return {"tokens": self.tokens, "rows": self.rows}


@dataclass(frozen=True, slots=True)
class Profiles:
    """The optimisation profiles of a plan: a bucket for each power of two of decode tokens, and prefill.

    A decode step is padded up to its bucket, so a bucket is one shape: its kernels know all sizes, and
    a CUDA graph captured for it serves every smaller step. Everything else runs in the prefill range as
    it is.
    """

    max_sequences: int
    """Tokens of the largest bucket, and most logit rows of a run of the last piece."""
    max_tokens: int
    """Tokens of the largest step."""
    prefill_rows: int | None = None
    """Most logit rows of a prefill step; None: max_sequences, since the last piece can run several times."""

    def __post_init__(self) -> None:
        """Raises EngineError for sizes that are not allowed."""
        if not 1 <= self.max_sequences <= self.max_tokens:
            raise EngineError(
                f"max_tokens is {self.max_tokens} and max_sequences {self.max_sequences}; both must be at "
                "least 1, and max_tokens no less than max_sequences"
            )

    @property
    def buckets(self) -> tuple[int, ...]:
        """Token counts of the decode buckets: 1, 2, 4, 8 and so on, and max_sequences itself."""
        sizes = [1 << power for power in range(self.max_sequences.bit_length())]
        return tuple(sorted({*sizes, self.max_sequences}))

    def __iter__(self) -> Iterator[Profile]:
        """In the order of their numbers in a plan: the buckets, then prefill.

        The optimum of a range is its middle: TensorRT picks the kernels that are fastest there, and of
        the sizes of a range none is known to be more usual than another.
        """
        for bucket in self.buckets:
            exact = Range(bucket, bucket, bucket)
            yield Profile(f"decode {bucket}", exact, exact)
        yield Profile("prefill", _whole(self.max_tokens), _whole(self.prefill_rows or self.max_sequences))

    def bucket(self, tokens: int) -> int | None:
        """Number of the bucket that a decode step of so many tokens is padded to; None where none fits."""
        number = bisect_left(self.buckets, tokens)
        return number if number < len(self.buckets) else None

    @property
    def prefill(self) -> int:
        """Number of the prefill profile."""
        return len(self.buckets)

    def check(self, tokens: int) -> None:
        """Raises EngineError for a step that fits no profile: says which there are, and what would fit."""
        if not 1 <= tokens <= self.max_tokens:
            remedy = (
                "a step has at least one"
                if tokens < 1
                else f"build with --max_tokens_per_step {tokens} or more"
            )
            raise EngineError(
                f"a step of {tokens} tokens fits no profile of this engine, which has {self}; {remedy}"
            )

    def __str__(self) -> str:
        return f"decode {', '.join(map(str, self.buckets))}; prefill 1 to {self.max_tokens}"


def _whole(most: int) -> Range:
    return Range(1, (1 + most) // 2, most)
