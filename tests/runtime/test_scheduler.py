"""The scheduler's policy, sentence by sentence."""

from __future__ import annotations

import numpy as np
import pytest

from cleave.errors import RequestError
from cleave.kvcache.keys import PageKeys
from cleave.kvcache.page_manager import PageManager
from cleave.kvcache.step import Chunk
from cleave.runtime.sampling.logprobs import TokenLogprobs
from cleave.runtime.sampling.state import SamplingState
from cleave.runtime.sampling_params import SamplingDefaults, SamplingParams
from cleave.runtime.scheduler import Scheduler
from cleave.runtime.sequence import Sequence
from cleave.runtime.step import Step, StepOutcome

PAGE = 4


class Bench:
    """A scheduler and its pages; every sampled token is 7."""

    def __init__(self, num_pages: int = 100, max_tokens: int = 16, **options: int) -> None:
        self.pages = PageManager(num_pages, PAGE)
        self.scheduler = Scheduler(self.pages, max_tokens=max_tokens, **{"max_sequences": 8, **options})
        self.next = 0

    def add(self, prompt: int, max_tokens: int = 20, priority: int = 0, *, shared: bool = False) -> Sequence:
        first = 0 if shared else 1000 * self.next
        keys = PageKeys(PAGE)
        tokens = tuple(range(first, first + prompt))
        sequence = Sequence(self.next, tokens, max_tokens, frozenset(), priority, keys)
        self.next += 1
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> dict[int, int]:
        """Run a step; gives back the tokens of each sequence in it, by id."""
        return self.commit(self.scheduler.schedule())

    def commit(self, step: Step) -> dict[int, int]:
        outcome = StepOutcome()
        if step:
            self.pages.reserve([Chunk(chunk.sequence.id, chunk.start, chunk.count) for chunk in step])
            outcome.tokens = {chunk.sequence.id: 7 for chunk in step if chunk.samples}
            self.pages.commit()
        self.scheduler.commit(outcome)
        self.pages.check()
        return {chunk.sequence.id: chunk.count for chunk in step}


def test_decode_tokens_come_first_and_a_long_prompt_fills_the_rest_in_chunks() -> None:
    bench = Bench(max_tokens=10)
    bench.add(3)
    bench.add(4)
    assert bench.step() == {0: 3, 1: 4}
    bench.add(21)
    assert bench.step() == {0: 1, 1: 1, 2: 8}
    assert bench.step() == {0: 1, 1: 1, 2: 8}
    assert bench.step() == {0: 1, 1: 1, 2: 5}
    assert bench.step() == {0: 1, 1: 1, 2: 1}


def test_prompts_are_served_in_the_order_of_their_arrival() -> None:
    bench = Bench(max_tokens=10)
    for length in (15, 8, 2):
        bench.add(length)
    assert bench.step() == {0: 10}
    assert bench.step() == {0: 5, 1: 5}
    assert bench.step() == {0: 1, 1: 3, 2: 2}


def test_a_lower_priority_is_served_first() -> None:
    bench = Bench(max_tokens=10)
    bench.add(15)
    assert bench.step() == {0: 10}
    bench.add(12, priority=1)
    bench.add(12, priority=-1)
    assert bench.step() == {2: 10}
    assert bench.step() == {2: 2, 0: 5, 1: 3}


def test_a_level_of_priority_is_worth_so_many_places_and_no_more() -> None:
    bench = Bench(max_sequences=1, places_per_priority=2)
    first = bench.add(2, max_tokens=1, priority=1)
    later = [bench.add(2, max_tokens=1) for _ in range(4)]
    order = [next(iter(bench.step())) for _ in range(5)]
    assert order == [later[0].id, first.id, *(sequence.id for sequence in later[1:])]


def test_nothing_is_held_back_for_what_an_answer_may_grow_to() -> None:
    bench = Bench(num_pages=12)
    for _ in range(4):
        bench.add(3, max_tokens=40)
    assert len(bench.step()) == 4


def test_the_newest_is_preempted_where_a_page_is_lacking_and_goes_on_where_it_was() -> None:
    bench = Bench(num_pages=6)
    older, newer = bench.add(7, max_tokens=13), bench.add(7, max_tokens=13)
    while not newer.preemptions:
        assert older.id in bench.step()
    assert newer.output
    assert (older.preemptions, newer.status) == (0, "waiting")
    output = list(newer.output)
    while older.finish_reason is None:
        assert older.id in bench.step()
    while newer.finish_reason is None:
        bench.step()
    assert newer.output[: len(output)] == output
    assert len(older.output) == len(newer.output) == 13
    assert bench.pages.available_pages == 6


def test_the_least_urgent_is_preempted_even_if_it_is_older() -> None:
    bench = Bench(num_pages=6)
    patient = bench.add(7, max_tokens=13, priority=1)
    bench.step()
    urgent = bench.add(7, max_tokens=13)
    while urgent.finish_reason is None:
        assert urgent.id in bench.step()
    assert (patient.preemptions, urgent.preemptions) == (1, 0)


def test_an_urgent_request_takes_the_place_of_a_less_urgent_one() -> None:
    bench = Bench(max_sequences=1)
    patient = bench.add(3, priority=5)
    bench.step()
    urgent = bench.add(3, max_tokens=1)
    assert bench.step() == {urgent.id: 3}
    assert bench.step() == {patient.id: 4}


def test_nobody_is_preempted_where_that_would_not_be_enough() -> None:
    bench = Bench(num_pages=10)
    urgent = bench.add(24, max_tokens=8, priority=-2)
    bench.step()
    patient = bench.add(3, priority=1)
    bench.step()
    middle = bench.add(16, max_tokens=8)
    bench.step()
    assert (urgent.status, patient.status, middle.status) == ("running", "running", "waiting")


def test_nobody_passes_the_first_in_the_queue() -> None:
    bench = Bench(num_pages=10)
    bench.add(24, max_tokens=8)
    bench.step()
    large, small = bench.add(20, max_tokens=4), bench.add(1)
    bench.step()
    assert (large.status, small.status) == ("waiting", "waiting")


def test_what_can_never_fit_is_refused_and_leaves_nothing_behind() -> None:
    bench = Bench(num_pages=5)
    bench.add(10, max_tokens=11)
    with pytest.raises(RequestError, match="may grow to 21 cached tokens; the KV cache holds 20"):
        bench.add(10, max_tokens=12)
    assert (bench.scheduler.waiting, bench.scheduler.running) == (1, 0)


def scored(sequence: Sequence) -> Sequence:
    """The same, and the logprobs of its prompt are asked for."""
    params = SamplingParams(prompt_logprobs=0).resolved(SamplingDefaults())
    sequence.sampling = SamplingState(params, sequence.prompt, 10_000)
    return sequence


def test_a_step_scores_so_many_tokens_of_prompts_and_others_go_on_beside_them() -> None:
    bench = Bench(max_tokens=16, scored_rows=5)
    scored(bench.add(12))
    scored(bench.add(4))
    bench.add(8)
    assert bench.step() == {0: 5, 2: 8}
    assert bench.step() == {0: 5, 2: 1}
    # Logits at the last position of a prompt are for its first new token, and score nothing.
    assert bench.step() == {0: 2, 1: 4, 2: 1}


def test_a_token_is_scored_once_however_often_it_is_computed() -> None:
    bench = Bench(scored_rows=5)
    sequence = scored(bench.add(12))
    sequence.prompt_logprobs = [TokenLogprobs(0, 0.0, 1, np.zeros(0, np.int64), np.zeros(0, np.float32))] * 4
    assert bench.step() == {0: 9}


def test_a_shared_prompt_is_computed_once() -> None:
    bench = Bench()
    bench.add(13, shared=True)
    bench.step()
    second = bench.add(13, shared=True)
    assert bench.step() == {0: 1, second.id: 1}
    assert (second.found, second.output) == (12, [7])


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_an_abort_gives_everything_back(steps: int) -> None:
    bench = Bench(max_tokens=6)
    sequence = bench.add(10)
    for _ in range(steps):
        bench.step()
    assert bench.scheduler.abort(sequence)
    assert not bench.scheduler.abort(sequence)
    assert (sequence.finish_reason, sequence.status) == ("abort", "ended")
    assert bench.scheduler.is_idle
    assert bench.pages.available_pages == 100
    assert bench.step() == {}


def test_an_abort_in_a_step_under_way_takes_effect_after_it() -> None:
    bench = Bench()
    sequence, other = bench.add(3), bench.add(3)
    step = bench.scheduler.schedule()
    assert not bench.scheduler.abort(sequence)
    assert sequence.finish_reason is None
    bench.commit(step)
    assert (sequence.finish_reason, sequence.output) == ("abort", [7])
    assert bench.step() == {other.id: 1}


def test_a_preempted_request_can_be_aborted() -> None:
    bench = Bench(num_pages=6)
    bench.add(7, max_tokens=13)
    newer = bench.add(7, max_tokens=13)
    while not newer.preemptions:
        bench.step()
    assert bench.scheduler.abort(newer)
    bench.step()
    assert bench.scheduler.running == 1


def test_a_step_that_did_not_run_is_scheduled_again_as_it_was() -> None:
    bench = Bench()
    bench.add(10)
    bench.add(3)
    step = bench.scheduler.schedule()
    with pytest.raises(RuntimeError, match="was not committed"):
        bench.scheduler.schedule()
    assert bench.scheduler.commit(StepOutcome()) == []
    again = bench.scheduler.schedule()
    assert [(c.sequence.id, c.start, c.count) for c in again] == [
        (c.sequence.id, c.start, c.count) for c in step
    ]
