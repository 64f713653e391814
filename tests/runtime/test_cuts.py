"""Where prompts are cut when a token's bits must not depend on it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cleave.kvcache.page_manager import PageManager
from cleave.kvcache.step import Chunk
from cleave.runtime.cuts import LEAST_ROWS, fixed_cut
from cleave.runtime.scheduler import Scheduler
from cleave.runtime.sequence import Sequence
from cleave.runtime.step import StepOutcome

PAGE = 4


@given(st.integers(1, 20), st.integers(0, 30), st.integers(0, 12))
def test_a_cut_leaves_a_prompt_no_single_token(prompt: int, cached: int, count: int) -> None:
    sequence = Sequence(0, tuple(range(prompt)), 40, frozenset())
    sequence.cached = min(cached, prompt - 2) if cached < prompt and prompt > 1 else cached
    left = prompt - sequence.cached
    cut = fixed_cut(sequence, count)
    assert 0 <= cut <= count
    if left <= 0:
        assert cut == min(count, 1)
    elif left > 1:
        assert cut != 1
        assert left - cut != 1
        assert cut or count < LEAST_ROWS
    else:
        assert cut == min(count, 1)


@settings(max_examples=150, deadline=None)
@given(
    prompts=st.lists(
        st.tuples(st.integers(1, 30), st.integers(1, 20), st.integers(-1, 1)), min_size=1, max_size=9
    ),
    max_tokens=st.integers(LEAST_ROWS + 1, 14),
    num_pages=st.integers(13, 30),
    max_sequences=st.integers(1, 12),
)
def test_every_token_is_computed_as_when_it_is_alone(
    prompts: list[tuple[int, int, int]], max_tokens: int, num_pages: int, max_sequences: int
) -> None:
    """Under preemption too: and every request ends, in a bounded number of steps."""
    pages = PageManager(num_pages, PAGE)
    scheduler = Scheduler(pages, max_tokens=max_tokens, max_sequences=max_sequences, fixed_cuts=True)
    waiting = [
        Sequence(number, tuple(range(prompt)), most, frozenset(), priority)
        for number, (prompt, most, priority) in enumerate(prompts)
    ]
    for sequence in waiting:
        scheduler.add(sequence)
    for _ in range(5000):
        if scheduler.is_idle:
            break
        step = scheduler.schedule()
        assert step
        assert sum(chunk.count for chunk in step) <= max_tokens
        for chunk in step:
            prompt = len(chunk.sequence.prompt)
            end = chunk.start + chunk.count
            if chunk.start >= prompt or prompt == 1:
                assert chunk.count == 1
            else:
                assert chunk.count > 1
                assert end <= prompt
                assert prompt - end != 1
        pages.reserve([Chunk(chunk.sequence.id, chunk.start, chunk.count) for chunk in step])
        outcome = StepOutcome()
        outcome.tokens = {chunk.sequence.id: 7 for chunk in step if chunk.samples}
        pages.commit()
        scheduler.commit(outcome)
        pages.check()
    assert all(sequence.status == "ended" for sequence in waiting)
    assert pages.available_pages == num_pages
