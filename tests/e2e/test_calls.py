"""How the parts are called, and that two models in one process do not mix."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

import numpy as np

from cleave import LLM, SamplingParams


def test_the_attention_server_runs_once_a_layer_and_step_whatever_the_batch(
    artifact: Callable[[str], Path],
) -> None:
    prompts = [[token] * (3 + token) for token in range(16)]
    with LLM(artifact("gqa"), max_tokens_per_step=64) as llm:
        server, layers = llm.model.attention, 3
        llm.generate(prompts, SamplingParams(max_tokens=10, ignore_eos=True))
        assert server.runs == layers * server.steps
        assert server.steps < 10 + sum(map(len, prompts)) / 64 + 2


def test_two_models_in_one_process_do_not_mix(artifact: Callable[[str], Path]) -> None:
    prompt, params = [5, 6, 7, 8], SamplingParams(max_tokens=24, ignore_eos=True)
    expected = {}
    for variant in ("gqa", "qwen3"):
        with LLM(artifact(variant)) as llm:
            expected[variant] = llm.generate([prompt], params)[0].token_ids
    assert expected["gqa"] != expected["qwen3"]
    with LLM(artifact("gqa")) as first, LLM(artifact("qwen3")) as second:
        streams = {"gqa": first.stream(prompt, params), "qwen3": second.stream(prompt, params)}
        got: dict[str, list[int]] = {"gqa": [], "qwen3": []}
        for chunk, other in zip_longest(streams["gqa"], streams["qwen3"]):
            got["gqa"] += chunk.token_ids if chunk else ()
            got["qwen3"] += other.token_ids if other else ()
    assert {variant: tuple(tokens) for variant, tokens in got.items()} == expected


def test_all_pages_are_back_when_nothing_runs(artifact: Callable[[str], Path]) -> None:
    with LLM(artifact("gqa")) as llm:
        server = llm.model.attention
        llm.generate([[1, 2, 3]] * 5, SamplingParams(max_tokens=20))
        stream = llm.stream([4, 5, 6], SamplingParams(max_tokens=100, ignore_eos=True))
        next(stream)
        assert server.free_pages < server.num_pages
        stream.close()
        assert llm.wait_until_idle(60)
        assert server.free_pages == server.num_pages


def test_more_requests_than_fit_wait_and_are_all_answered(artifact: Callable[[str], Path]) -> None:
    generator = np.random.default_rng(0)
    prompts = [generator.integers(0, 256, length).tolist() for length in generator.integers(1, 80, 40)]
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    with LLM(artifact("gqa")) as llm:
        expected = llm.generate(prompts, params)
        page = llm.model.page_bytes
    with LLM(artifact("gqa"), kv_cache_bytes=9 * page, max_tokens_per_step=16, max_sequences=3) as small:
        assert small.generate(prompts, params) == expected
