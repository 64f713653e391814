"""Faults in the scheduler, in the search for a culprit, and in sampling."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from cleave.kvcache.server import AttentionServer
from cleave.runtime import stepper
from cleave.runtime.logit_rows import LogitRows
from cleave.runtime.queue import UrgencyQueue
from cleave.runtime.sampling.sampler import Sampled, Sampler
from cleave.runtime.sampling.state import SamplingState
from cleave.runtime.scheduler import Scheduler
from cleave.runtime.sequence import Sequence
from cleave.runtime.stepper import Stepper

Patch = pytest.MonkeyPatch


def a_resumed_sequence_begins_at_a_wrong_token(patch: Patch) -> None:
    tokens = Sequence.tokens

    def shifted(self: Sequence, start: int, count: int) -> list[int]:
        if self.preemptions and start + count < self.length:
            start += 1
        return tokens(self, start, count)

    patch.setattr(Sequence, "tokens", shifted)


def preemption_keeps_the_pages(patch: Patch) -> None:
    preempt = Scheduler._preempt

    def keep(self: Scheduler, victim: Sequence, draft: Any) -> None:
        table = self._pages._tables[victim.id]
        self._pages._prefix._pool.retain(table.pages.tolist())
        preempt(self, victim, draft)

    patch.setattr(Scheduler, "_preempt", keep)


def preemption_forgets_what_was_generated_last(patch: Patch) -> None:
    preempt = Scheduler._preempt

    def forget(self: Scheduler, victim: Sequence, draft: Any) -> None:
        preempt(self, victim, draft)
        del victim.output[-1:]

    patch.setattr(Scheduler, "_preempt", forget)


def preemption_forgets_the_budget_of_a_chunk(patch: Patch) -> None:
    preempt = Scheduler._preempt

    def forget(self: Scheduler, victim: Sequence, draft: Any) -> None:
        budget = draft.budget
        preempt(self, victim, draft)
        draft.budget = max(budget, draft.budget) + 1

    patch.setattr(Scheduler, "_preempt", forget)


def the_oldest_is_preempted(patch: Patch) -> None:
    patch.setattr(UrgencyQueue, "last", UrgencyQueue.first)


def a_prompt_comes_before_decoding(patch: Patch) -> None:
    decode = Scheduler._decode

    def late(self: Scheduler, draft: Any) -> Any:
        draft.budget = max(1, draft.budget - 1)
        prompts = decode(self, draft)
        if prompts and draft.chunks:
            name = next(iter(draft.chunks))
            draft.budget += draft.chunks.pop(name).count
        return prompts

    patch.setattr(Scheduler, "_decode", late)


def an_abort_in_flight_is_dropped(patch: Patch) -> None:
    abort = Scheduler.abort

    def drop(self: Scheduler, sequence: Sequence) -> bool:
        result = abort(self, sequence)
        self._called_off.clear()
        return result

    patch.setattr(Scheduler, "abort", drop)


def an_abort_ends_twice(patch: Patch) -> None:
    abort = Scheduler.abort

    def twice(self: Scheduler, sequence: Sequence) -> bool:
        abort(self, sequence)
        return True

    patch.setattr(Scheduler, "abort", twice)


def the_search_drops_a_half(patch: Patch) -> None:
    run = Stepper.run

    def half(self: Stepper, step: Any, outcome: Any) -> None:
        before = len(step)
        if before > 1 and self._attention.runs % 3 == 0:
            step = step[: before // 2]
        run(self, step, outcome)

    patch.setattr(Stepper, "run", half)


def the_whole_step_is_blamed(patch: Patch) -> None:
    run = Stepper._run

    def blame(self: Stepper, group: Any, outcome: Any) -> None:
        try:
            run(self, group, outcome)
        except Exception as error:
            for chunk in group:
                outcome.errors[chunk.sequence.id] = str(error)
            raise

    patch.setattr(Stepper, "_run", blame)


def a_passing_fault_is_taken_for_a_culprit(patch: Patch) -> None:
    patch.setattr(stepper, "LONE_TRIES", 1)


def a_culprit_is_never_given_up(patch: Patch) -> None:
    run = Stepper.run

    def forgive(self: Stepper, step: Any, outcome: Any) -> None:
        run(self, step, outcome)
        outcome.errors.clear()

    patch.setattr(Stepper, "run", forgive)


def an_interrupt_leaves_the_step_planned(patch: Patch) -> None:
    rollback = AttentionServer.rollback

    def only_errors(self: AttentionServer) -> None:
        if not isinstance(sys.exc_info()[1], KeyboardInterrupt):
            rollback(self)

    patch.setattr(AttentionServer, "rollback", only_errors)


def a_token_is_accepted_when_it_is_drawn(patch: Patch) -> None:
    sample = Sampler.sample

    def early(self: Sampler, logits: Any, states: Any) -> Any:
        drawn = []
        for row, state in enumerate(states):
            drawn.append(sample(self, logits[row : row + 1], [state]))
            if state is not None:
                state.constraint.accept(drawn[-1].tokens[0])
        return Sampled([one.tokens[0] for one in drawn], [one.logprobs[0] for one in drawn])

    patch.setattr(Sampler, "sample", early)
    patch.setattr(SamplingState, "accept", lambda self, token: setattr(self, "generated", self.generated + 1))


def a_prompt_is_scored_again_when_it_is_computed_again(patch: Patch) -> None:
    score = LogitRows.score

    def again(self: LogitRows, logits: Any, sampler: Any) -> Any:
        result = score(self, logits, sampler)
        for sequence in self.sequences:
            if sequence.preemptions:
                result[sequence.id] = result.get(sequence.id, []) + sequence.prompt_logprobs[-1:]
        return result

    patch.setattr(LogitRows, "score", again)


def logprobs_are_those_of_another_request(patch: Patch) -> None:
    sample = Sampler.sample

    def turned(self: Sampler, logits: Any, states: Any) -> Any:
        sampled = sample(self, logits, states)
        return Sampled(sampled.tokens, sampled.logprobs[1:] + sampled.logprobs[:1])

    patch.setattr(Sampler, "sample", turned)
