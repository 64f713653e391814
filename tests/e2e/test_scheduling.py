"""The demo through the scheduler: preemption, shared prefixes and failures change no answer."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cleave import LLM, SamplingParams
from cleave.errors import EngineError
from cleave.kvcache.keys import PageKeys
from cleave.kvcache.step import Chunk
from cleave.runtime.model import Model
from cleave.runtime.model_options import ModelOptions

PAGE = 16


@pytest.fixture(scope="module")
def known(demo_checkpoint: Path) -> dict[str, str]:
    answers = json.loads((demo_checkpoint / "known_answers.json").read_text("utf-8"))
    return {answer["prompt"]: answer["text"] for answer in answers if "prompt" in answer}


@pytest.fixture(scope="module")
def llm(demo_artifact: Path) -> Iterator[LLM]:
    with LLM(demo_artifact) as loaded:
        yield loaded


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("chunk", [8, 512])
def test_known_answers_are_given_in_a_cache_that_is_far_too_small(
    demo_artifact: Path, known: dict[str, str], llm: LLM, prefix_cache: bool, chunk: int
) -> None:
    prompts = list(known)
    longest = max(
        len(completion.prompt_token_ids) + len(completion.token_ids)
        for completion in llm.generate(prompts, SamplingParams(max_tokens=256))
    )
    most = SamplingParams(max_tokens=longest)
    page = llm.model.page_bytes
    with LLM(
        demo_artifact,
        kv_cache_bytes=(2 * longest // PAGE + 2) * page,
        prefix_cache=prefix_cache,
        max_tokens_per_step=chunk,
    ) as small:
        answers = small.generate(prompts, most)
        small.model.attention.check()
        assert small.model.attention.free_pages == small.model.attention.num_pages
        preemptions = small.stats().preemptions
    assert preemptions == sum(answer.preemptions for answer in answers) > 0
    assert [answer.text for answer in answers] == list(known.values())


def test_a_stream_is_neither_torn_nor_repeated_by_preemption(
    demo_artifact: Path, llm: LLM, known: dict[str, str]
) -> None:
    prompts = sorted(known, key=lambda prompt: -len(known[prompt]))[:3]
    params = SamplingParams(max_tokens=100, ignore_eos=True)
    expected = [answer.text for answer in llm.generate(prompts, params)]
    pages = max(len(llm.model.tokenizer.encode(prompt)) for prompt in prompts) // PAGE + 100 // PAGE + 2
    with LLM(demo_artifact, kv_cache_bytes=pages * llm.model.page_bytes) as small:
        streams = [small.stream(prompt, params) for prompt in prompts]
        texts = ["" for _ in prompts]
        endings: list[list[str]] = [[] for _ in prompts]
        alive = set(range(len(prompts)))
        while alive:
            for index in sorted(alive):
                chunk = next(streams[index], None)
                if chunk is None:
                    alive.discard(index)
                    continue
                texts[index] += chunk.text
                endings[index] += [chunk.finish_reason] if chunk.finish_reason else []
    assert texts == expected
    assert endings == [["length"]] * 3


def test_a_prompt_that_begins_alike_costs_only_its_end(demo_artifact: Path) -> None:
    generator = np.random.default_rng(0)
    shared = generator.integers(2, 3000, 200).tolist()
    prompts = [shared + generator.integers(2, 3000, 20).tolist() for _ in range(3)]
    params = SamplingParams(max_tokens=24, ignore_eos=True)
    with LLM(demo_artifact, prefix_cache=False) as plain:
        expected = [plain.generate([prompt], params)[0] for prompt in prompts]
        assert [answer.cached_tokens for answer in expected] == [0, 0, 0]
    with LLM(demo_artifact) as llm:
        answers = [llm.generate([prompt], params)[0] for prompt in (*prompts, prompts[0])]
        stats = llm.model.attention.pages.stats
    assert answers[:3] == expected
    assert answers[3] == expected[0]
    full = 200 // PAGE * PAGE
    assert [answer.cached_tokens for answer in answers] == [0, full, full, 219 // PAGE * PAGE]
    assert stats.found == sum(answer.cached_tokens for answer in answers)
    assert stats.asked == 4 * 220


@pytest.mark.parametrize("variant", ["demo", "mistral_window", "qwen2_mixed_windows"])
def test_reused_pages_give_the_same_bits_as_computed_ones(
    variant: str, demo_artifact: Path, request: pytest.FixtureRequest
) -> None:
    folder = demo_artifact if variant == "demo" else request.getfixturevalue("artifact")(variant)
    model = Model(folder, ModelOptions())
    tokens = np.random.default_rng(1).integers(0, 256, 150)

    def logits(sequence: int, keys: PageKeys | None, start: int, end: int) -> Any:
        model.attention.plan([Chunk(sequence, start, end - start)])
        rows = np.arange(end - start)
        result = model.engine.run(tokens[start:end], rows, model.attention).copy()
        model.attention.commit()
        return result

    pages = model.attention.pages
    pages.open(0)
    whole = logits(0, None, 0, 150)
    for sequence, chunk in ((1, 70), (2, 150)):
        keys = PageKeys(PAGE)
        keys.extend(tokens.tolist())
        found = pages.open(sequence, keys)
        assert found == (0 if sequence == 1 else 144)
        for start in range(found, 150, chunk):
            end = min(start + chunk, 150)
            np.testing.assert_array_equal(logits(sequence, keys, start, end), whole[start:end])
        pages.check()
    model.close()


def test_a_request_that_makes_the_engine_fail_ends_with_its_reason_and_no_other_does(
    demo_artifact: Path, llm: LLM, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "cleave")
    prompts = [[0, 10 + index, 20 + index] for index in range(9)]
    prompts[4][2] = 2999
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    expected = llm.generate(prompts, params)
    with LLM(demo_artifact) as broken:
        run = broken.model.engine.run

        def fail(token_ids: Any, *arguments: Any) -> Any:
            result = run(token_ids, *arguments)
            if 2999 in token_ids.tolist():
                raise EngineError("the engine does not like token 2999")
            return result

        broken.model.engine.run = fail  # type: ignore[method-assign]
        answers = broken.generate(prompts, params)
        last = list(broken.stream(prompts[4], params))
        assert broken.generate(prompts[5], params) == [expected[5]]
        assert broken.model.attention.free_pages == broken.model.attention.num_pages
    assert [answer.finish_reason for answer in answers] == ["length"] * 4 + ["error"] + ["length"] * 4
    assert answers[4].error == "the engine does not like token 2999"
    assert answers[4].token_ids == ()
    assert [answer for answer in answers if answer.error is None] == expected[:4] + expected[5:]
    assert [(chunk.text, chunk.finish_reason, chunk.error) for chunk in last] == [
        ("", "error", "the engine does not like token 2999")
    ]


def test_an_interrupt_leaves_the_llm_as_it_was(demo_artifact: Path, llm: LLM) -> None:
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    expected = llm.generate([[0, 10, 20]], params)
    with LLM(demo_artifact) as other:
        run, calls = other.model.engine.run, []

        def interrupt(*arguments: Any) -> Any:
            calls.append(1)
            if len(calls) == 4:
                os.kill(os.getpid(), signal.SIGINT)
            return run(*arguments)

        other.model.engine.run = interrupt  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            other.generate([[0, 10, 20], [0, 11]], SamplingParams(max_tokens=4000, ignore_eos=True))
        assert other.wait_until_idle(60)
        other.model.attention.check()
        assert other.model.attention.free_pages == other.model.attention.num_pages
        assert other.generate([[0, 10, 20]], params) == expected


def test_a_more_urgent_request_is_answered_first(demo_artifact: Path) -> None:
    params = SamplingParams(max_tokens=30, ignore_eos=True)
    with LLM(demo_artifact, max_sequences=1) as llm:
        patient = llm.stream([0, 10, 20], SamplingParams(max_tokens=3000, ignore_eos=True), priority=1)
        next(patient)
        urgent = llm.generate([[0, 11, 21]], params)
        assert len(urgent[0].token_ids) == 30
        assert (llm.stats().running, llm.stats().ended) == (1, {"length": 1})
        patient.close()
        assert llm.stats().preemptions == 1
