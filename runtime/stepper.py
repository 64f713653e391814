"""One step, as a transaction: plan, run, sample, commit, or nothing at all."""

from __future__ import annotations

import numpy as np

from cleave.kvcache.server import AttentionServer
from cleave.kvcache.step import Chunk
from cleave.runtime.engines.engine import Engine
from cleave.runtime.sampler import greedy
from cleave.runtime.scheduler import Step


class Stepper:
    """Runs steps of one engine over one attention server."""

    def __init__(self, engine: Engine, attention: AttentionServer) -> None:
        self._engine = engine
        self._attention = attention

    def run(self, step: Step) -> dict[int, int]:
        """Run a step; gives back the next token of every sequence whose chunk reached its end, by id.

        Where anything raises, the KV cache is as before the step, and the error goes on.
        """
        token_ids = np.array(
            [token for chunk in step for token in chunk.sequence.tokens(chunk.start, chunk.count)], np.int64
        )
        last_rows = np.cumsum([chunk.count for chunk in step]) - 1
        sampling = [index for index, chunk in enumerate(step) if chunk.samples]
        # An engine always computes a row; where no chunk reaches its end, the result is not looked at.
        logit_rows = last_rows[sampling] if sampling else last_rows[:1]
        self._attention.plan([Chunk(chunk.sequence.id, chunk.start, chunk.count) for chunk in step])
        try:
            logits = self._engine.run(token_ids, logit_rows, self._attention)
            tokens = greedy(logits)
        except BaseException:
            self._attention.rollback()
            raise
        self._attention.commit()
        return {step[index].sequence.id: int(token) for index, token in zip(sampling, tokens, strict=False)}
