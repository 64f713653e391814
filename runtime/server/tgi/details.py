"""What is known of a whole answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cleave.runtime.request import Completion, FinishReason
from cleave.runtime.server.errors import Refused
from cleave.runtime.server.tgi.parameters import Wanted
from cleave.runtime.server.tgi.tokens import TokenLister, finite
from cleave.runtime.tokenizer import Tokenizer


def finish_reason(reason: FinishReason | None, stop_reason: str | int | None, error: str | None) -> str:
    """Why an answer ended. Raises Refused where that was no proper end."""
    if reason == "error":
        raise Refused("generation", error or "")
    if reason == "abort":
        raise Refused("incomplete", error or "the request was called off")
    if reason == "length":
        return "length"
    return "stop_sequence" if isinstance(stop_reason, str) else "eos_token"


def best_first(done: Sequence[Completion]) -> list[Completion]:
    """The answers, the one whose tokens are the likeliest on average first."""
    return sorted(done, key=_mean_logprob, reverse=True)


def details(tokenizer: Tokenizer, asked: Wanted, done: Sequence[Completion], inputs: str) -> dict[str, Any]:
    """The details of the first answer, and of the others below it."""
    described = _one(tokenizer, asked, done[0])
    if len(done) > 1:
        described["best_of_sequences"] = [
            {
                "generated_text": (inputs if asked.full_text else "") + other.text,
                **_one(tokenizer, asked, other),
            }
            for other in done[1:]
        ]
    return described


def _one(tokenizer: Tokenizer, asked: Wanted, completion: Completion) -> dict[str, Any]:
    lister = TokenLister(tokenizer, completion.prompt_token_ids)
    places = completion.logprobs or ()
    last = len(completion.token_ids) - 1
    described: dict[str, Any] = {
        "finish_reason": finish_reason(completion.finish_reason, completion.stop_reason, completion.error),
        "generated_tokens": len(completion.token_ids),
        "seed": asked.seed,
        "prefill": _prefill(tokenizer, completion) if asked.prefill else [],
        "tokens": [
            lister.listed(token, place, last=index == last)
            for index, (token, place) in enumerate(zip(completion.token_ids, places, strict=True))
        ],
    }
    if asked.top_n_tokens:
        described["top_tokens"] = [lister.likeliest(place, asked.top_n_tokens) for place in places]
    return described


def _prefill(tokenizer: Tokenizer, completion: Completion) -> list[dict[str, Any]]:
    places = completion.prompt_logprobs or (None,) * len(completion.prompt_token_ids)
    return [
        {
            "id": token,
            "text": tokenizer.text_of(token),
            "logprob": None if place is None else finite(place[token].logprob),
        }
        for token, place in zip(completion.prompt_token_ids, places, strict=True)
    ]


def _mean_logprob(completion: Completion) -> float:
    pairs = zip(completion.token_ids, completion.logprobs or (), strict=True)
    found = [finite(place[token].logprob) for token, place in pairs]
    return sum(found) / len(found) if found else finite(float("-inf"))
