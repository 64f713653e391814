"""One step ahead: what is scheduled while tokens are in flight, and what becomes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cleave.errors import AttentionError
from cleave.kvcache.keys import PageKeys
from cleave.kvcache.page_manager import PageManager
from cleave.kvcache.step import Chunk
from cleave.runtime.engines.engine import DeviceOutput
from cleave.runtime.logit_rows import LogitRows
from cleave.runtime.pending import LikeliestTokens
from cleave.runtime.scheduler import Scheduler
from cleave.runtime.sequence import Sequence
from cleave.runtime.step import ScheduledChunk, Step, StepOutcome

PAGE = 4


class Bench:
    """A scheduler whose steps are launched; every sampled token is 7."""

    def __init__(self, num_pages: int = 100, **options: int) -> None:
        self.pages = PageManager(num_pages, PAGE)
        self.scheduler = Scheduler(self.pages, **{"max_tokens": 16, "max_sequences": 8, **options})
        self.under_way: list[Step] = []
        self.next = 0

    def add(self, prompt: int, max_tokens: int = 8, priority: int = 0, *, stops: bool = False) -> Sequence:
        first = 1000 * self.next
        keys = PageKeys(PAGE)
        tokens = tuple(range(first, first + prompt))
        stop = frozenset((7,)) if stops else frozenset[int]()
        sequence = Sequence(self.next, tokens, max_tokens, stop, priority, keys)
        self.next += 1
        self.scheduler.add(sequence)
        return sequence

    def launch(self) -> dict[int, int]:
        """Schedule and launch; gives back the tokens of each sequence in the step."""
        step = self.scheduler.schedule()
        if step:
            self.pages.reserve([Chunk(chunk.sequence.id, chunk.start, chunk.count) for chunk in step])
            self.pages.commit(share=False)
            self.scheduler.launched()
            self.under_way.append(step)
        return {chunk.sequence.id: chunk.count for chunk in step}

    def end(self, *lost: Sequence) -> list[Sequence]:
        """End the oldest step; gives back who ended."""
        step = self.under_way.pop(0)
        tokens = {chunk.sequence.id: 7 for chunk in step if chunk.samples}
        outcome = StepOutcome(tokens, lost={sequence.id for sequence in lost})
        ended = self.scheduler.commit(outcome)
        self.pages.check()
        return ended


def test_a_token_in_flight_is_computed_before_it_is_known() -> None:
    bench = Bench()
    sequence = bench.add(3)
    assert bench.launch() == {0: 3}
    assert (sequence.length, sequence.pending, sequence.output) == (4, 1, [])
    assert bench.launch() == {0: 1}
    assert sequence.in_flight == 2
    bench.end()
    assert (sequence.output, sequence.in_flight, sequence.cached) == ([7], 1, 4)


def test_nothing_is_scheduled_beyond_the_last_token() -> None:
    bench = Bench()
    sequence, other = bench.add(3, max_tokens=2), bench.add(3)
    bench.launch()
    assert bench.launch() == {0: 1, 1: 1}
    bench.end()
    assert sequence.is_exhausted
    assert bench.launch() == {1: 1}
    assert bench.end() == [sequence]
    assert (sequence.finish_reason, sequence.output) == ("length", [7, 7])
    assert not other.is_exhausted


def test_the_step_is_empty_where_all_wait_for_their_last_token() -> None:
    bench = Bench()
    bench.add(3, max_tokens=1)
    bench.launch()
    assert bench.launch() == {}
    assert not bench.scheduler.is_idle
    bench.end()
    assert bench.scheduler.is_idle


def test_a_stop_that_is_found_late_costs_a_row_and_shows_nothing() -> None:
    bench = Bench(num_pages=10)
    sequence = bench.add(4, stops=True)
    bench.launch()
    assert bench.launch() == {0: 1}
    assert bench.end() == [sequence]
    assert bench.pages.available_pages == 10
    assert bench.launch() == {}
    assert bench.end() == []
    assert (sequence.finish_reason, sequence.output) == ("stop", [7])
    assert bench.scheduler.is_idle


def test_an_abort_takes_effect_at_once_and_the_token_in_flight_is_dropped() -> None:
    bench = Bench(num_pages=10)
    sequence = bench.add(4)
    bench.launch()
    assert bench.scheduler.abort(sequence)
    assert bench.pages.available_pages == 10
    assert bench.end() == []
    assert (sequence.finish_reason, sequence.output) == ("abort", [])


def test_a_preempted_sequence_keeps_its_token_in_flight() -> None:
    bench = Bench(num_pages=3)
    older, newer = bench.add(4), bench.add(3)
    bench.launch()
    assert bench.launch() == {0: 1, 1: 1}  # the third page is the older one's
    bench.end()
    assert bench.launch() == {0: 1}
    assert (newer.status, newer.preemptions, newer.cached, newer.in_flight) == ("waiting", 1, 0, 1)
    bench.end()
    assert (newer.output, newer.in_flight, newer.pending) == ([7, 7], 0, 5)
    assert older.preemptions == 0


def test_who_only_waits_for_the_last_token_loses_its_place_and_does_not_queue() -> None:
    bench = Bench(max_sequences=1)
    patient = bench.add(3, max_tokens=1)
    bench.launch()
    bench.add(3, priority=-1)
    assert bench.launch() == {1: 3}
    assert (patient.status, patient.preemptions, bench.scheduler.waiting) == ("leaving", 0, 0)
    assert bench.end() == [patient]
    assert (patient.finish_reason, patient.output) == ("length", [7])


def test_a_lost_part_is_computed_again_with_all_that_followed_from_it() -> None:
    bench = Bench(num_pages=10)
    lost, other = bench.add(3), bench.add(3)
    bench.launch()
    bench.launch()
    bench.end()
    bench.launch()
    bench.end(lost)
    assert (lost.status, lost.cached, lost.in_flight, lost.output) == ("waiting", 0, 0, [7])
    assert lost.is_suspect
    assert not other.is_suspect
    bench.end()
    assert (lost.output, other.output) == ([7], [7, 7, 7])
    assert bench.launch() == {0: 4, 1: 1}


def test_a_step_that_is_withdrawn_is_scheduled_again() -> None:
    bench = Bench()
    bench.add(3)
    bench.launch()
    bench.add(5)
    assert len(bench.scheduler.schedule()) == 2
    bench.scheduler.withdraw()
    bench.end()
    assert bench.launch() == {0: 1, 1: 5}


def test_pages_can_be_found_when_their_step_has_ended_and_not_before() -> None:
    bench = Bench()
    sequence = bench.add(9)
    bench.launch()
    keys = PageKeys(PAGE)
    keys.extend(sequence.prompt)
    assert bench.pages.cost(9, keys) == 3
    bench.end()
    assert bench.pages.cost(9, keys) == 1
    with pytest.raises(AttentionError, match="stores 9 tokens"):
        bench.pages.share(sequence.id, 10)


def output(logits: list[list[float]]) -> DeviceOutput:
    rows = torch.tensor(logits)
    best, likeliest = rows.max(dim=-1)
    return DeviceOutput(rows, likeliest, best)


def test_the_likeliest_tokens_come_to_the_host_and_logits_that_are_no_numbers_show() -> None:
    tokens = LikeliestTokens("cpu", 4)
    group = tuple(ScheduledChunk(Sequence(name, (1,), 4, frozenset()), 0, 1, True) for name in range(4))
    wanted = LogitRows(group)
    infinite, nothing = float("inf"), float("nan")
    first = tokens.choose(
        output([[0.0, 2.0, 2.0], [1.0, nothing, 0.0], [0.0, 0.0, infinite], [-infinite] * 3]), wanted
    )
    second = tokens.choose(output([[0.0, 0.0, 9.0]] * 4), wanted)
    assert first.wait().tokens == [1, -1, -1, -1]
    assert second.wait().tokens == [2, 2, 2, 2]
    assert np.array_equal(second.tokens, [2, 2, 2, 2])
    assert tokens.takes(None)
