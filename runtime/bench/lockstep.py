"""A batch of requests of one length, in lockstep: the engine and the attention server without a scheduler."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cleave.kvcache.step import Chunk
from cleave.runtime.model import Model
from cleave.runtime.sampling.sampler import Sampler

Steps = list[list[Chunk]]


def prefill_steps(batch: int, prompt: int, budget: int) -> Steps:
    """The steps of a prefill: prompts one after the other, as many tokens a step as `budget` allows."""
    steps: Steps = []
    room = 0
    for sequence in range(batch):
        start = 0
        while start < prompt:
            if room == 0:
                steps.append([])
                room = budget
            count = min(room, prompt - start)
            steps[-1].append(Chunk(sequence, start, count))
            start, room = start + count, room - count
    return steps


def decode_steps(batch: int, prompt: int, count: int) -> Steps:
    """`count` steps of one token for each sequence; the first token came out of the prefill."""
    return [[Chunk(sequence, prompt + step, 1) for sequence in range(batch)] for step in range(count)]


def ending_rows(step: Sequence[Chunk], prompt: int) -> list[int]:
    """Rows of a prefill step that are the last of their prompt: those whose logits are wanted."""
    ends = np.cumsum([chunk.count for chunk in step]) - 1
    return [int(end) for end, chunk in zip(ends, step, strict=True) if chunk.start + chunk.count == prompt]


class Lockstep:
    """Sequences 0 to batch - 1 of one attention server, from open to close."""

    def __init__(self, model: Model, prompts: npt.NDArray[np.int64]) -> None:
        """`prompts` [batch, prompt] token ids."""
        self._model = model
        self._prompts = prompts
        self._sampler = Sampler()
        self._next = np.zeros(len(prompts), np.int64)
        for sequence in range(len(prompts)):
            model.attention.open(sequence)

    def prefill(self) -> float:
        """Seconds until every sequence has its first token."""
        batch, prompt = self._prompts.shape
        began = time.perf_counter()
        for step in prefill_steps(batch, prompt, self._model.max_tokens_per_step):
            tokens = np.concatenate(
                [self._prompts[chunk.sequence, chunk.start : chunk.start + chunk.count] for chunk in step]
            )
            rows = ending_rows(step, prompt)
            # An engine always computes a row, wanted or not.
            generated = self._run(step, tokens, rows or [0])
            for chunk_row, token in zip(rows, generated, strict=False):
                self._next[_sequence_at(step, chunk_row)] = token
        return time.perf_counter() - began

    def decode(self, count: int) -> tuple[float, ...]:
        """Seconds of each of `count` steps of one token for every sequence."""
        batch, prompt = self._prompts.shape
        seconds = []
        for step in decode_steps(batch, prompt, count):
            began = time.perf_counter()
            self._next = self._run(step, self._next, list(range(batch)))
            seconds.append(time.perf_counter() - began)
        return tuple(seconds)

    def close(self) -> None:
        """Give the pages back."""
        for sequence in range(len(self._prompts)):
            self._model.attention.close(sequence)

    def _run(
        self, step: Sequence[Chunk], tokens: npt.NDArray[np.int64], rows: Sequence[int]
    ) -> npt.NDArray[np.int64]:
        attention = self._model.attention
        attention.plan(step)
        try:
            logits = self._model.engine.run(tokens, np.array(rows, np.int64), attention)
            generated = np.array(self._sampler.sample(logits, [None] * len(rows)).tokens, np.int64)
        except BaseException:
            attention.rollback()
            raise
        attention.commit()
        return generated


def _sequence_at(step: Sequence[Chunk], row: int) -> int:
    for chunk in step:
        if row < chunk.count:
            return chunk.sequence
        row -= chunk.count
    raise IndexError(f"the step has no row {row}")
