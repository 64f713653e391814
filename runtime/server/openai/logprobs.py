"""Logprobs in OpenAI's two forms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cleave.runtime.request import Logprob

Places = Sequence[dict[int, Logprob] | None]
"""For each token, the token that stands there first, then the likeliest others; None: nothing is known."""
_IMPOSSIBLE = -9999.0
"""What stands for minus infinity, which JSON does not have."""


def of_chat(places: Places, top: int) -> dict[str, Any]:
    """The form of chat completions: `top` of the likeliest tokens at every place."""
    content = []
    for place in filter(None, places):
        chosen, *_ = place.values()
        likeliest = sorted(place.values(), key=lambda candidate: candidate.rank)[:top]
        content.append({**_token(chosen), "top_logprobs": [_token(candidate) for candidate in likeliest]})
    return {"content": content, "refusal": None}


def of_completion(places: Places, top: int, tokens: Sequence[str], offset: int) -> dict[str, Any]:
    """The form of completions; `tokens` are the texts of the places, of which the first is at `offset`."""
    offsets = []
    for text in tokens:
        offsets.append(offset)
        offset += len(text)
    chosen = [None if place is None else _finite(next(iter(place.values()))) for place in places]
    return {
        "tokens": list(tokens),
        "token_logprobs": chosen,
        "top_logprobs": [_by_text(place) for place in places] if top else None,
        "text_offset": offsets,
    }


def _by_text(place: dict[int, Logprob] | None) -> dict[str, float] | None:
    if place is None:
        return None
    # Tokens that show alike, as parts of characters do, are one entry: the likeliest one's.
    found: dict[str, float] = {}
    for candidate in sorted(place.values(), key=lambda candidate: candidate.rank):
        found.setdefault(candidate.decoded_token, _finite(candidate))
    return found


def _token(candidate: Logprob) -> dict[str, Any]:
    text = candidate.decoded_token
    return {"token": text, "logprob": _finite(candidate), "bytes": list(text.encode())}


def _finite(candidate: Logprob) -> float:
    return max(candidate.logprob, _IMPOSSIBLE)
