"""The sides of a benchmark: Cleave with one kind of weights, and what every peer has to be."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from workshop import Workshop

from cleave import LLM, SamplingParams
from cleave.export.artifact import Artifact
from cleave.runtime.bench.fit import kv_bytes_for

Prompts = list[list[int]]


@dataclass(frozen=True)
class Weights:
    """A kind of weights, as a program reads it."""

    name: str
    item_bytes: float
    """Bytes of one weight, its share of the scales included."""
    computes_in: str | None
    """What products are computed in; None where the machine's rate for that is not measured."""


OURS = {
    "float32": Weights("float32", 4, "float32"),
    "int8": Weights("int8", 1, "int8"),
    "int4": Weights("int4", 0.5 + 4.5 / 32, "int8"),
}
"""int4: a float32 scale and a half-byte zero point for each 32 values."""


class Contender(Protocol):
    """One side."""

    program: str
    weights: Weights
    note: str
    """What a reader of the figures has to know of this build of the program, a sentence; mostly ""."""

    def generate(self, prompts: Prompts, tokens: int) -> Prompts:
        """`tokens` greedy tokens after every prompt, all prompts in one batch."""

    def close(self) -> None:
        """Give back memory and threads."""


MakePeer = Callable[[str, Workshop, argparse.Namespace, int], Contender]
"""Called with the kind of weights, where files are kept, the arguments and the largest batch."""


class Cleave:
    """This project, through `LLM.generate`."""

    program = "Cleave"
    note = ""

    def __init__(self, weights: str, files: Workshop, arguments: argparse.Namespace, batch: int) -> None:
        self.weights = OURS[weights]
        artifact = files.artifact(weights)
        tokens = arguments.output + 1
        opened = Artifact.open(artifact, verify=False)
        self._llm = LLM(
            artifact,
            arguments.engine,
            attention=arguments.attention,
            threads=arguments.threads,
            max_model_len=arguments.prompt + tokens,
            max_sequences=batch,
            max_tokens_per_step=max(512, batch * arguments.prompt),
            kv_cache_bytes=kv_bytes_for(opened, batch, arguments.prompt, tokens),
            prefix_cache=False,
            verify=False,
        )

    def generate(self, prompts: Prompts, tokens: int) -> Prompts:
        """See `Contender`."""
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        return [list(answer.token_ids) for answer in self._llm.generate(prompts, params)]

    def close(self) -> None:
        """See `Contender`."""
        self._llm.close()


def title(side: Contender) -> str:
    """Such as "Cleave int8", "llama.cpp Q8_0"."""
    return f"{side.program} {side.weights.name}"


def same(left: Prompts, right: Prompts) -> tuple[int, int]:
    """Tokens that agree up to the first difference of each answer, and all tokens."""
    agreed = 0
    for ours, theirs in zip(left, right, strict=True):
        pairs = zip(ours, theirs, strict=True)
        agreed += next((index for index, (a, b) in enumerate(pairs) if a != b), len(ours))
    return agreed, sum(map(len, left))


def chosen(given: str, allowed: Sequence[str], option: str) -> list[str]:
    """The items of a comma-separated option. Raises ValueError for one that is not allowed."""
    items = [item for item in given.split(",") if item]
    wrong = [item for item in items if item not in allowed]
    if wrong:
        raise ValueError(f"{option} {wrong[0]} is not known; there are {', '.join(allowed)}")
    return items
