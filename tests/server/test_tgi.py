"""The dialect of text-generation-inference: its clients run unchanged, and it refuses in the same words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import ValidationError
from served import Served

from cleave import LLM, Completion, SamplingParams

PROMPT = "San Francisco is a"


@pytest.fixture(scope="module")
def truth(demo_artifact: Path) -> Iterator[LLM]:
    """The same model without a server."""
    with LLM(demo_artifact) as llm:
        yield llm


@pytest.fixture(scope="module")
def served(demo_artifact: Path) -> Iterator[Served]:
    with Served(demo_artifact) as server:
        yield server
        server.idle()


@pytest.fixture(scope="module")
def hub(served: Served) -> InferenceClient:
    return InferenceClient(served.url)


def one(llm: LLM, prompt: str, **params: Any) -> Completion:
    (answer,) = llm.generate([prompt], SamplingParams(**{"temperature": 0, **params}))
    return answer


def post(served: Served, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{served.url}{path}", json=body, timeout=60)


def events(served: Served, path: str, **body: Any) -> list[dict[str, Any]]:
    answer = post(served, path, **body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-accel-buffering"] == "no"
    lines = [line for line in answer.text.split("\n\n") if line]
    return [json.loads(line.removeprefix("data:")) for line in lines]


def test_generate_gives_the_text(served: Served, truth: LLM) -> None:
    answer = post(served, "/generate", inputs=PROMPT, parameters={"max_new_tokens": 12})
    assert answer.json() == {"generated_text": one(truth, PROMPT, max_tokens=12).text}
    expected = one(truth, PROMPT)
    assert expected.finish_reason == "stop"
    assert post(served, "/generate", inputs=PROMPT).json() == {"generated_text": expected.text}


def test_generate_has_the_headers(served: Served) -> None:
    answer = post(served, "/generate", inputs=PROMPT, parameters={"max_new_tokens": 12})
    headers = answer.headers
    assert headers["x-compute-characters"] == str(len(PROMPT))
    assert headers["x-prompt-tokens"] == "5"
    assert headers["x-generated-tokens"] == "12"
    total = int(headers["x-total-time"])
    parts = [int(headers[f"x-{name}-time"]) for name in ("validation", "queue", "inference")]
    assert min(parts) >= 0
    assert abs(sum(parts) - total) <= 2
    assert int(headers["x-time-per-token"]) <= total
    assert float(headers["x-compute-time"]) >= 0
    assert headers["x-compute-type"]


def test_the_root_gives_a_list_with_the_prompt_in_the_text(served: Served, truth: LLM) -> None:
    text = one(truth, PROMPT, max_tokens=5).text
    parameters = {"max_new_tokens": 5}
    assert post(served, "/", inputs=PROMPT, parameters=parameters).json() == [
        {"generated_text": PROMPT + text}
    ]
    parameters["return_full_text"] = False
    assert post(served, "/", inputs=PROMPT, parameters=parameters).json() == [{"generated_text": text}]


def test_details_list_every_token(served: Served, truth: LLM) -> None:
    expected = one(truth, PROMPT, logprobs=2, prompt_logprobs=0)
    parameters = {"decoder_input_details": True, "top_n_tokens": 2, "max_new_tokens": None}
    answer = post(served, "/generate", inputs=PROMPT, parameters=parameters).json()
    details = answer["details"]
    assert details["finish_reason"] == "eos_token"
    assert details["seed"] is None
    assert details["generated_tokens"] == len(expected.token_ids)
    assert [token["id"] for token in details["tokens"]] == list(expected.token_ids)
    assert "".join(token["text"] for token in details["tokens"] if not token["special"]) == expected.text
    assert [token["special"] for token in details["tokens"]] == [False] * (len(expected.token_ids) - 1) + [
        True
    ]
    assert expected.logprobs is not None
    assert expected.prompt_logprobs is not None
    assert [token["logprob"] for token in details["tokens"]] == [
        place[token].logprob for place, token in zip(expected.logprobs, expected.token_ids, strict=True)
    ]
    assert [token["id"] for token in details["prefill"]] == list(expected.prompt_token_ids)
    assert details["prefill"][0]["logprob"] is None
    assert (
        details["prefill"][1]["logprob"] == expected.prompt_logprobs[1][expected.prompt_token_ids[1]].logprob
    )  # type: ignore[index]
    assert all(len(place) == 2 for place in details["top_tokens"])


def test_a_stream_has_an_event_for_each_token(served: Served, truth: LLM) -> None:
    expected = one(truth, PROMPT, max_tokens=12, logprobs=3)
    parameters = {"max_new_tokens": 12, "details": True, "top_n_tokens": 3}
    found = events(served, "/generate_stream", inputs=PROMPT, parameters=parameters)
    assert [event["index"] for event in found] == list(range(1, 13))
    assert [event["token"]["id"] for event in found] == list(expected.token_ids)
    assert "".join(event["token"]["text"] for event in found) == expected.text
    assert [event["generated_text"] for event in found] == [None] * 11 + [expected.text]
    assert [event["details"] for event in found[:-1]] == [None] * 11
    assert found[-1]["details"] == {
        "finish_reason": "length",
        "generated_tokens": 12,
        "seed": None,
        "input_length": len(expected.prompt_token_ids),
    }
    assert all(len(event["top_tokens"]) == 3 for event in found)


def test_stop_sequences_stay_in_the_text(served: Served, truth: LLM) -> None:
    whole = one(truth, PROMPT).text
    stop = whole[20:24]
    parameters = {"stop": [stop], "details": True}
    answer = post(served, "/generate", inputs=PROMPT, parameters=parameters).json()
    assert answer["generated_text"] == whole[: whole.index(stop) + 4]
    assert answer["details"]["finish_reason"] == "stop_sequence"


def test_truncate_keeps_the_end_of_the_prompt(served: Served, truth: LLM) -> None:
    (answer,) = truth.generate(
        [list(one(truth, PROMPT, max_tokens=1).prompt_token_ids[-3:])], SamplingParams(max_tokens=6)
    )
    parameters = {"truncate": 3, "max_new_tokens": 6}
    assert (
        post(served, "/generate", inputs=PROMPT, parameters=parameters).json()["generated_text"]
        == answer.text
    )


def test_sampling_tells_its_seed_and_repeats_with_it(served: Served) -> None:
    parameters: dict[str, Any] = {
        "do_sample": True,
        "temperature": 5.0,
        "details": True,
        "max_new_tokens": 12,
    }
    first = post(served, "/generate", inputs=PROMPT, parameters=parameters).json()
    again = post(
        served, "/generate", inputs=PROMPT, parameters={**parameters, "seed": first["details"]["seed"]}
    ).json()
    assert again == first


def test_best_of_gives_the_likeliest_first(served: Served) -> None:
    parameters = {"do_sample": True, "temperature": 2.0, "best_of": 3, "details": True, "max_new_tokens": 8}
    details = post(served, "/generate", inputs=PROMPT, parameters=parameters).json()["details"]
    answers = [details, *details["best_of_sequences"]]
    means = [sum(token["logprob"] for token in one["tokens"]) / len(one["tokens"]) for one in answers]
    assert len(means) == 3
    assert means == sorted(means, reverse=True)


def test_grammars_are_kept(served: Served) -> None:
    grammar = {"type": "regex", "value": "[0-9]{3}-[0-9]{4}"}
    answer = post(served, "/generate", inputs=PROMPT, parameters={"grammar": grammar}).json()
    assert answer["generated_text"].replace("-", "").isdecimal()
    assert len(answer["generated_text"]) == 8
    grammar = {"type": "json", "value": {"enum": ["red", "green"]}}
    answer = post(served, "/generate", inputs=PROMPT, parameters={"grammar": grammar}).json()
    assert json.loads(answer["generated_text"]) in ("red", "green")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"best_of": 0}, "`best_of` must be > 0 and <= 16. Given: 0"),
        ({"best_of": 2}, "you must use sampling when `best_of` is > 1"),
        ({"best_of": 2, "do_sample": True, "seed": 1}, "`seed` must not be set when `best_of` > 1"),
        ({"top_n_tokens": 99}, "`top_n_tokens` must be >= 0 and <= 20. Given: 99"),
        ({"temperature": 0.0}, "`temperature` must be strictly positive"),
        ({"repetition_penalty": 0}, "`repetition_penalty` must be strictly positive"),
        ({"frequency_penalty": 3}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ({"top_p": 0}, "`top_p` must be > 0.0 and <= 1.0"),
        ({"top_k": 0}, "`top_k` must be strictly positive"),
        ({"typical_p": 1.0}, "`typical_p` must be > 0.0 and < 1.0"),
        ({"typical_p": 0.9}, "`typical_p` is not supported; use `top_p`"),
        ({"watermark": True}, "`watermark` is not supported; leave it out"),
        ({"adapter_id": "mine"}, "LoRA adaptor mine not loaded"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
        (
            {"max_new_tokens": 4092},
            "must be <= 4096. Given: 5 `inputs` tokens and 4092 `max_new_tokens`",
        ),
        ({"truncate": 0}, "`truncate` must be strictly positive and less than 4095. Given: 0"),
        ({"stop": ["a"] * 17}, "`stop` supports up to 16 stop sequences. Given: 17"),
        ({"grammar": {"type": "json", "value": {"type": "nonsense"}}}, "nonsense"),
        ({"no_such": 1}, "parameters.no_such is not a parameter that is known here"),
        ({"top_k": "many"}, "parameters.top_k is 'many'"),
    ],
)
def test_what_is_not_allowed_is_said_in_its_words(
    served: Served, parameters: dict[str, Any], message: str
) -> None:
    for path in ("/", "/generate", "/generate_stream"):
        answer = post(served, path, inputs=PROMPT, parameters=parameters)
        assert answer.status_code == 422
        assert answer.json()["error_type"] == "validation"
        assert answer.json()["error"].startswith("Input validation error: ")
        assert message in answer.json()["error"]


def test_streams_refuse_what_they_cannot_give(served: Served) -> None:
    for parameters, message in (
        ({"best_of": 2, "do_sample": True}, "`best_of` != 1 is not supported when streaming tokens"),
        (
            {"decoder_input_details": True},
            "`decoder_input_details` == true is not supported when streaming tokens",
        ),
    ):
        answer = post(served, "/generate_stream", inputs=PROMPT, parameters=parameters)
        assert (answer.status_code, answer.json()["error"]) == (422, f"Input validation error: {message}")


def test_inputs_may_not_be_empty_or_too_long(served: Served) -> None:
    assert post(served, "/generate", inputs="").json()["error"].endswith("`inputs` cannot be empty")
    answer = post(served, "/generate", inputs="a " * 9000)
    assert "`inputs` must have less than 4095 tokens. Given: " in answer.json()["error"]


def test_tokenize_gives_the_characters_of_each_token(served: Served, truth: LLM) -> None:
    found = post(served, "/tokenize", inputs=PROMPT).json()
    assert [token["id"] for token in found] == list(one(truth, PROMPT, max_tokens=1).prompt_token_ids)
    assert "".join(token["text"] for token in found) == PROMPT
    assert all(token["text"] == PROMPT[token["start"] : token["stop"]] for token in found)


def test_info_and_health(served: Served) -> None:
    info = httpx.get(f"{served.url}/info").json()
    assert info["max_total_tokens"] == 4096
    assert info["max_input_length"] == info["max_input_tokens"] == 4095
    assert info["model_pipeline_tag"] == "text-generation"
    for path in ("/health", "/ping", "/"):
        answer = httpx.get(f"{served.url}{path}")
        assert (answer.status_code, answer.content) == (200, b"")


# The client of huggingface_hub.


def test_the_hub_client_generates(hub: InferenceClient, truth: LLM) -> None:
    text = one(truth, PROMPT, max_tokens=12).text
    assert hub.text_generation(PROMPT, max_new_tokens=12, return_full_text=False) == text
    answer = hub.text_generation(PROMPT, max_new_tokens=12, details=True, decoder_input_details=True)
    assert answer.details is not None
    assert answer.details.generated_tokens == 12
    assert answer.details.prefill[0].logprob is None
    assert "".join(hub.text_generation(PROMPT, max_new_tokens=12, stream=True)) == text
    *_, last = hub.text_generation(
        PROMPT, max_new_tokens=12, stream=True, details=True, return_full_text=False
    )
    assert last.generated_text == text
    assert last.details is not None
    assert last.details.finish_reason == "length"


def test_the_hub_client_understands_refusals(hub: InferenceClient) -> None:
    with pytest.raises(ValidationError, match="`temperature` must be strictly positive"):
        hub.text_generation(PROMPT, temperature=-1)
    with pytest.raises(ValidationError, match="`typical_p` is not supported"):
        hub.text_generation(PROMPT, typical_p=0.5)


def test_the_hub_client_chats(hub: InferenceClient, truth: LLM) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    (expected,) = truth.chat(messages)
    assert hub.chat_completion(messages).choices[0].message.content == expected.text
    pieces = hub.chat_completion(messages, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected.text


def test_the_asynchronous_hub_client_generates(served: Served, truth: LLM) -> None:
    async def ask() -> tuple[str, str]:
        client = AsyncInferenceClient(served.url)
        whole = await client.text_generation(PROMPT, max_new_tokens=12, return_full_text=False)
        pieces = [
            piece async for piece in await client.text_generation(PROMPT, max_new_tokens=12, stream=True)
        ]
        return whole, "".join(pieces)

    text = one(truth, PROMPT, max_tokens=12).text
    assert asyncio.run(ask()) == (text, text)
