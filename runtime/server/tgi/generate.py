"""POST /, /generate and /generate_stream."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from cleave.runtime.server.errors import Refused
from cleave.runtime.server.job import Job, start
from cleave.runtime.server.respond import EventStream, whole
from cleave.runtime.server.service import Service
from cleave.runtime.server.sse import dump
from cleave.runtime.server.tgi.details import best_first, details, finish_reason
from cleave.runtime.server.tgi.parameters import Wanted, wanted
from cleave.runtime.server.tgi.prompt import prompt_tokens
from cleave.runtime.server.tgi.schemas import GenerateRequest
from cleave.runtime.server.tgi.stream import events
from cleave.runtime.server.tgi.timing import Timing

router = APIRouter(tags=["text-generation-inference"])


@router.post("/")
async def compatible(body: GenerateRequest, request: Request) -> Response:
    """`/generate` in a list, or `/generate_stream`; the prompt is in the text unless that is declined."""
    if body.stream:
        return await _streamed(body, request, full_text=True)
    return await _whole(body, request, full_text=True, listed=True)


@router.post("/generate")
async def generate(body: GenerateRequest, request: Request) -> Response:
    """Continue a prompt."""
    if body.stream:
        raise Refused("validation", "`stream` is for POST /; use /generate_stream")
    return await _whole(body, request)


@router.post("/generate_stream")
async def generate_stream(body: GenerateRequest, request: Request) -> Response:
    """Continue a prompt, one event for each token."""
    if body.stream is False:
        raise Refused("validation", "`stream` is for POST /; use /generate")
    return await _streamed(body, request)


async def _whole(
    body: GenerateRequest, request: Request, *, full_text: bool = False, listed: bool = False
) -> Response:
    timing = Timing()
    service = Service.of(request)
    asked = wanted(body, streams=False, full_text=full_text)
    with service.queue_times.of(request.state.request_id):
        job = await _start(request, service, body, asked)
        timing.validated()
        done = await whole(request, job)
        queued = service.queue_times.seconds(job.request_id)
    for completion in done:
        finish_reason(completion.finish_reason, completion.stop_reason, completion.error)
    if len(done) > 1:
        done = best_first(done)
    answer: dict[str, Any] = {"generated_text": (body.inputs if asked.full_text else "") + done[0].text}
    if asked.details:
        answer["details"] = details(service.llm.model.tokenizer, asked, done, body.inputs)
    headers = timing.headers(body.inputs, job.prompt_tokens, len(done[0].token_ids), queued)
    return Response(dump([answer] if listed else answer), headers=headers, media_type="application/json")


async def _streamed(body: GenerateRequest, request: Request, *, full_text: bool = False) -> Response:
    service = Service.of(request)
    asked = wanted(body, streams=True, full_text=full_text)
    job = await _start(request, service, body, asked)
    return EventStream(
        events(service.llm.model.tokenizer, job, asked, body.inputs),
        job,
        service.settings.keep_alive,
        headers=Timing.of_stream(body.inputs),
    )


async def _start(request: Request, service: Service, body: GenerateRequest, asked: Wanted) -> Job:
    model = service.llm.model

    def prompts() -> list[tuple[int, ...]]:
        return [prompt_tokens(model, body.inputs, asked)]

    return await start(request, prompts, asked.sampling, count=1, size=len(body.inputs))
