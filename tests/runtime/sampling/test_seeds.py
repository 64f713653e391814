"""With a seed, a request's tokens and logprobs depend on nothing but the request: end to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cleave import LLM, Completion, SamplingParams
from cleave.runtime.structured.params import StructuredOutput

Prompts = list[list[int]]

KINDS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 20},
    {"temperature": 1.5, "top_p": 0.9, "logprobs": 3},
    {"temperature": 1.0, "min_p": 0.05, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
    {"temperature": 2.0, "top_k": 100, "top_p": 0.95, "presence_penalty": 1.0, "min_tokens": 8},
    {"temperature": 0.9, "bad_words": ["ab", "q"], "logit_bias": {5: 3.0}, "prompt_logprobs": 2},
    {},
    {"temperature": 1.0, "structured": StructuredOutput(regex="[a-z]{4,60}"), "logprobs": 0},
]


def requests(count: int) -> tuple[Prompts, list[SamplingParams]]:
    rng = np.random.default_rng(11)
    prompts = [rng.integers(0, 250, rng.integers(1, 70)).tolist() for _ in range(count)]
    params = [
        SamplingParams(seed=1000 + index, max_tokens=48, ignore_eos=True, **KINDS[index % len(KINDS)])
        for index in range(count)
    ]
    return prompts, params


def bits(answer: Completion) -> tuple[Any, ...]:
    return (answer.token_ids, answer.logprobs, answer.prompt_logprobs, answer.finish_reason)


@pytest.fixture(scope="module")
def folder(artifact: Callable[[str], Path]) -> Path:
    return artifact("gqa")


@pytest.fixture(scope="module")
def alone(folder: Path) -> Iterator[list[tuple[Any, ...]]]:
    prompts, params = requests(16)
    with LLM(folder, prefix_cache=False) as llm:
        yield [bits(llm.generate([p], [q])[0]) for p, q in zip(prompts, params, strict=True)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_tokens_per_step": 7},
        {"max_tokens_per_step": 33, "max_sequences": 3},
        {"kv_cache_bytes": 12 * 12288, "max_sequences": 16},
    ],
    ids=["one batch", "small chunks", "few at once", "preempted"],
)
def test_a_request_is_the_same_alone_and_in_any_batch(
    folder: Path, alone: list[tuple[Any, ...]], options: dict[str, Any]
) -> None:
    prompts, params = requests(16)
    order = np.random.default_rng(len(options)).permutation(16)
    with LLM(folder, **options) as llm:
        answers = llm.generate([prompts[index] for index in order], [params[index] for index in order])
    for index, answer in zip(order, answers, strict=True):
        assert bits(answer) == alone[index]
    if "kv_cache_bytes" in options:
        assert sum(answer.preemptions for answer in answers) >= 5


def test_another_seed_or_another_place_gives_other_tokens(folder: Path) -> None:
    with LLM(folder) as llm:
        answers = llm.generate(
            [[7, 8]] * 40, [SamplingParams(seed=seed, max_tokens=8, temperature=5.0) for seed in range(40)]
        )
        assert len({answer.token_ids for answer in answers}) == 40
        fresh = llm.generate([[7, 8]] * 20, SamplingParams(max_tokens=8, temperature=5.0))
        assert len({answer.token_ids for answer in fresh}) == 20
        seeded = SamplingParams(seed=-3, max_tokens=8, temperature=5.0)
        assert llm.generate([[7, 8]], seeded) == llm.generate([[7, 8]], seeded)


def test_a_stream_of_its_own_for_each_answer_of_a_request(folder: Path) -> None:
    with LLM(folder) as llm:
        params = SamplingParams(seed=3, temperature=5.0)
        keys = {llm.model.sequence(0, [1], params, stream=stream).sampling.key for stream in range(3)}  # type: ignore[union-attr]
    assert keys == {(3, 0), (3, 1), (3, 2)}
