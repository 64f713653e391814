"""Shape profiles: the step sizes that a plan is built for."""

from __future__ import annotations

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

    max_decode: int
    """Tokens of the largest bucket."""
    max_tokens: int
    """Tokens of the largest step."""

    def __post_init__(self) -> None:
        """Raises EngineError for sizes that are not allowed."""
        if self.max_tokens < 1 or not 0 <= self.max_decode <= self.max_tokens:
            raise EngineError(
                f"max_tokens is {self.max_tokens} and max_decode {self.max_decode}; max_tokens must be at "
                "least 1, and max_decode between 0 (no buckets) and max_tokens"
            )

    @property
    def buckets(self) -> tuple[int, ...]:
        """Token counts of the decode buckets: 1, 2, 4, 8 and so on, and max_decode itself."""
        sizes = [1 << power for power in range(self.max_decode.bit_length())]
        return tuple(sorted({*sizes, self.max_decode} - {0}))

    def __iter__(self) -> Iterator[Profile]:
        """In the order of their numbers in a plan: the buckets, then prefill.

        The optimum of a range is its middle: TensorRT picks the kernels that are fastest there, and of
        the sizes of a range none is known to be more usual than another.
        """
        for bucket in self.buckets:
            exact = Range(bucket, bucket, bucket)
            yield Profile(f"decode {bucket}", exact, exact)
        whole = Range(1, (1 + self.max_tokens) // 2, self.max_tokens)
        yield Profile("prefill", whole, whole)

    def bucket(self, tokens: int) -> tuple[int, int] | None:
        """(number of the profile, bucket) that a decode step of so many tokens is padded to, or None."""
        for number, bucket in enumerate(self.buckets):
            if tokens <= bucket:
                return number, bucket
        return None

    @property
    def prefill(self) -> int:
        """Number of the prefill profile."""
        return len(self.buckets)

    def check(self, tokens: int, rows: int) -> None:
        """Raises EngineError for a step that fits no profile: says which there are, and what would fit."""
        most = Range(1, 1, self.max_tokens)
        for name, size in (("tokens", tokens), ("logit rows", rows)):
            if size not in most:
                remedy = "a step has at least one" if size < 1 else f"build with max_tokens {size} or more"
                raise EngineError(
                    f"a step of {size} {name} fits no profile of this engine, which has {self}; {remedy}"
                )

    def __str__(self) -> str:
        buckets = f"decode {', '.join(map(str, self.buckets))}; " if self.buckets else ""
        return f"{buckets}prefill 1 to {self.max_tokens}"
