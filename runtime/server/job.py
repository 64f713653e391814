"""A job: what one HTTP request has under way in the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress

from starlette.requests import Request

from cleave.errors import RequestError
from cleave.runtime.async_llm import AsyncLLM
from cleave.runtime.request import Chunk, Completion, Prompt, SamplingParams
from cleave.runtime.server.service import Service
from cleave.runtime.stream import AsyncStream

_LONG = 4096
"""Characters of a request that take milliseconds to tokenise, which is too long for the event loop."""


class Job:
    """The streams of a request's prompts."""

    def __init__(self, llm: AsyncLLM, request_id: str, streams: Sequence[AsyncStream], n: int) -> None:
        self._llm = llm
        self.request_id = request_id
        self.n = n
        self.streams = streams
        self.generated_tokens = 0

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(len(stream.prompt_token_ids) for stream in self.streams)

    async def chunks(self) -> AsyncIterator[tuple[int, Chunk]]:
        """Every chunk as it comes, with the index of its answer among those of all prompts."""
        if len(self.streams) == 1:
            async for chunk in self.streams[0]:
                self.generated_tokens += len(chunk.token_ids)
                yield chunk.index, chunk
            return
        async for prompt, chunk in _merged(self.streams):
            self.generated_tokens += len(chunk.token_ids)
            yield prompt * self.n + chunk.index, chunk

    async def completions(self) -> list[Completion]:
        """The answers to all prompts, once they are whole."""
        async for _ in self.chunks():
            pass
        return [completion for stream in self.streams for completion in stream.completions()]

    def prompts(self) -> list[str]:
        """The prompts as text, for a log that has them."""
        decode = self._llm.model.tokenizer.decode
        return [decode(stream.prompt_token_ids) for stream in self.streams]

    def texts(self) -> list[str]:
        """The answers as far as they came, for a log that has them."""
        return [text for stream in self.streams for text in stream.texts()]

    def abort(self) -> None:
        """Call everything off; its answers end with the finish reason "abort"."""
        for stream in self.streams:
            with suppress(RequestError):
                self._llm.abort(stream.request_id)


async def start(
    request: Request,
    prompts: Callable[[], Sequence[Prompt]],
    params: SamplingParams,
    *,
    count: int,
    size: int,
    priority: int = 0,
) -> Job:
    """Take a slot and queue the prompts, `count` of them with `size` characters in all.

    The slot is given back when the request ends. Raises Refused or RequestError.
    """
    service = Service.of(request)
    service.check_open()
    request_id: str = request.state.request_id
    slot = service.admission.enter(request_id, count * params.n)
    request.state.slot = slot

    def begin() -> list[AsyncStream]:
        return _begin(service.llm, request_id, prompts(), params, priority)

    slow = size > _LONG or params.structured is not None
    streams = await asyncio.to_thread(begin) if slow else begin()
    job = Job(service.llm, request_id, streams, params.n)
    slot.begin(job.abort)
    request.state.job = job
    return job


def _begin(
    llm: AsyncLLM, request_id: str, prompts: Sequence[Prompt], params: SamplingParams, priority: int
) -> list[AsyncStream]:
    streams: list[AsyncStream] = []
    try:
        for index, prompt in enumerate(prompts):
            name = request_id if len(prompts) == 1 else f"{request_id}-{index}"
            streams.append(llm.stream(prompt, params, request_id=name, priority=priority))
    except BaseException:
        Job(llm, request_id, streams, params.n).abort()
        raise
    return streams


async def _merged(streams: Sequence[AsyncStream]) -> AsyncIterator[tuple[int, Chunk]]:
    """The chunks of several streams as they come; each is read no faster than it is asked for."""
    reads = {asyncio.ensure_future(anext(stream)): index for index, stream in enumerate(streams)}
    try:
        while reads:
            done, _ = await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
            for read in done:
                index = reads.pop(read)
                with suppress(StopAsyncIteration):
                    chunk = read.result()
                    reads[asyncio.ensure_future(anext(streams[index]))] = index
                    yield index, chunk
    finally:
        for read in reads:
            read.cancel()
