"""POST /v1/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from cleave.runtime.request import Chunk, Completion, Prompt
from cleave.runtime.server.job import Job, start
from cleave.runtime.server.openai import answers, logprobs
from cleave.runtime.server.openai.parameters import check_model, completion_params
from cleave.runtime.server.openai.schemas import CompletionRequest
from cleave.runtime.server.service import Service
from cleave.runtime.server.sse import DONE, Frame, dump, quoted
from cleave.runtime.tokenizer import Tokenizer

router = APIRouter(tags=["OpenAI"])


@router.post("/v1/completions")
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continue one prompt or several, given as text or as token ids."""
    service = Service.of(request)
    check_model(service, body.model)
    params = completion_params(body)
    prompts = _listed(body.prompt)
    size = sum(len(prompt) for prompt in prompts)
    job = await start(
        request, lambda: prompts, params, count=len(prompts), size=size, priority=body.priority or 0
    )
    form = _Form(service, job, body, prompts)
    return await answers.respond(request, job, form, as_events=bool(body.stream))


class _Form:
    """The answer to one request, whole or as events."""

    def __init__(
        self, service: Service, job: Job, body: CompletionRequest, prompts: Sequence[Prompt]
    ) -> None:
        self._job = job
        self._body = body
        self._tokenizer: Tokenizer = service.llm.model.tokenizer
        self._prompts = prompts
        self._fields = {
            "id": f"cmpl-{job.request_id}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.model_name,
            "system_fingerprint": service.fingerprint,
        }

    def whole(self, done: Sequence[Completion]) -> dict[str, Any]:
        """The response where nothing is streamed."""
        choices = []
        for index, completion in enumerate(done):
            echo = self._echo(index)
            places: logprobs.Places | None = completion.logprobs
            if echo and places is not None:
                places = (*(completion.prompt_logprobs or ()), *places)
            tokens = (*completion.prompt_token_ids, *completion.token_ids) if echo else completion.token_ids
            choices.append(
                {
                    "index": index,
                    "text": echo + completion.text,
                    "logprobs": None if places is None else self._logprobs(places, tokens, 0),
                    "finish_reason": completion.finish_reason,
                    "stop_reason": completion.stop_reason,
                }
            )
        return {**self._fields, "choices": choices, "usage": answers.usage(self._job)}

    async def events(self) -> AsyncIterator[bytes]:
        """The server-sent events of a stream."""
        options = self._body.stream_options
        with_usage = options is not None and bool(options.include_usage)
        frame = Frame(self._fields, ',"usage":null' if with_usage else "")
        offsets: dict[int, int] = {}
        async for index, chunk in self._job.chunks():
            failed = answers.failure(chunk.finish_reason, chunk.error)
            if failed is not None:
                self._job.abort()
                yield failed.event("openai") + DONE
                return
            if index not in offsets:
                echo = self._echo(index)
                offsets[index] = len(echo)
                if echo:
                    yield frame.choice(index, f'"text":{quoted(echo)},"logprobs":null,"finish_reason":null')
            if chunk.text or chunk.finish_reason or chunk.logprobs:
                yield frame.choice(index, self._piece(chunk, offsets[index]))
                offsets[index] += len(chunk.text)
        yield (frame.usage(answers.usage(self._job)) if with_usage else b"") + DONE

    def _piece(self, chunk: Chunk, offset: int) -> str:
        found = "null"
        if chunk.logprobs is not None:
            found = dump(self._logprobs(chunk.logprobs, chunk.token_ids, offset))
        if chunk.finish_reason is None:
            return f'"text":{quoted(chunk.text)},"logprobs":{found},"finish_reason":null'
        return (
            f'"text":{quoted(chunk.text)},"logprobs":{found},"finish_reason":"{chunk.finish_reason}",'
            f'"stop_reason":{dump(chunk.stop_reason)}'
        )

    def _logprobs(self, places: logprobs.Places, token_ids: Sequence[int], offset: int) -> dict[str, Any]:
        texts = [self._tokenizer.text_of(token) for token in token_ids]
        return logprobs.of_completion(places, self._body.logprobs or 0, texts, offset)

    def _echo(self, index: int) -> str:
        """What comes before an answer."""
        if not self._body.echo:
            return ""
        prompt = self._prompts[index // self._job.n]
        return prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt)


def _listed(prompt: str | list[str] | list[int] | list[list[int]]) -> Sequence[Prompt]:
    """The prompts, each text or a list of token ids."""
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return [prompt]
    return prompt  # type: ignore[return-value]
