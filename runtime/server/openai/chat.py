"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from cleave.runtime.request import Chunk, Completion
from cleave.runtime.server.job import Job, start
from cleave.runtime.server.openai import answers, logprobs
from cleave.runtime.server.openai.messages import plain_messages, size_of
from cleave.runtime.server.openai.parameters import chat_params, check_model
from cleave.runtime.server.openai.schemas import ChatRequest
from cleave.runtime.server.openai.tool_parser import ToolParser
from cleave.runtime.server.openai.tools import Tools
from cleave.runtime.server.service import Service
from cleave.runtime.server.sse import DONE, Frame, dump, quoted

router = APIRouter(tags=["OpenAI"])


@router.post("/v1/chat/completions")
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation through the checkpoint's chat template."""
    service = Service.of(request)
    check_model(service, body.model)
    tools = Tools.of(body, service.llm.model.chat)
    params = chat_params(body, structured=tools.demanded)
    messages = plain_messages(body.messages)

    def prompts() -> list[tuple[int, ...]]:
        return [service.llm.model.chat_prompt(messages, tools.described, body.chat_template_kwargs)]

    size = size_of(messages, tools.described)
    job = await start(request, prompts, params, count=1, size=size, priority=body.priority or 0)
    form = _Form(service, job, body, tools)
    return await answers.respond(request, job, form, as_events=bool(body.stream))


class _Form:
    """The answer to one request, whole or as events."""

    def __init__(self, service: Service, job: Job, body: ChatRequest, tools: Tools) -> None:
        self._job = job
        self._body = body
        self._tools = tools
        self._fields: dict[str, Any] = {
            "id": f"chatcmpl-{job.request_id}",
            "object": "chat.completion.chunk" if body.stream else "chat.completion",
            "created": int(time.time()),
            "model": service.model_name,
            "system_fingerprint": service.fingerprint,
        }

    def whole(self, done: Sequence[Completion]) -> dict[str, Any]:
        """The response where nothing is streamed."""
        return {
            **self._fields,
            "choices": [self._choice(completion) for completion in done],
            "usage": answers.usage(self._job),
        }

    def _choice(self, completion: Completion) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": completion.text, "refusal": None}
        reason: str = completion.finish_reason
        parser = self._tools.parser()
        if parser is not None:
            found = parser.push(completion.text) + parser.finish()
            message["content"] = found.content or (None if found.calls else "")
            if found.calls:
                message["tool_calls"] = [call.described(self._job.request_id) for call in found.calls]
                reason = _reason(reason, parser)
        places = completion.logprobs
        return {
            "index": completion.index,
            "message": message,
            "logprobs": None if places is None else logprobs.of_chat(places, self._body.top_logprobs or 0),
            "finish_reason": reason,
            "stop_reason": completion.stop_reason,
        }

    async def events(self) -> AsyncIterator[bytes]:
        """The server-sent events of a stream."""
        options = self._body.stream_options
        with_usage = options is not None and bool(options.include_usage)
        frame = Frame(self._fields, ',"usage":null' if with_usage else "")
        parsers: dict[int, ToolParser | None] = {}
        async for index, chunk in self._job.chunks():
            failed = answers.failure(chunk.finish_reason, chunk.error)
            if failed is not None:
                self._job.abort()
                yield failed.event("openai") + DONE
                return
            if index not in parsers:
                parsers[index] = self._tools.parser()
                yield frame.choice(index, _delta('{"role":"assistant","content":""}'))
            parser = parsers[index]
            if parser is not None:
                for event in self._parsed(frame, index, chunk, parser):
                    yield event
            elif chunk.text or chunk.finish_reason or chunk.logprobs:
                yield frame.choice(index, self._piece(chunk))
        yield (frame.usage(answers.usage(self._job)) if with_usage else b"") + DONE

    def _piece(self, chunk: Chunk) -> str:
        found = "null"
        if chunk.logprobs is not None:
            found = dump(logprobs.of_chat(chunk.logprobs, self._body.top_logprobs or 0))
        if chunk.finish_reason is None:
            return f'"delta":{{"content":{quoted(chunk.text)}}},"logprobs":{found},"finish_reason":null'
        return (
            f'"delta":{{"content":{quoted(chunk.text)}}},"logprobs":{found},'
            f'"finish_reason":"{chunk.finish_reason}","stop_reason":{dump(chunk.stop_reason)}'
        )

    def _parsed(self, frame: Frame, index: int, chunk: Chunk, parser: ToolParser) -> list[bytes]:
        """The events of a chunk that may hold calls of tools; each call is one event."""
        found = parser.push(chunk.text)
        if chunk.finish_reason is not None:
            found += parser.finish()
        places = chunk.logprobs
        listed = "null" if places is None else dump(logprobs.of_chat(places, self._body.top_logprobs or 0))
        events = []
        if found.content or places:
            delta = f'"delta":{{"content":{quoted(found.content)}}},"logprobs":{listed},"finish_reason":null'
            events.append(frame.choice(index, delta))
        for call in found.calls:
            described = {"index": call.index, **call.described(self._job.request_id)}
            events.append(frame.choice(index, _delta(dump({"tool_calls": [described]}))))
        if chunk.finish_reason is not None:
            reason = _reason(chunk.finish_reason, parser)
            events.append(
                frame.choice(
                    index,
                    f'"delta":{{}},"logprobs":null,"finish_reason":"{reason}",'
                    f'"stop_reason":{dump(chunk.stop_reason)}',
                )
            )
        return events


def _delta(delta: str) -> str:
    return f'"delta":{delta},"logprobs":null,"finish_reason":null'


def _reason(reason: str, parser: ToolParser) -> str:
    """An answer that ended by itself with a call waits for what the tool says."""
    return "tool_calls" if parser.calls and reason == "stop" else reason
