"""The simulation is worth something: each of these planted faults makes it fail within a few seeds."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import pytest
from simulation.run import Simulation
from simulation.scenario import random_scenario
from simulation.shrink import failure, shrink

from cleave.kvcache import page_manager
from cleave.kvcache.keys import PageKeys, _digest
from cleave.kvcache.page_manager import PageManager
from cleave.kvcache.prefix import PrefixCache
from cleave.kvcache.server import AttentionServer
from cleave.kvcache.table import PageTable
from cleave.runtime import stepper
from cleave.runtime.logit_rows import LogitRows
from cleave.runtime.queue import UrgencyQueue
from cleave.runtime.sampling.sampler import Sampled, Sampler
from cleave.runtime.sampling.state import SamplingState
from cleave.runtime.scheduler import Scheduler
from cleave.runtime.sequence import Sequence
from cleave.runtime.step_loop import StepLoop
from cleave.runtime.stepper import Stepper

MOST_SEEDS = 300

Patch = pytest.MonkeyPatch
MUTATIONS: list[Callable[[Patch], None]] = []


def mutation(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
    MUTATIONS.append(plant)
    return plant


@mutation
def a_page_leaks_when_a_sequence_ends(patch: Patch) -> None:
    give_back = PrefixCache.give_back
    patch.setattr(PrefixCache, "give_back", lambda self, pages: give_back(self, pages[: len(pages) - 1]))


@mutation
def a_rollback_is_skipped(patch: Patch) -> None:
    patch.setattr(PageManager, "rollback", lambda self: self._end())


@mutation
def a_rollback_forgets_one_of_two(patch: Patch) -> None:
    def rollback(self: PageManager) -> None:
        reserved = self._end()
        taken: list[int] = []
        for chunk, count in list(zip(reserved.chunks, reserved.pages_before, strict=True))[:1]:
            taken += self._tables[chunk.sequence].shrink(count)
        self._pool.release(taken)

    patch.setattr(PageManager, "rollback", rollback)


@mutation
def a_failed_step_is_committed(patch: Patch) -> None:
    patch.setattr(PageManager, "rollback", PageManager.commit)


@mutation
def a_page_that_is_still_written_is_shared(patch: Patch) -> None:
    def publish(self: PageManager, table: PageTable, keys: PageKeys, tokens: int) -> None:
        full = min(-(-tokens // self.page_size), len(keys))
        while table.published < full:
            self._prefix.publish(keys[table.published], int(table.pages[table.published]))
            table.published += 1

    patch.setattr(PageManager, "_publish", publish)


@mutation
def a_page_can_be_found_before_its_step_is_committed(patch: Patch) -> None:
    reserve = PageManager.reserve

    def early(self: PageManager, step: Any) -> list[PageTable]:
        tables = reserve(self, step)
        for chunk, table in zip(step, tables, strict=True):
            if table.keys is not None:
                full = min((chunk.start + chunk.count) // self.page_size, len(table.keys))
                for page in range(table.published, full):
                    self._prefix.publish(table.keys[page], int(table.pages[page]))
        return tables

    patch.setattr(PageManager, "reserve", early)


@mutation
def a_page_in_use_is_evicted(patch: Patch) -> None:
    patch.setattr(PrefixCache, "take", lambda self, pages: self._pool.retain(pages))


@mutation
def the_page_used_last_is_evicted_first(patch: Patch) -> None:
    def make_room(self: PrefixCache, count: int) -> None:
        while self._pool.free_pages < count and self._idle:
            page, _ = self._idle.popitem(last=True)
            del self._pages[self._keys.pop(page)]
            self._pool.release([page])
            self.stats.evicted_pages += 1

    patch.setattr(PrefixCache, "make_room", make_room)


@mutation
def a_key_forgets_what_came_before(patch: Patch) -> None:
    def extend(self: PageKeys, tokens: Any) -> None:
        self._rest.extend(tokens)
        while len(self._rest) >= self.page_size:
            self._keys.append(_digest(bytes(self._rest[: self.page_size])))
            del self._rest[: self.page_size]

    patch.setattr(PageKeys, "extend", extend)


@mutation
def a_whole_prompt_is_taken_from_the_prefix_cache(patch: Patch) -> None:
    def find(self: PrefixCache, keys: PageKeys) -> list[int]:
        pages = []
        for index in range(len(keys)):
            if (page := self._pages.get(keys[index])) is None:
                break
            pages.append(page)
        return pages

    patch.setattr(PrefixCache, "find", find)


@mutation
def the_page_count_is_off_by_one(patch: Patch) -> None:
    patch.setattr(page_manager, "pages_for", lambda tokens, size: tokens // size + 1)


@mutation
def a_table_gets_a_page_too_few(patch: Patch) -> None:
    def missing(self: PageTable, length: int) -> int:
        return max(0, length // self.page_size - self.count)

    patch.setattr(PageTable, "missing", missing)


@mutation
def positions_are_out_of_order(patch: Patch) -> None:
    build = AttentionServer._build

    def shifted(self: AttentionServer, step: Any, tables: Any) -> Any:
        plan = build(self, step, tables)
        if plan.tokens > 1:
            plan.positions[:2] = plan.positions[1::-1]
        return plan

    patch.setattr(AttentionServer, "_build", shifted)


@mutation
def slots_are_out_of_order(patch: Patch) -> None:
    build = AttentionServer._build

    def shifted(self: AttentionServer, step: Any, tables: Any) -> Any:
        plan = build(self, step, tables)
        if plan.tokens > 1:
            plan.slots[:2] = plan.slots[1::-1]
        return plan

    patch.setattr(AttentionServer, "_build", shifted)


@mutation
def a_resumed_sequence_begins_at_a_wrong_token(patch: Patch) -> None:
    tokens = Sequence.tokens

    def shifted(self: Sequence, start: int, count: int) -> list[int]:
        if self.preemptions and start + count < self.length:
            start += 1
        return tokens(self, start, count)

    patch.setattr(Sequence, "tokens", shifted)


@mutation
def preemption_keeps_the_pages(patch: Patch) -> None:
    preempt = Scheduler._preempt

    def keep(self: Scheduler, victim: Sequence, draft: Any) -> None:
        table = self._pages._tables[victim.id]
        self._pages._prefix._pool.retain(table.pages.tolist())
        preempt(self, victim, draft)

    patch.setattr(Scheduler, "_preempt", keep)


@mutation
def preemption_forgets_what_was_generated_last(patch: Patch) -> None:
    preempt = Scheduler._preempt

    def forget(self: Scheduler, victim: Sequence, draft: Any) -> None:
        preempt(self, victim, draft)
        del victim.output[-1:]

    patch.setattr(Scheduler, "_preempt", forget)


@mutation
def preemption_forgets_the_budget_of_a_chunk(patch: Patch) -> None:
    preempt = Scheduler._preempt

    def forget(self: Scheduler, victim: Sequence, draft: Any) -> None:
        budget = draft.budget
        preempt(self, victim, draft)
        draft.budget = max(budget, draft.budget) + 1

    patch.setattr(Scheduler, "_preempt", forget)


@mutation
def the_oldest_is_preempted(patch: Patch) -> None:
    patch.setattr(UrgencyQueue, "last", UrgencyQueue.first)


@mutation
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


@mutation
def an_abort_in_flight_is_dropped(patch: Patch) -> None:
    abort = Scheduler.abort

    def drop(self: Scheduler, sequence: Sequence) -> bool:
        result = abort(self, sequence)
        self._called_off.clear()
        return result

    patch.setattr(Scheduler, "abort", drop)


@mutation
def an_abort_ends_twice(patch: Patch) -> None:
    abort = Scheduler.abort

    def twice(self: Scheduler, sequence: Sequence) -> bool:
        abort(self, sequence)
        return True

    patch.setattr(Scheduler, "abort", twice)


@mutation
def the_search_drops_a_half(patch: Patch) -> None:
    run = Stepper.run

    def half(self: Stepper, step: Any, outcome: Any) -> None:
        before = len(step)
        if before > 1 and self._attention.runs % 3 == 0:
            step = step[: before // 2]
        run(self, step, outcome)

    patch.setattr(Stepper, "run", half)


@mutation
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


@mutation
def a_passing_fault_is_taken_for_a_culprit(patch: Patch) -> None:
    patch.setattr(stepper, "LONE_TRIES", 1)


@mutation
def a_culprit_is_never_given_up(patch: Patch) -> None:
    run = Stepper.run

    def forgive(self: Stepper, step: Any, outcome: Any) -> None:
        run(self, step, outcome)
        outcome.errors.clear()

    patch.setattr(Stepper, "run", forgive)


@mutation
def an_interrupt_leaves_the_step_planned(patch: Patch) -> None:
    rollback = AttentionServer.rollback

    def only_errors(self: AttentionServer) -> None:
        if not isinstance(sys.exc_info()[1], KeyboardInterrupt):
            rollback(self)

    patch.setattr(AttentionServer, "rollback", only_errors)


@mutation
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


@mutation
def a_prompt_is_scored_again_when_it_is_computed_again(patch: Patch) -> None:
    score = LogitRows.score

    def again(self: LogitRows, logits: Any, sampler: Any) -> Any:
        result = score(self, logits, sampler)
        for sequence in self.sequences:
            if sequence.preemptions:
                result[sequence.id] = result.get(sequence.id, []) + sequence.prompt_logprobs[-1:]
        return result

    patch.setattr(LogitRows, "score", again)


@mutation
def logprobs_are_those_of_another_request(patch: Patch) -> None:
    sample = Sampler.sample

    def turned(self: Sampler, logits: Any, states: Any) -> Any:
        sampled = sample(self, logits, states)
        return Sampled(sampled.tokens, sampled.logprobs[1:] + sampled.logprobs[:1])

    patch.setattr(Sampler, "sample", turned)


@mutation
def a_token_in_flight_does_not_count(patch: Patch) -> None:
    patch.setattr(Sequence, "length", property(lambda self: len(self.prompt) + len(self.output)))


@mutation
def a_sequence_runs_beyond_its_last_token(patch: Patch) -> None:
    patch.setattr(Sequence, "is_exhausted", property(lambda self: False))


@mutation
def preemption_forgets_the_token_in_flight(patch: Patch) -> None:
    evict = Scheduler._evict

    def forget(self: Scheduler, sequence: Sequence) -> None:
        evict(self, sequence)
        sequence.in_flight = 0

    patch.setattr(Scheduler, "_evict", forget)


@mutation
def tokens_in_flight_are_those_of_another_sequence(patch: Patch) -> None:
    token_ids = stepper._token_ids

    def turned(group: Any, rows: dict[int, int]) -> Any:
        return token_ids(
            group, dict(zip(rows, [*list(rows.values())[1:], *list(rows.values())[:1]], strict=True))
        )

    patch.setattr(stepper, "_token_ids", turned)


@mutation
def steps_end_in_another_order_than_they_were_launched(patch: Patch) -> None:
    commit = Scheduler.commit

    def newest(self: Scheduler, outcome: Any) -> Any:
        self._launched.rotate(1)
        try:
            return commit(self, outcome)
        finally:
            self._launched.rotate(-1)

    patch.setattr(Scheduler, "commit", newest)


@mutation
def a_token_after_the_end_is_kept(patch: Patch) -> None:
    commit = Scheduler._commit_launched

    def keep(self: Scheduler, step: Any, outcome: Any) -> Any:
        for chunk in step:
            if chunk.sequence.status == "ended" and chunk.sequence.id in outcome.tokens:
                chunk.sequence.output.append(outcome.tokens[chunk.sequence.id])
        return commit(self, step, outcome)

    patch.setattr(Scheduler, "_commit_launched", keep)


@mutation
def pages_of_a_launched_step_can_be_found_before_it_has_ended(patch: Patch) -> None:
    commit = AttentionServer.commit
    patch.setattr(AttentionServer, "commit", lambda self, *, share=True: commit(self))


@mutation
def pages_of_an_earlier_stay_are_shared(patch: Patch) -> None:
    launched = Scheduler.launched

    def forget(self: Scheduler) -> None:
        for chunk in self._scheduled:
            chunk.residence = 0
            chunk.sequence.residence = 0
        launched(self)

    patch.setattr(Scheduler, "launched", forget)


@mutation
def what_follows_a_lost_token_counts(patch: Patch) -> None:
    def set_back(self: Scheduler, sequence: Sequence) -> None:
        launched, self._launched = self._launched, type(self._launched)()
        original(self, sequence)
        self._launched = launched

    original = Scheduler._set_back
    patch.setattr(Scheduler, "_set_back", set_back)


@mutation
def a_lost_step_is_launched_again_and_again(patch: Patch) -> None:
    original = Scheduler._set_back

    def set_back(self: Scheduler, sequence: Sequence) -> None:
        original(self, sequence)
        sequence.is_suspect = False

    patch.setattr(Scheduler, "_set_back", set_back)


@mutation
def a_failed_launch_is_committed(patch: Patch) -> None:
    launch = Stepper.launch

    def commit(self: Stepper, step: Any, before: Any) -> Any:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(AttentionServer, "rollback", AttentionServer.commit)
            return launch(self, step, before)

    patch.setattr(Stepper, "launch", commit)


@mutation
def only_the_rows_that_sample_are_looked_at_for_numbers(patch: Patch) -> None:
    init = LogitRows.__init__

    def without(self: LogitRows, group: Any) -> None:
        init(self, group)
        self.owners = self.sequences or [Sequence(-1, (0,), 1, frozenset())]

    patch.setattr(LogitRows, "__init__", without)


@mutation
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


@pytest.mark.parametrize("plant", MUTATIONS, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_caught(
    plant: Callable[[Patch], None], monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "cleave")
    monkeypatch.setattr("simulation.run._MOST_STEPS", 1500)
    plant(monkeypatch)
    for seed in range(MOST_SEEDS):
        if failure(random_scenario(seed)) is not None:
            return
    pytest.fail(f"{MOST_SEEDS} seeds did not notice that {plant.__name__.replace('_', ' ')}")


def test_a_failing_scenario_shrinks(monkeypatch: Patch) -> None:
    a_page_leaks_when_a_sequence_ends(monkeypatch)
    scenario = next(scenario for scenario in map(random_scenario, range(50)) if len(scenario.requests) > 5)
    shrunk = shrink(scenario)
    assert len(shrunk.requests) == 1
    assert not shrunk.faults
    with pytest.raises(Exception, match=r"page|sequence"):
        Simulation(shrunk).run()
