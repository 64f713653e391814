"""An LLM one step ahead gives what it gives in lockstep, whatever ends when, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cleave import LLM, Completion, SamplingParams

pytestmark = pytest.mark.slow
"""A C++ compiler takes some seconds for every function."""

PAGES = 12
"""So few that requests preempt each other."""


@dataclass
class Both:
    """The same model in lockstep and ahead, and prompts for it."""

    lockstep: LLM
    ahead: LLM
    prompts: list[str]
    words: list[str]
    """Of answers, for stop strings."""
    tokens: list[int]
    """Of answers, for stop tokens."""
    launches: int = 0


@pytest.fixture(scope="module")
def both(
    demo_artifact: Path, demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Both]:
    known = json.loads((demo_checkpoint / "known_answers.json").read_text("utf-8"))
    prompts = [answer["prompt"] for answer in known if "prompt" in answer][:12]
    options: dict[str, Any] = {
        "device": "cpu",
        "verify": False,
        "max_model_len": 128,
        "max_sequences": 6,
        "max_tokens_per_step": 32,
        "cache": tmp_path_factory.mktemp("engines"),
    }
    with LLM(demo_artifact, "inductor", ahead=False, **options) as probe:
        options["kv_cache_bytes"] = PAGES * probe.model.page_bytes
        answers = probe.generate(prompts, SamplingParams(max_tokens=24))
    words = sorted({answer.text[at : at + 2] for answer in answers for at in (3, 9, 15)} - {""})
    tokens = sorted({answer.token_ids[len(answer.token_ids) // 2] for answer in answers})
    with (
        LLM(demo_artifact, "inductor", ahead=False, **options) as lockstep,
        LLM(demo_artifact, "inductor", **options) as ahead,
    ):
        made = Both(lockstep, ahead, prompts, words, tokens)
        launch = ahead._thread._loop._stepper.launch

        def counted(*arguments: Any) -> Any:
            made.launches += 1
            return launch(*arguments)

        ahead._thread._loop._stepper.launch = counted  # type: ignore[method-assign]
        yield made


def drawn_params(data: st.DataObject, both: Both) -> SamplingParams:
    return SamplingParams(
        max_tokens=data.draw(st.integers(1, 30)),
        n=data.draw(st.sampled_from((1, 1, 1, 2))),
        ignore_eos=data.draw(st.booleans()),
        stop=data.draw(st.lists(st.sampled_from(both.words), max_size=2)) or None,
        stop_token_ids=data.draw(st.lists(st.sampled_from(both.tokens), max_size=2)) or None,
        include_stop_str_in_output=data.draw(st.booleans()),
        logprobs=data.draw(st.sampled_from((None, None, None, 1))),
        temperature=0.0,
    )


def told(answer: Completion) -> tuple[Any, ...]:
    """What a user sees of an answer, apart from how it came about."""
    return answer.text, answer.token_ids, answer.finish_reason, answer.stop_reason, answer.error


def check_idle(llm: LLM) -> None:
    assert llm.wait_until_idle(60)
    state = llm._thread.call(lambda state: state.pages.check()).result()
    assert state is None
    stats = llm.stats()
    assert (stats.pages_used, stats.running, stats.waiting) == (0, 0, 0)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_answers_are_those_of_lockstep(both: Both, data: st.DataObject) -> None:
    prompts = data.draw(st.lists(st.sampled_from(both.prompts), min_size=1, max_size=8))
    params = [drawn_params(data, both) for _ in prompts]
    expected = both.lockstep.generate(prompts, params)
    answers = both.ahead.generate(prompts, params)
    assert [told(answer) for answer in answers] == [told(answer) for answer in expected]
    check_idle(both.ahead)


def test_requests_were_preempted_and_launched_ahead(both: Both) -> None:
    params = SamplingParams(max_tokens=60, ignore_eos=True)
    before, launches = both.ahead.stats(), both.launches
    answers = both.ahead.generate(both.prompts[:5], params)
    after = both.ahead.stats()
    assert after.preemptions > before.preemptions
    assert both.launches - launches == after.steps - before.steps
    assert after.generated_tokens - before.generated_tokens == 5 * 60
    assert [told(a) for a in answers] == [told(a) for a in both.lockstep.generate(both.prompts[:5], params)]


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_streams_that_are_left_show_no_token_too_many_and_leave_no_page(
    both: Both, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, 5))
    prompts = data.draw(st.lists(st.sampled_from(both.prompts), min_size=count, max_size=count))
    params = SamplingParams(max_tokens=24, ignore_eos=True)
    expected = both.lockstep.generate(prompts, params)
    read = [data.draw(st.integers(0, 30)) for _ in prompts]
    streams = [both.ahead.stream(prompt, params) for prompt in prompts]
    for stream, most, whole in zip(streams, read, expected, strict=True):
        chunks = [chunk for chunk, _ in zip(stream, range(most), strict=False)]
        stream.close()
        tokens = tuple(token for chunk in chunks for token in chunk.token_ids)
        assert tokens == whole.token_ids[: len(tokens)]
        if chunks and chunks[-1].finish_reason is not None:
            assert (tokens, stream.texts()) == (whole.token_ids, [whole.text])
    check_idle(both.ahead)


def test_an_aborted_answer_ends_with_what_was_shown(both: Both) -> None:
    params = SamplingParams(max_tokens=60, ignore_eos=True)
    (whole,) = both.lockstep.generate(both.prompts[0], params)
    stream = both.ahead.stream(both.prompts[0], params, request_id="mine")
    chunks = [next(stream) for _ in range(3)]
    both.ahead.abort("mine")
    chunks += list(stream)
    (answer,) = stream.completions()
    assert answer.finish_reason == "abort"
    assert tuple(token for chunk in chunks for token in chunk.token_ids) == answer.token_ids
    assert answer.token_ids == whole.token_ids[: len(answer.token_ids)]
    check_idle(both.ahead)


def test_a_later_request_finds_the_pages_of_an_earlier_one(both: Both) -> None:
    prompt = [0, *range(40, 79)]
    params = SamplingParams(max_tokens=26, ignore_eos=True)
    (first,) = both.ahead.generate([prompt], params)
    (second,) = both.ahead.generate([[*prompt, *first.token_ids, 5]], SamplingParams(max_tokens=1))
    assert second.cached_tokens == (len(prompt) + 25) // 16 * 16


def test_what_needs_the_host_and_what_does_not_run_together(both: Both) -> None:
    params = [
        SamplingParams(max_tokens=12 + index, ignore_eos=True, seed=index, temperature=float(index % 2))
        for index in range(4)
    ]
    params += [SamplingParams(max_tokens=9, prompt_logprobs=1), SamplingParams(max_tokens=40)]
    prompts = both.prompts[: len(params)]
    expected = both.lockstep.generate(prompts, params)
    assert [told(a) for a in both.ahead.generate(prompts, params)] == [told(a) for a in expected]


def test_a_model_that_is_closed_while_steps_are_under_way_ends_in_order(
    both: Both, demo_artifact: Path
) -> None:
    options = both.ahead.model.options
    llm = LLM(demo_artifact, "inductor", device="cpu", verify=False, max_model_len=128, cache=options.cache)
    stream = llm.stream([0, 1, 2], SamplingParams(max_tokens=100, ignore_eos=True))
    next(stream)
    llm.close()
    assert [chunk.finish_reason for chunk in stream][-1] == "abort"


def test_a_prompt_of_several_steps_is_scored_as_on_another_engine(both: Both, demo_artifact: Path) -> None:
    """The steps before the last one sample nothing, and score each of their tokens."""
    prompt = " ".join(both.prompts * 2)
    params = SamplingParams(max_tokens=2, prompt_logprobs=0, ignore_eos=True)
    with LLM(demo_artifact, "onnxruntime", verify=False, max_tokens_per_step=32) as other:
        answers = [llm.generate(prompt, params)[0] for llm in (both.ahead, both.lockstep, other)]
    scored = [
        [next(iter(entry.values())).logprob for entry in answer.prompt_logprobs[1:]] for answer in answers
    ]
    assert len(scored[0]) + 1 == len(answers[0].prompt_token_ids) > 3 * 32
    for answer, values in zip(answers, scored, strict=True):
        assert answer.finish_reason == "length"
        assert values == pytest.approx(scored[2], abs=2e-3)
