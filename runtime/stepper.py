"""One step, as a transaction: plan, run, sample, commit, or nothing at all."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cleave.errors import CleaveError, reason
from cleave.kvcache.server import AttentionServer
from cleave.kvcache.step import Chunk
from cleave.runtime.engines.engine import Engine, device_engine
from cleave.runtime.logit_rows import LogitRows
from cleave.runtime.pending import DeviceTokens, Pending
from cleave.runtime.sampling.logprobs import TokenLogprobs
from cleave.runtime.sampling.sampler import Sampled, Sampler
from cleave.runtime.step import ScheduledChunk, Step, StepOutcome

_log = logging.getLogger("cleave")

LONE_TRIES = 2
"""A request ends with an error when it failed this often by itself."""
_SEARCHES = 4
"""Culprits that are looked for in one step; more than these wait for the next one."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A step that the device has been told to run; what comes of it is not known yet."""

    step: Step
    wanted: LogitRows
    pending: Pending
    rows: dict[int, int]
    """Sequence id -> the row of `pending.tokens` that has its next token."""


class Stepper:
    """Runs steps of one engine over one attention server.

    A step that fails changes nothing and is run again in halves, those in halves again, until the
    request that fails by itself is found. Whatever does not fail is committed on the way. What the budget
    of runs did not reach is left out and comes first in the next step, so nobody is put off for long.

    On a DeviceEngine a step can be launched instead, while the one before it runs, and fetched later.
    """

    def __init__(
        self, engine: Engine, attention: AttentionServer, tokens: DeviceTokens | None = None
    ) -> None:
        """`tokens` chooses where the engine leaves logits on a device; None: no step can be launched."""
        self._engine = engine
        self._on_device = device_engine(engine)
        self._attention = attention
        self._tokens = tokens
        self._host_sampler: Sampler | None = None
        if tokens is None or not tokens.draws:
            self._host_sampler = Sampler()
        self._put_off: set[int] = set()

    def can_launch(self, step: Step) -> bool:
        """Whether the device alone can sample a step, and nobody in it is suspected of making it fail."""
        if self._tokens is None or self._put_off:
            return False
        return all(self._can_launch(chunk) for chunk in step)

    def launch(self, step: Step, before: Launch | None) -> Launch:
        """Start a step, and commit it to the attention server, without waiting for the device.

        Tokens that are in flight are those of `before`, the step that was launched last. Whatever is
        raised, the KV cache holds what it held before: what the device has been told to do by then writes
        only into pages that nothing reads before they are written anew.
        """
        if self._on_device is None or self._tokens is None:
            raise RuntimeError("this stepper launches no steps")
        token_ids = _token_ids(step, {} if before is None else before.rows)
        wanted = LogitRows(step)
        self._plan(step)
        try:
            output = self._on_device.launch(
                token_ids, wanted.rows, self._attention, None if before is None else before.pending.tokens
            )
            pending = self._tokens.choose(output, wanted)
        except BaseException:
            self._attention.rollback()
            raise
        self._attention.commit(share=False)
        return Launch(
            step, wanted, pending, {sequence.id: row for row, sequence in enumerate(wanted.sequences)}
        )

    def fetch(self, launch: Launch, outcome: StepOutcome) -> None:
        """Wait for a launched step and fill in `outcome`: its tokens, and who has to be computed again."""
        try:
            sampled = launch.pending.wait()
        except BaseException as error:
            outcome.lost = {chunk.sequence.id for chunk in launch.step}
            if not isinstance(error, Exception):
                raise
            _log.warning("a step of %d requests failed and is computed again: %s", len(launch.step), error)
            return
        outcome.lost = {
            owner.id for owner, token in zip(launch.wanted.owners, sampled.tokens, strict=True) if token < 0
        }
        for sequence, token, logprobs in zip(
            launch.wanted.sequences, sampled.tokens, sampled.logprobs, strict=False
        ):
            if token < 0:
                continue
            outcome.tokens[sequence.id] = token
            if logprobs is not None:
                outcome.logprobs[sequence.id] = logprobs

    def forget(self, sequences: list[int]) -> None:
        """They have ended, or their tokens in flight were lost."""
        if self._tokens is not None:
            for sequence in sequences:
                self._tokens.forget(sequence)

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
        token_ids = _token_ids(group, {})
        wanted = LogitRows(group)
        self._plan(group)
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

    def _can_launch(self, chunk: ScheduledChunk) -> bool:
        sequence = chunk.sequence
        if sequence.is_suspect or self._tokens is None:
            return False
        state = sequence.sampling
        return state is None or (self._tokens.takes(state) and not chunk.scored)

    def _plan(self, group: Step) -> None:
        self._attention.plan([Chunk(chunk.sequence.id, chunk.start, chunk.count) for chunk in group])

    def _sample(
        self, token_ids: npt.NDArray[np.int64], wanted: LogitRows
    ) -> tuple[Sampled, dict[int, list[TokenLogprobs]]]:
        """Run the engine; gives back the next tokens, and the logprobs of prompts by sequence id."""
        if self._on_device is not None and self._tokens is not None and self._stays(wanted):
            output = self._on_device.launch(token_ids, wanted.rows, self._attention)
            return self._tokens.choose(output, wanted).result(), {}
        logits = self._engine.run(token_ids, wanted.rows, self._attention)
        sampler = self._on_host()
        scored = wanted.score(logits, sampler)
        return sampler.sample(logits[: wanted.sampled], wanted.states), scored

    def _on_host(self) -> Sampler:
        """The host's sampler. Few requests need it where the device draws, and making it may take seconds.

        In a thread of its own it would be ready sooner, and hold up the first steps meanwhile.
        """
        if self._host_sampler is None:
            self._host_sampler = Sampler()
        return self._host_sampler

    def _stays(self, wanted: LogitRows) -> bool:
        """Whether the logits need not come to the host, though it waits for the tokens."""
        tokens = self._tokens
        if tokens is None or wanted.has_scores:
            return False
        return all(tokens.takes(state, in_lockstep=True) for state in wanted.states)


def _token_ids(group: Step, rows: dict[int, int]) -> npt.NDArray[np.int64]:
    """[tokens] of the chunks; -1 - r for a token in flight that is row r of the step before."""
    ids: list[int] = []
    for chunk in group:
        tokens = chunk.sequence.tokens(chunk.start, chunk.count)
        ids += tokens
        if len(tokens) < chunk.count:
            ids.append(-1 - rows[chunk.sequence.id])
    return np.array(ids, np.int64)


def _runs_allowed(requests: int) -> int:
    """Enough to find `_SEARCHES` culprits among so many requests, and so always at least one."""
    to_one = 2 * (requests - 1).bit_length() + LONE_TRIES
    return _SEARCHES * to_one


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, CleaveError) else f"{type(error).__name__}: {reason(error)}"
