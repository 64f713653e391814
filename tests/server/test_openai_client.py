"""OpenAI's dialect, spoken by OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from served import Served

from cleave import LLM, Completion, SamplingParams, StructuredOutput

PROMPT = "San Francisco is a"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def truth(demo_artifact: Path) -> Iterator[LLM]:
    """The same model without a server."""
    with LLM(demo_artifact) as llm:
        yield llm


@pytest.fixture(scope="module")
def served(demo_artifact: Path) -> Iterator[Served]:
    with Served(demo_artifact, settings={"model_name": "demo"}) as server:
        yield server
        server.idle()


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def one(llm: LLM, prompt: str | list[int], **params: object) -> Completion:
    (answer,) = llm.generate([prompt], SamplingParams(**params))  # type: ignore[arg-type]
    return answer


def test_the_model_is_listed(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "demo"
    assert client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError, match="'other' is not served; 'demo' is"):
        client.models.retrieve("other")


def test_a_completion_is_what_generate_gives(client: OpenAI, truth: LLM) -> None:
    expected = one(truth, PROMPT, max_tokens=24)
    answer = client.completions.create(model="demo", prompt=PROMPT, max_tokens=24)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == (expected.text, "length")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(expected.prompt_token_ids)
    assert answer.usage.completion_tokens == len(expected.token_ids) == 24
    assert answer.usage.total_tokens == len(expected.prompt_token_ids) + 24


def test_sixteen_tokens_are_the_default(client: OpenAI) -> None:
    answer = client.completions.create(model="demo", prompt=PROMPT)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_streamed_pieces_are_the_whole(client: OpenAI, truth: LLM) -> None:
    expected = one(truth, PROMPT, max_tokens=24)
    chunks = list(
        client.completions.create(
            model="demo", prompt=PROMPT, max_tokens=24, stream=True, stream_options={"include_usage": True}
        )
    )
    *pieces, last = chunks
    assert "".join(piece.choices[0].text for piece in pieces) == expected.text
    assert [piece.choices[0].finish_reason for piece in pieces if piece.choices[0].finish_reason] == [
        "length"
    ]
    assert all(piece.usage is None for piece in pieces)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 24
    assert len({chunk.id for chunk in chunks}) == 1


def test_several_prompts_with_several_answers_each(client: OpenAI, truth: LLM) -> None:
    prompts = [PROMPT, "The capital of France is", "2 + 3 ="]
    options = {"max_tokens": 8, "n": 2, "temperature": 1.0, "seed": 5}
    expected = truth.generate(prompts, SamplingParams(**options))  # type: ignore[arg-type]
    answer = client.completions.create(model="demo", prompt=prompts, **options)  # type: ignore[call-overload]
    assert [choice.text for choice in answer.choices] == [completion.text for completion in expected]
    assert [choice.index for choice in answer.choices] == list(range(6))
    texts = [""] * 6
    for chunk in client.completions.create(model="demo", prompt=prompts, stream=True, **options):  # type: ignore[call-overload]
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [completion.text for completion in expected]


def test_token_ids_are_prompts(client: OpenAI, truth: LLM) -> None:
    ids = list(one(truth, PROMPT, max_tokens=1).prompt_token_ids)
    expected = one(truth, ids, max_tokens=8).text
    assert client.completions.create(model="demo", prompt=ids, max_tokens=8).choices[0].text == expected
    both = client.completions.create(model="demo", prompt=[ids, ids], max_tokens=8)
    assert [choice.text for choice in both.choices] == [expected, expected]


def test_echo_repeats_the_prompt_and_its_logprobs(client: OpenAI, truth: LLM) -> None:
    expected = one(truth, PROMPT, max_tokens=4, logprobs=2, prompt_logprobs=2)
    (choice,) = client.completions.create(
        model="demo", prompt=PROMPT, max_tokens=4, echo=True, logprobs=2
    ).choices
    assert choice.text == PROMPT + expected.text
    assert choice.logprobs is not None
    assert expected.prompt_logprobs is not None
    assert expected.logprobs is not None
    places = [*expected.prompt_logprobs, *expected.logprobs]
    ids = [*expected.prompt_token_ids, *expected.token_ids]
    given = [
        None if place is None else place[token].logprob for place, token in zip(places, ids, strict=True)
    ]
    assert choice.logprobs.token_logprobs == given
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.top_logprobs is not None
    assert choice.logprobs.top_logprobs[0] is None
    assert all(len(place) >= 2 for place in choice.logprobs.top_logprobs[1:])
    pieces = client.completions.create(model="demo", prompt=PROMPT, max_tokens=4, echo=True, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == PROMPT + expected.text


def test_stop_strings_and_bias(client: OpenAI, truth: LLM) -> None:
    whole = one(truth, PROMPT, max_tokens=40)
    stop = whole.text[20:24]
    (choice,) = client.completions.create(model="demo", prompt=PROMPT, max_tokens=40, stop=stop).choices
    assert (choice.text, choice.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")
    first = whole.token_ids[0]
    (choice,) = client.completions.create(
        model="demo", prompt=PROMPT, max_tokens=8, logit_bias={str(first): -100}
    ).choices
    assert choice.text == one(truth, PROMPT, max_tokens=8, logit_bias={first: -100.0}).text != whole.text[:8]


def test_a_chat_is_what_chat_gives(client: OpenAI, truth: LLM) -> None:
    (expected,) = truth.chat(QUESTION)
    answer = client.chat.completions.create(model="demo", messages=QUESTION)  # type: ignore[arg-type]
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == (expected.text, "stop")
    assert choice.message.role == "assistant"
    assert answer.object == "chat.completion"
    parts = [{"role": "user", "content": [{"type": "text", "text": QUESTION[0]["content"]}]}]
    answer = client.chat.completions.create(model="demo", messages=parts)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == expected.text


def test_a_chat_streams(client: OpenAI, truth: LLM) -> None:
    (expected,) = truth.chat(QUESTION)
    with client.chat.completions.stream(model="demo", messages=QUESTION) as stream:  # type: ignore[arg-type]
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert final.choices[0].message.content == expected.text
    assert {"chunk", "content.delta", "content.done"} <= kinds


def test_an_asynchronous_client_streams_many_chats_at_once(served: Served, truth: LLM) -> None:
    questions = [f"What is {left} + {right}?" for left in range(1, 5) for right in range(1, 5)]
    expected = truth.chat([[{"role": "user", "content": question}] for question in questions])

    async def ask(client: AsyncOpenAI, question: str) -> str:
        text = ""
        async for chunk in await client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": question}], stream=True
        ):
            text += chunk.choices[0].delta.content or ""
        return text

    async def ask_all() -> list[str]:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, question) for question in questions))

    assert asyncio.run(ask_all()) == [answer.text for answer in expected]


def test_the_logprobs_of_a_chat(client: OpenAI, truth: LLM) -> None:
    (expected,) = truth.chat(QUESTION, SamplingParams(logprobs=3))
    assert expected.logprobs is not None
    options = {"model": "demo", "messages": QUESTION, "logprobs": True, "top_logprobs": 3}
    (choice,) = client.chat.completions.create(**options).choices  # type: ignore[call-overload]
    places = choice.logprobs.content
    assert [place.logprob for place in places] == [
        place[token].logprob for place, token in zip(expected.logprobs, expected.token_ids, strict=True)
    ]
    assert all(len(place.top_logprobs) == 3 for place in places)
    assert all(bytes(place.bytes) == place.token.encode() for place in places)
    streamed = []
    for chunk in client.chat.completions.create(stream=True, **options):  # type: ignore[call-overload]
        if chunk.choices[0].logprobs is not None:
            streamed += chunk.choices[0].logprobs.content
    assert streamed == places


def test_a_schema_is_kept(client: OpenAI, truth: LLM) -> None:
    response_format = {
        "type": "json_schema",
        "json_schema": {"name": "person", "schema": PERSON, "strict": True},
    }
    options = {"model": "demo", "messages": QUESTION, "max_tokens": 200}
    answer = client.chat.completions.create(response_format=response_format, **options)  # type: ignore[call-overload]
    params = SamplingParams(max_tokens=200, structured=StructuredOutput(json_schema=PERSON))
    (expected,) = truth.chat(QUESTION, params)
    assert answer.choices[0].message.content == expected.text
    # The demo model likes whitespace so much that it never gets to the end of free-form JSON.
    compact = {"json": PERSON, "disable_any_whitespace": True}
    answer = client.chat.completions.create(extra_body={"structured_outputs": compact}, **options)  # type: ignore[call-overload]
    assert set(json.loads(answer.choices[0].message.content)) == {"name", "age"}
    answer = client.chat.completions.create(
        extra_body={"structured_outputs": {"choice": ["yes", "no"]}},
        **options,  # type: ignore[call-overload]
    )
    assert answer.choices[0].message.content in ("yes", "no")


def test_max_completion_tokens_is_the_newer_name(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=QUESTION, max_completion_tokens=3)  # type: ignore[arg-type]
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1}, ("temperature", "-1")),
        ({"top_p": 1.5}, ("top_p", "1.5")),
        ({"n": 0}, ("n is 0",)),
        ({"max_tokens": 0}, ("max_tokens is 0",)),
        ({"logprobs": 21}, ("logprobs is 21", "20")),
        ({"best_of": 3}, ("best_of is 3",)),
        ({"suffix": "end"}, ("suffix", "end")),
        ({"logit_bias": {"word": 1}}, ("logit_bias", "word")),
        ({"logit_bias": {"999999": 1}}, ("999999",)),
        ({"prompt": ""}, ("prompt is empty",)),
        ({"prompt": []}, ("prompt",)),
        ({"prompt": None}, ("prompt is None; it must be str or list[str]",)),
        ({"prompt": [1, "a"]}, ("prompt is [1, 'a']; it must be str or list[str]",)),
        ({"stop": 5}, ("stop is 5; it must be str or list[str]",)),
        ({"prompt": [999999]}, ("999999", "vocabulary")),
        ({"prompt": "a " * 9000}, ("tokens", "context of 4096")),
        ({"extra_body": {"typical_p": 0.5}}, ("typical_p", "not a parameter")),
        ({"extra_body": {"top_k": "many"}}, ("top_k", "many")),
    ],
)
def test_what_is_not_allowed_is_said(
    client: OpenAI, options: dict[str, object], words: tuple[str, ...]
) -> None:
    arguments = {"model": "demo", "prompt": PROMPT, **options}
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**arguments)  # type: ignore[call-overload]
    assert caught.value.type == "invalid_request_error"
    for word in words:
        assert word in str(caught.value)


def test_other_models_are_not_served(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="gpt-4", prompt=PROMPT)
    assert caught.value.code == "model_not_found"


def test_tools_are_refused_where_the_template_knows_none(client: OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    with pytest.raises(openai.BadRequestError, match="knows no tools"):
        client.chat.completions.create(model="demo", messages=QUESTION, tools=[tool])  # type: ignore[list-item,arg-type]


def test_an_abort_ends_a_stream(client: OpenAI, served: Served) -> None:
    with client.completions.create(
        model="demo", prompt=PROMPT, max_tokens=3000, stream=True, extra_body={"ignore_eos": True}
    ) as stream:
        first = next(stream)
        client.post(f"/abort/{first.id}", cast_to=object)
        reasons = [chunk.choices[0].finish_reason for chunk in stream]
    assert reasons[-1] == "abort"
    with pytest.raises(openai.NotFoundError, match="no request"):
        client.post(f"/abort/{first.id}", cast_to=object)
    served.idle()
