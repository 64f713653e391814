"""Faults one step ahead."""

from __future__ import annotations

from typing import Any

import pytest

from cleave.kvcache.server import AttentionServer
from cleave.runtime import stepper
from cleave.runtime.logit_rows import LogitRows
from cleave.runtime.scheduler import Scheduler
from cleave.runtime.sequence import Sequence
from cleave.runtime.step_loop import StepLoop
from cleave.runtime.stepper import Stepper

Patch = pytest.MonkeyPatch


def a_token_in_flight_does_not_count(patch: Patch) -> None:
    patch.setattr(Sequence, "length", property(lambda self: len(self.prompt) + len(self.output)))


def a_sequence_runs_beyond_its_last_token(patch: Patch) -> None:
    patch.setattr(Sequence, "is_exhausted", property(lambda self: False))


def preemption_forgets_the_token_in_flight(patch: Patch) -> None:
    evict = Scheduler._evict

    def forget(self: Scheduler, sequence: Sequence) -> None:
        evict(self, sequence)
        sequence.in_flight = 0

    patch.setattr(Scheduler, "_evict", forget)


def tokens_in_flight_are_those_of_another_sequence(patch: Patch) -> None:
    token_ids = stepper._token_ids

    def turned(group: Any, rows: dict[int, int]) -> Any:
        return token_ids(
            group, dict(zip(rows, [*list(rows.values())[1:], *list(rows.values())[:1]], strict=True))
        )

    patch.setattr(stepper, "_token_ids", turned)


def steps_end_in_another_order_than_they_were_launched(patch: Patch) -> None:
    commit = Scheduler.commit

    def newest(self: Scheduler, outcome: Any) -> Any:
        self._launched.rotate(1)
        try:
            return commit(self, outcome)
        finally:
            self._launched.rotate(-1)

    patch.setattr(Scheduler, "commit", newest)


def a_token_after_the_end_is_kept(patch: Patch) -> None:
    commit = Scheduler._commit_launched

    def keep(self: Scheduler, step: Any, outcome: Any) -> Any:
        for chunk in step:
            if chunk.sequence.status == "ended" and chunk.sequence.id in outcome.tokens:
                chunk.sequence.output.append(outcome.tokens[chunk.sequence.id])
        return commit(self, step, outcome)

    patch.setattr(Scheduler, "_commit_launched", keep)


def pages_of_a_launched_step_can_be_found_before_it_has_ended(patch: Patch) -> None:
    commit = AttentionServer.commit
    patch.setattr(AttentionServer, "commit", lambda self, *, share=True: commit(self))


def pages_of_an_earlier_stay_are_shared(patch: Patch) -> None:
    launched = Scheduler.launched

    def forget(self: Scheduler) -> None:
        for chunk in self._scheduled:
            chunk.residence = 0
            chunk.sequence.residence = 0
        launched(self)

    patch.setattr(Scheduler, "launched", forget)


def what_follows_a_lost_token_counts(patch: Patch) -> None:
    def set_back(self: Scheduler, sequence: Sequence) -> None:
        launched, self._launched = self._launched, type(self._launched)()
        original(self, sequence)
        self._launched = launched

    original = Scheduler._set_back
    patch.setattr(Scheduler, "_set_back", set_back)


def a_lost_step_is_launched_again_and_again(patch: Patch) -> None:
    original = Scheduler._set_back

    def set_back(self: Scheduler, sequence: Sequence) -> None:
        original(self, sequence)
        sequence.is_suspect = False

    patch.setattr(Scheduler, "_set_back", set_back)


def a_failed_launch_is_committed(patch: Patch) -> None:
    launch = Stepper.launch

    def commit(self: Stepper, step: Any, before: Any) -> Any:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(AttentionServer, "rollback", AttentionServer.commit)
            return launch(self, step, before)

    patch.setattr(Stepper, "launch", commit)


def only_the_rows_that_sample_are_looked_at_for_numbers(patch: Patch) -> None:
    init = LogitRows.__init__

    def without(self: LogitRows, group: Any) -> None:
        init(self, group)
        self.owners = self.sequences or [Sequence(-1, (0,), 1, frozenset())]

    patch.setattr(LogitRows, "__init__", without)


def a_scheduled_step_is_run_although_it_was_made_for_a_launch(patch: Patch) -> None:
    def advance(self: StepLoop) -> Any:
        withdraw, schedule = self._scheduler.withdraw, self._scheduler.schedule
        kept: list[Any] = []
        self._scheduler.withdraw = lambda: kept.append(self._scheduler._scheduled) or withdraw()
        self._scheduler.schedule = lambda: kept.pop() if kept else schedule()
        try:
            yield from original(self)
        finally:
            del self._scheduler.withdraw, self._scheduler.schedule

    original = StepLoop.advance
    patch.setattr(StepLoop, "advance", advance)
