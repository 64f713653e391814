"""The demo checkpoint through the whole system: what it has learned, and rule 1 on 32 prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from truth import Truth, assert_token_exact

from cleave import LLM, SamplingParams


@pytest.fixture(scope="module")
def llm(demo_artifact: Path) -> Iterator[LLM]:
    with LLM(demo_artifact) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def known(demo_checkpoint: Path) -> list[dict[str, str]]:
    answers = json.loads((demo_checkpoint / "known_answers.json").read_text("utf-8"))
    return [answer for answer in answers if "prompt" in answer]


def test_it_gives_the_known_answers_in_one_batch(llm: LLM, known: list[dict[str, str]]) -> None:
    completions = llm.generate([answer["prompt"] for answer in known], SamplingParams(max_tokens=256))
    assert [completion.text for completion in completions] == [answer["text"] for answer in known]
    assert {completion.finish_reason for completion in completions} == {"stop"}


def test_32_prompts_are_token_exact_alone_and_in_one_batch(
    llm: LLM, known: list[dict[str, str]], demo_checkpoint: Path
) -> None:
    texts = [answer["prompt"] for answer in known][:32]
    assert len(texts) == 32
    prompts = [list(llm.model.tokenizer.encode(text)) for text in texts]
    params = SamplingParams(max_tokens=64, ignore_eos=True)
    alone = [llm.generate([text], params)[0].token_ids for text in texts]
    together = [completion.token_ids for completion in llm.generate(texts, params)]
    assert together == alone
    truth = Truth.load(demo_checkpoint)
    assert_token_exact(truth, prompts, [list(answer) for answer in alone], max_new_tokens=64, ignore_eos=True)


def test_a_stream_joined_is_the_whole_text_and_has_no_half_character(
    llm: LLM, known: list[dict[str, str]]
) -> None:
    for answer in known:
        chunks = list(llm.stream(answer["prompt"], SamplingParams(max_tokens=256)))
        assert "".join(chunk.text for chunk in chunks) == answer["text"]
        assert not any("\ufffd" in chunk.text for chunk in chunks)
        assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert chunks[-1].finish_reason == "stop"
