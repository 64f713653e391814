"""Rule 1: token-exact with transformers' greedy decoding in float32, alone and in a batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoints import VARIANTS
from truth import Truth, assert_token_exact

from cleave import LLM, SamplingParams

NEW_TOKENS = 64


def random_prompts(vocab_size: int, lengths: list[int], seed: int = 0) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, vocab_size, length).tolist() for length in lengths]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_answers_as_transformers_does(
    variant: str, checkpoint: Callable[[str], Path], artifact: Callable[[str], Path]
) -> None:
    truth = Truth.load(checkpoint(variant))
    prompts = random_prompts(truth.model.config.vocab_size, [1, 5, 17, 40])
    params = SamplingParams(max_tokens=NEW_TOKENS)
    with LLM(artifact(variant)) as llm:
        alone = [list(llm.generate([prompt], params)[0].token_ids) for prompt in prompts]
        together = [list(completion.token_ids) for completion in llm.generate(prompts, params)]
    assert together == alone
    assert_token_exact(truth, prompts, alone, max_new_tokens=NEW_TOKENS)


@pytest.mark.parametrize("backend", ["reference", "onnx"])
@pytest.mark.parametrize("variant", ["gqa", "rope_yarn", "qwen2_mixed_windows"])
def test_every_attention_backend_answers_as_transformers_does(
    variant: str, backend: str, checkpoint: Callable[[str], Path], artifact: Callable[[str], Path]
) -> None:
    truth = Truth.load(checkpoint(variant))
    prompts = random_prompts(truth.model.config.vocab_size, [3, 30])
    with LLM(artifact(variant), attention=backend) as llm:
        answers = llm.generate(prompts, SamplingParams(max_tokens=32))
    assert_token_exact(truth, prompts, [list(answer.token_ids) for answer in answers], max_new_tokens=32)


def test_eos_ends_an_answer_where_transformers_ends_it(
    checkpoint: Callable[[str], Path], artifact: Callable[[str], Path]
) -> None:
    truth = Truth.load(checkpoint("gqa"))
    prompts = random_prompts(301, [4] * 48, seed=3)
    with LLM(artifact("gqa")) as llm:
        free = llm.generate(prompts, SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True))
        ended = llm.generate(prompts, SamplingParams(max_tokens=NEW_TOKENS))
    stopped = [answer for answer in ended if answer.finish_reason == "stop"]
    assert stopped, "no prompt ended by itself; the test needs other prompts"
    for prompt, answer, whole in zip(prompts, ended, free, strict=True):
        assert whole.finish_reason == "length"
        assert whole.token_ids[: len(answer.token_ids)] == answer.token_ids
        if answer.finish_reason == "stop":
            assert list(answer.token_ids) == truth.greedy(prompt, NEW_TOKENS)
            assert answer.token_ids[-1] == 257
