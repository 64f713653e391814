"""One step, as a transaction: plan, run, sample, commit, or nothing at all."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from cleave.errors import CleaveError, reason
from cleave.kvcache.server import AttentionServer
from cleave.kvcache.step import Chunk
from cleave.runtime.engines.engine import Engine, device_engine
from cleave.runtime.logit_rows import LogitRows
from cleave.runtime.sampling.device.interface import TokenSampler
from cleave.runtime.sampling.likeliest import likeliest
from cleave.runtime.sampling.logprobs import TokenLogprobs
from cleave.runtime.sampling.sampler import Sampled, Sampler
from cleave.runtime.step import ScheduledChunk, Step, StepOutcome

_log = logging.getLogger("cleave")

LONE_TRIES = 2
"""A request ends with an error when it failed this often by itself."""
_SEARCHES = 4
"""Culprits that are looked for in one step; more than these wait for the next one."""


class Stepper:
    """Runs steps of one engine over one attention server.

    A step that fails changes nothing and is run again in halves, those in halves again, until the
    request that fails by itself is found. Whatever does not fail is committed on the way. What the budget
    of runs did not reach is left out and comes first in the next step, so nobody is put off for long.
    """

    def __init__(
        self, engine: Engine, attention: AttentionServer, device_sampler: TokenSampler | None = None
    ) -> None:
        """`device_sampler` samples what a DeviceEngine gives; None: the logits come to the host."""
        self._engine = engine
        self._device_sampler = device_sampler
        self._on_device = device_engine(engine)
        self._attention = attention
        self._sampler = Sampler()
        self._put_off: set[int] = set()

    def run(self, step: Step, outcome: StepOutcome) -> None:
        """Run a step and fill in `outcome`, part by part.

        What is not an Exception, such as KeyboardInterrupt, undoes the part under way and goes on to the
        caller; the parts in `outcome` stay.
        """
        if self._put_off:
            step = tuple(sorted(step, key=lambda chunk: chunk.sequence.id not in self._put_off))
            self._put_off = set()
        groups = [step]
        lone_tries = 0
        for _ in range(_runs_allowed(len(step))):
            group = groups.pop()
            try:
                self._run(group, outcome)
                lone_tries = 0
            except Exception as error:
                if len(group) > 1:
                    _log.warning("a step of %d requests failed and is run in halves: %s", len(group), error)
                    middle = len(group) // 2
                    groups += [group[middle:], group[:middle]]
                    continue
                lone_tries += 1
                if lone_tries < LONE_TRIES:
                    groups.append(group)
                    continue
                lone_tries = 0
                _log.error("request %d makes steps fail and ends", group[0].sequence.id, exc_info=error)
                outcome.errors[group[0].sequence.id] = _reason(error)
            if not groups:
                return
        self._put_off = {chunk.sequence.id for group in groups for chunk in group}

    def _run(self, group: tuple[ScheduledChunk, ...], outcome: StepOutcome) -> None:
        """Run a group and commit it; where anything raises, the KV cache is as before."""
        token_ids = np.array(
            [token for chunk in group for token in chunk.sequence.tokens(chunk.start, chunk.count)], np.int64
        )
        wanted = LogitRows(group)
        self._attention.plan([Chunk(chunk.sequence.id, chunk.start, chunk.count) for chunk in group])
        try:
            sampled, scored = self._sample(token_ids, wanted)
        except BaseException:
            self._attention.rollback()
            raise
        # The tokens first: a chunk that is committed must never lack its token.
        for sequence, token, logprobs in zip(
            wanted.sequences, sampled.tokens, sampled.logprobs, strict=False
        ):
            outcome.tokens[sequence.id] = token
            if logprobs is not None:
                outcome.logprobs[sequence.id] = logprobs
        outcome.prompt_logprobs.update(scored)
        self._attention.commit()

    def _sample(
        self, token_ids: npt.NDArray[np.int64], wanted: LogitRows
    ) -> tuple[Sampled, dict[int, list[TokenLogprobs]]]:
        """Run the engine; gives back the next tokens, and the logprobs of prompts by sequence id."""
        if self._on_device is not None and wanted.is_plain:
            tokens = likeliest(self._on_device.run_on_device(token_ids, wanted.rows, self._attention))
            return Sampled(tokens, [None] * len(tokens)), {}
        if self._on_device is not None and self._device_sampler is not None and self._stays(wanted):
            logits = self._on_device.run_on_device(token_ids, wanted.rows, self._attention)
            return self._device_sampler.sample(logits, wanted.sampled_rows).result(), {}
        logits = self._engine.run(token_ids, wanted.rows, self._attention)
        scored = wanted.score(logits, self._sampler)
        return self._sampler.sample(logits[: wanted.sampled], wanted.states), scored

    def _stays(self, wanted: LogitRows) -> bool:
        """Whether the logits need not come to the host."""
        sampler = self._device_sampler
        if sampler is None or wanted.has_scores:
            return False
        return all(sampler.takes(state, in_lockstep=True) for state in wanted.states)


def _runs_allowed(requests: int) -> int:
    """Enough to find `_SEARCHES` culprits among so many requests, and so always at least one."""
    to_one = 2 * (requests - 1).bit_length() + LONE_TRIES
    return _SEARCHES * to_one


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, CleaveError) else f"{type(error).__name__}: {reason(error)}"
