"""`deterministic` on an NVIDIA GPU: the bits of a request do not depend on what runs beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cleave import LLM, SamplingParams
from cleave.runtime.engines.inductor.tiles import tiled_linear

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
PARAMS = SamplingParams(max_tokens=24, ignore_eos=True, logprobs=5)
LENGTHS = (1, 2, 19, 130)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("height", "width", "swiglu"),
    [(6144, 4096, False), (4096, 14336, False), (28672, 4096, True), (4096, 11008, False)],
)
def test_every_tile_gives_the_same_bits(dtype: torch.dtype, height: int, width: int, swiglu: bool) -> None:
    """Shapes of real models; row 3 stands elsewhere in its block, and among others, each time."""
    make = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(1000, width, device="cuda", dtype=dtype, generator=make)
    weight = torch.randn(height, width, device="cuda", dtype=dtype, generator=make) / 64
    whole = tiled_linear(x, weight, None, swiglu)
    for start, rows in ((0, 4), (3, 2), (3, 17), (0, 33), (2, 100), (1, 130), (3, 600)):
        assert torch.equal(
            tiled_linear(x[start : start + rows], weight, None, swiglu), whole[start : start + rows]
        )


@pytest.fixture(scope="module", params=["float16", "bfloat16"])
def llm(request: pytest.FixtureRequest, demo_in: Callable[[str], Path]) -> Iterator[LLM]:
    options: dict[str, Any] = {"max_tokens_per_step": 160, "max_sequences": 24, "prefix_cache": False}
    with LLM(demo_in(request.param), "inductor", deterministic=True, verify=False, **options) as made:
        yield made


@pytest.fixture(scope="module")
def alone(llm: LLM) -> list[Any]:
    return [llm.generate([prompt], PARAMS)[0] for prompt in prompts_of(llm)]


def prompts_of(llm: LLM) -> list[list[int]]:
    """Of `LENGTHS`: shorter than a page, and longer than what a step leaves for it."""
    generator = np.random.default_rng(0)
    return [generator.integers(3, llm.model.tokenizer.vocab_size, length).tolist() for length in LENGTHS]


# Batches are small already: to make a failing one smaller takes longer than it is worth.
@settings(max_examples=20, deadline=None, phases=[Phase.generate])
@given(
    order=st.permutations(range(len(LENGTHS))),
    others=st.lists(st.tuples(st.integers(2, 150), st.integers(1, 40)), max_size=16),
    seed=st.integers(0, 1000),
)
def test_a_request_has_the_same_logprobs_in_any_batch(
    llm: LLM, alone: list[Any], order: list[int], others: list[tuple[int, int]], seed: int
) -> None:
    """Prompts are cut by what the others leave of a step, and every step has another number of rows."""
    generator = np.random.default_rng(seed)
    prompts = prompts_of(llm)
    crowd = [generator.integers(3, llm.model.tokenizer.vocab_size, length).tolist() for length, _ in others]
    crowd_params = [SamplingParams(max_tokens=most, ignore_eos=True) for _, most in others]
    half = len(crowd) // 2
    given_prompts = crowd[:half] + [prompts[index] for index in order] + crowd[half:]
    params = crowd_params[:half] + [PARAMS] * len(order) + crowd_params[half:]
    answers = llm.generate(given_prompts, params)[half : half + len(order)]
    for index, answer in zip(order, answers, strict=True):
        assert answer.token_ids == alone[index].token_ids
        assert answer.logprobs == alone[index].logprobs


def test_requests_that_come_and_go_have_the_same_logprobs(llm: LLM, alone: list[Any]) -> None:
    """Threads that start at any time, so that requests meet in the middle."""
    prompts = prompts_of(llm)
    answers: list[Any] = [None] * 24

    def ask(number: int) -> None:
        (answers[number],) = llm.generate([prompts[number % len(prompts)]], PARAMS)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(answers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, answer in enumerate(answers):
        assert answer.logprobs == alone[number % len(prompts)].logprobs
