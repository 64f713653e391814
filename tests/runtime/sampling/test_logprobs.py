"""Logprobs of answers and prompts, against transformers on the demo checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from truth import Truth

from cleave import LLM, SamplingParams
from cleave.errors import EngineError
from cleave.runtime.sampling.sampler import Sampler

PROMPTS = ["San Francisco is a", "Monday, Tuesday,", "The capital of France is"]


@pytest.fixture(scope="module")
def truth(demo_checkpoint: Path) -> Truth:
    return Truth.load(demo_checkpoint)


@pytest.fixture(scope="module")
def llm(demo_artifact: Path) -> Iterator[LLM]:
    with LLM(demo_artifact) as llm:
        yield llm


@pytest.mark.parametrize("chunk", [512, 3])
@pytest.mark.parametrize("case", [{}, {"temperature": 1.5, "seed": 5}, {"bad_words": ["city"], "top_k": 4}])
def test_logprobs_are_those_of_transformers(
    demo_artifact: Path, truth: Truth, case: dict[str, Any], chunk: int
) -> None:
    params = SamplingParams(max_tokens=12, logprobs=4, prompt_logprobs=3, repetition_penalty=1.1, **case)
    with LLM(demo_artifact, max_tokens_per_step=chunk) as llm:
        llm.generate(PROMPTS, SamplingParams(max_tokens=2))  # fills the prefix cache
        answers = llm.generate(PROMPTS, params)
    for answer in answers:
        assert answer.logprobs is not None
        assert answer.prompt_logprobs is not None
        assert answer.prompt_logprobs[0] is None
        tokens = [*answer.prompt_token_ids, *answer.token_ids]
        exact = truth.logits(tokens).double().log_softmax(-1)
        entries = [*answer.prompt_logprobs[1:], *answer.logprobs]
        assert len(entries) == len(tokens) - 1
        for place, (entry, row) in enumerate(zip(entries, exact, strict=False)):
            assert entry is not None
            top = 3 if place < len(answer.prompt_logprobs) - 1 else 4
            assert next(iter(entry)) == tokens[place + 1]
            for token, found in entry.items():
                assert found.logprob == pytest.approx(float(row[token]), abs=2e-3)
            best = row.topk(top)
            for rank, (value, token) in enumerate(zip(*best, strict=True)):
                if rank and value - best.values[rank - 1] > -1e-3:
                    continue  # a near tie may come in either order
                assert int(token) in entry or value - row.topk(top + 1).values[-1] < 1e-3
            own = entry[tokens[place + 1]]
            assert abs(own.rank - 1 - int((row > row[tokens[place + 1]]).sum())) <= int(
                ((row - row[tokens[place + 1]]).abs() < 2e-3).sum()
            )


def test_zero_logprobs_are_those_of_the_chosen_token_alone(llm: LLM) -> None:
    (answer,) = llm.generate(PROMPTS[:1], SamplingParams(max_tokens=5, logprobs=0, prompt_logprobs=0))
    assert answer.logprobs is not None
    assert [list(entry) for entry in answer.logprobs] == [[token] for token in answer.token_ids]
    assert all(entry[token].rank == 1 for entry, token in zip(answer.logprobs, answer.token_ids, strict=True))
    assert answer.prompt_logprobs is not None
    assert len(answer.prompt_logprobs) == len(answer.prompt_token_ids)


def test_not_asked_for_is_none(llm: LLM) -> None:
    (answer,) = llm.generate(PROMPTS[:1], SamplingParams(max_tokens=2))
    assert answer.logprobs is None
    assert answer.prompt_logprobs is None


def test_the_chunks_of_a_stream_have_those_of_their_tokens(llm: LLM) -> None:
    params = SamplingParams(max_tokens=9, logprobs=2, temperature=1.0, seed=4)
    (answer,) = llm.generate(PROMPTS[:1], params)
    chunks = list(llm.stream(PROMPTS[0], params))
    joined = [entry for chunk in chunks for entry in chunk.logprobs or ()]
    assert tuple(joined) == answer.logprobs
    assert all(len(chunk.logprobs or ()) == len(chunk.token_ids) for chunk in chunks)


def test_a_request_with_prompt_logprobs_takes_nothing_from_the_prefix_cache(llm: LLM) -> None:
    prompt = [list(range(4, 80))]
    llm.generate(prompt, SamplingParams(max_tokens=1))
    (plain,) = llm.generate(prompt, SamplingParams(max_tokens=1))
    (scored,) = llm.generate(prompt, SamplingParams(max_tokens=1, prompt_logprobs=0))
    assert plain.cached_tokens > 0
    assert scored.cached_tokens == 0
    assert len(scored.prompt_logprobs or ()) == len(prompt[0])


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    vocab=st.one_of(st.integers(1, 900), st.just(5000)),
    top=st.integers(0, 20),
    steps=st.sampled_from([2, 8, 1000]),
)
def test_the_best_tokens_and_the_rank(seed: int, vocab: int, top: int, steps: int) -> None:
    rng = np.random.default_rng(seed)
    row = (np.round(rng.standard_normal(vocab) * 2 * steps) / steps).astype(np.float32)
    row[rng.random(vocab) < 0.05] = -np.inf
    token = int(rng.integers(vocab))
    row[token] = 1.0
    found = Sampler().logprobs(row, token, top)
    exact = torch.tensor(row).double().log_softmax(0).numpy()
    order = np.lexsort((np.arange(vocab), -row))
    assert found.top_tokens.tolist() == order[:top].tolist()
    np.testing.assert_allclose(found.top_logprobs, exact[order[:top]], atol=1e-5)
    assert found.logprob == pytest.approx(exact[token], abs=1e-5)
    assert found.rank == order.tolist().index(token) + 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_have_no_logprobs(value: float) -> None:
    row = np.zeros(300, np.float32)
    row[299] = value
    with pytest.raises(EngineError, match="not finite"):
        Sampler().logprobs(row, 0, 2)
