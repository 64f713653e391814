"""Observers see every step and every answer, cost nothing when absent, and break nothing."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cleave import LLM, AsyncLLM, SamplingParams
from cleave.errors import EngineError
from cleave.runtime.engine_call import EngineState
from cleave.runtime.observer import AnswerReport, StepReport

WHO: contextvars.ContextVar[str] = contextvars.ContextVar("WHO")
ENDLESS = SamplingParams(max_tokens=3000, ignore_eos=True)


class Witness:
    def __init__(self) -> None:
        self.steps: list[StepReport] = []
        self.answers: list[AnswerReport] = []

    def stepped(self, step: StepReport) -> None:
        self.steps.append(step)

    def answered(self, answer: AnswerReport) -> None:
        self.answers.append(answer)


class Broken(Witness):
    def stepped(self, step: StepReport) -> None:
        super().stepped(step)
        raise ZeroDivisionError("a bug in it")


@pytest.fixture(scope="module")
def llm(demo_artifact: Path) -> Iterator[LLM]:
    with LLM(demo_artifact, max_tokens_per_step=64, max_sequences=4) as loaded:
        yield loaded


def test_steps_and_answers_add_up(llm: LLM) -> None:
    engine_rows: list[int] = []
    run = llm.model.engine.run

    def counted(token_ids: Any, *arguments: Any) -> Any:
        engine_rows.append(len(token_ids))
        return run(token_ids, *arguments)

    witness = Witness()
    llm._thread.observe(witness)
    llm.model.engine.run = counted  # type: ignore[method-assign]
    try:
        prompts = [[0, *range(10 + index, 10 + index + 7 * index)] for index in range(1, 13)]
        answers = llm.generate(prompts, SamplingParams(max_tokens=9, ignore_eos=True))
    finally:
        llm.model.engine.run = run  # type: ignore[method-assign]
        llm._thread.ignore(witness)
    assert [step.prefill_tokens + step.decode_tokens for step in witness.steps] == engine_rows
    computed = sum(len(answer.prompt_token_ids) - answer.cached_tokens for answer in answers)
    assert sum(step.prefill_tokens for step in witness.steps) == computed
    assert sum(step.generated_tokens for step in witness.steps) == 12 * 9
    assert sum(step.decode_tokens for step in witness.steps) == 12 * 8
    assert sum(len(step.queued_for) for step in witness.steps) == 12
    assert sum(len(step.first_token_after) for step in witness.steps) == 12
    assert sum(len(step.token_gaps) for step in witness.steps) == 12 * 8
    assert {step.kind for step in witness.steps} == {"prefill", "mixed", "decode"}
    for step in witness.steps:
        assert step.seconds > 0
        assert min([*step.queued_for, *step.first_token_after, *step.token_gaps], default=0.0) >= 0
    by_name = {answer.request_id: answer for answer in witness.answers}
    assert len(by_name) == 12
    for answer in answers:
        report = by_name[answer.request_id]
        assert report.prompt_tokens == len(answer.prompt_token_ids)
        assert report.generated_tokens == len(answer.token_ids)
        assert report.cached_tokens == answer.cached_tokens
        assert (report.finish_reason, report.error, report.index) == ("length", None, 0)
        started, first, last = report.started, report.first_token, report.last_token
        assert started is not None
        assert first is not None
        assert last is not None
        assert report.asked <= started <= first <= last <= report.ended
        assert report.queue_seconds == started - report.asked
    # The times of one answer: those in the steps are those in the report.
    assert sorted(gap for step in witness.steps for gap in step.first_token_after) == pytest.approx(
        sorted((report.first_token or 0.0) - report.asked for report in witness.answers)
    )


def test_an_answer_carries_the_context_of_its_caller(llm: LLM) -> None:
    witness = Witness()
    llm._thread.observe(witness)

    def ask(name: str) -> None:
        WHO.set(name)
        llm.generate([0, 10], SamplingParams(max_tokens=2))

    for name in ("anna", "ben"):
        contextvars.copy_context().run(ask, name)
    llm._thread.ignore(witness)
    assert [answer.context.get(WHO) for answer in witness.answers] == ["anna", "ben"]


def test_answers_that_never_ran_are_reported_too(llm: LLM) -> None:
    witness = Witness()
    llm._thread.observe(witness)
    running = [llm.stream([0, 10 + index], ENDLESS) for index in range(4)]
    for stream in running:
        next(stream)
    waiting = llm.stream([0, 20], ENDLESS, request_id="never")
    waiting.close()
    for stream in running:
        stream.close()
    assert llm.wait_until_idle(60)
    llm._thread.ignore(witness)
    assert len(witness.answers) == 5
    (never,) = [answer for answer in witness.answers if answer.request_id == "never"]
    assert (never.finish_reason, never.generated_tokens, never.first_token) == ("abort", 0, None)
    assert never.queue_seconds == never.seconds


def test_an_observer_that_raises_is_dropped_and_harms_nobody(
    llm: LLM, caplog: pytest.LogCaptureFixture
) -> None:
    broken, witness = Broken(), Witness()
    llm._thread.observe(broken)
    llm._thread.observe(witness)
    with caplog.at_level(logging.ERROR, logger="cleave"):
        (answer,) = llm.generate([0, 10], SamplingParams(max_tokens=5, ignore_eos=True))
    llm._thread.ignore(witness)
    assert answer.finish_reason == "length"
    assert (len(broken.steps), len(broken.answers), len(witness.steps)) == (1, 0, 5)
    assert [record.message for record in caplog.records if "observer" in record.message] == [
        f"an observer of the engine fails and is dropped: {broken!r}"
    ]


def test_nothing_is_kept_where_nobody_observes(llm: LLM) -> None:
    llm.generate([0, 10], SamplingParams(max_tokens=3))
    observers = llm._thread._observers
    assert not observers._times
    witness = Witness()
    llm._thread.observe(witness)
    with llm.stream([0, 10], ENDLESS) as stream:
        next(stream)
        assert observers._times
        llm._thread.ignore(witness)
        assert not observers._times
        next(stream)
    assert llm.wait_until_idle(60)
    assert not observers._times


def test_a_call_sees_a_state_between_two_steps(llm: LLM) -> None:
    streams = [llm.stream([0, 10 + index], ENDLESS) for index in range(3)]
    for stream in streams:
        next(stream)

    def look(state: EngineState) -> tuple[str, dict[str, tuple[int, int]]]:
        state.pages.check()
        assert not state.pages.has_step
        found = {
            generation.request_id: (answer.sequence.cached, state.pages.length(answer.sequence.id))
            for generation, answer in state.answers.values()
        }
        return threading.current_thread().name, found

    for _ in range(20):
        name, found = llm._thread.call(look).result(60)
        assert name == "cleave-engine"
        assert set(found) == {stream.request_id for stream in streams}
        assert all(cached == held for cached, held in found.values())
    for stream in streams:
        stream.close()
    assert llm.wait_until_idle(60)
    assert llm._thread.call(look).result(60)[1] == {}


def test_what_a_call_raises_goes_to_its_caller(llm: LLM) -> None:
    def fail(state: EngineState) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        llm._thread.call(fail).result(60)
    assert llm.generate([0, 10], SamplingParams(max_tokens=1))


def test_calls_that_come_too_late_are_refused(demo_artifact: Path) -> None:
    async def run() -> None:
        async_llm = AsyncLLM(demo_artifact)
        assert await async_llm.look(lambda state: state.pages.num_pages) == async_llm.stats().pages
        entered, leave = threading.Event(), threading.Event()

        def block(state: EngineState) -> bool:
            entered.set()
            return leave.wait(60)

        blocked = asyncio.ensure_future(async_llm.look(block))
        assert await asyncio.to_thread(entered.wait, 60)
        late = asyncio.ensure_future(async_llm.look(lambda state: None))
        await asyncio.sleep(0)
        closing = asyncio.get_running_loop().run_in_executor(None, async_llm.close)
        while not async_llm._thread._closing:
            await asyncio.sleep(0)
        leave.set()
        assert await blocked
        await closing
        with pytest.raises(EngineError, match="the model was closed"):
            await late
        with pytest.raises(EngineError, match="the model is closed"):
            await async_llm.look(lambda state: None)

    asyncio.run(run())
