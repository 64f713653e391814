"""When requests are sent, and what they ask."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from cleave.errors import BenchError
from cleave.runtime.bench.ranges import Range

# Short and common, so that most tokenizers have each as one token.
_WORDS = tuple(
    word
    for line in (
        "the of and to in is that for it as was with on be by at this have from or had not but what all were",
        "we when your can said there use an each which she do how their if will up other about out many then",
    )
    for word in line.split()
)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: when it is sent, its prompt, and how many tokens it wants."""

    at: float
    """Seconds after the start."""
    prompt: str | list[int]
    output: int


def parse_rate(text: str) -> float:
    """Requests a second; "inf" for all at once. Raises BenchError for anything else."""
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not rate > 0:
        raise BenchError(f"--rate is {text!r}; give requests a second, more than 0, or inf for all at once")
    return rate


def arrivals(count: int, rate: float, generator: np.random.Generator) -> list[float]:
    """Seconds after the start, the first at 0: a Poisson process, its gaps exponential with mean 1 / rate."""
    if math.isinf(rate):
        return [0.0] * count
    gaps = generator.exponential(1 / rate, count - 1).tolist()
    return [0.0, *itertools.accumulate(gaps)]


def asks(
    count: int, rate: float, prompt: Range, output: Range, seed: int, vocab: int | None = None
) -> list[Ask]:
    """The whole load; the same seed gives the same one.

    With `vocab` prompts are random token ids, else as many short words, which a server's tokenizer turns
    into about as many tokens.
    """
    if count < 1:
        raise BenchError(f"--requests is {count}; it must be at least 1")
    generator = np.random.default_rng(seed)
    times = arrivals(count, rate, generator)
    prompts, outputs = prompt.draw(generator, count), output.draw(generator, count)
    return [
        Ask(at, _prompt(generator, length, vocab), wanted)
        for at, length, wanted in zip(times, prompts, outputs, strict=True)
    ]


def _prompt(generator: np.random.Generator, length: int, vocab: int | None) -> str | list[int]:
    if vocab is not None:
        return [int(token) for token in generator.integers(0, vocab, length)]
    return " ".join(_WORDS[index] for index in generator.integers(0, len(_WORDS), length))
