"""The events of a stream: one for each token."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from cleave.runtime.request import Chunk, Logprob
from cleave.runtime.server.errors import Refused
from cleave.runtime.server.job import Job
from cleave.runtime.server.sse import dump, quoted
from cleave.runtime.server.tgi.details import finish_reason
from cleave.runtime.server.tgi.parameters import Wanted
from cleave.runtime.server.tgi.tokens import TokenLister, finite
from cleave.runtime.tokenizer import Tokenizer


async def events(tokenizer: Tokenizer, job: Job, asked: Wanted, inputs: str) -> AsyncIterator[bytes]:
    """The server-sent events of the one answer of a job; what went wrong is the last one."""
    writer = _Writer(tokenizer, job, asked)
    text = [inputs] if asked.full_text else []
    async for _, chunk in job.chunks():
        text.append(chunk.text)
        if chunk.finish_reason is None:
            yield writer.tokens(chunk, "null", "null")
            continue
        try:
            details = dump(_details(chunk, asked, job))
        except Refused as refused:
            yield writer.tokens(chunk, "null", "null") + refused.failure.event("tgi")
        else:
            yield writer.tokens(chunk, quoted("".join(text)), details if asked.details else "null")


class _Writer:
    """Writes the events of tokens; the last token of an answer has what is known of the whole."""

    def __init__(self, tokenizer: Tokenizer, job: Job, asked: Wanted) -> None:
        self._special = tokenizer.special_token_ids
        self._lister = TokenLister(tokenizer, job.streams[0].prompt_token_ids)
        self._top = asked.top_n_tokens
        self._index = 0

    def tokens(self, chunk: Chunk, whole: str, details: str) -> bytes:
        """An event for each token of a chunk; the last one has the JSON `whole` and `details`."""
        pairs = list(zip(chunk.token_ids, chunk.logprobs or (), strict=True))
        events = [self._event(token, place, "null", "null") for token, place in pairs[:-1]]
        events += [self._event(token, place, whole, details) for token, place in pairs[-1:]]
        return "".join(events).encode()

    def _event(self, token: int, place: Mapping[int, Logprob], whole: str, details: str) -> str:
        self._index += 1
        text = self._lister.text(token)
        if whole != "null":
            text += self._lister.rest()
        special = "true" if token in self._special else "false"
        logprob = finite(place[token].logprob)
        top = f',"top_tokens":{dump(self._lister.likeliest(place, self._top))}' if self._top else ""
        return (
            f'data: {{"index":{self._index},"token":{{"id":{token},"text":{quoted(text)},'
            f'"logprob":{logprob!r},"special":{special}}}{top},'
            f'"generated_text":{whole},"details":{details}}}\n\n'
        )


def _details(chunk: Chunk, asked: Wanted, job: Job) -> dict[str, Any]:
    """What a stream ends with. Raises Refused where that was no proper end."""
    return {
        "finish_reason": finish_reason(chunk.finish_reason, chunk.stop_reason, chunk.error),
        "generated_tokens": job.generated_tokens,
        "seed": asked.seed,
        "input_length": job.prompt_tokens,
    }
