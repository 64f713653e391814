"""What both kinds of answers have in common: how they are sent, usage, and how they end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from fastapi import Request
from starlette.responses import Response

from cleave.runtime.request import Completion, FinishReason
from cleave.runtime.server.errors import Failure, Refused
from cleave.runtime.server.job import Job
from cleave.runtime.server.respond import EventStream, whole
from cleave.runtime.server.service import Service
from cleave.runtime.server.sse import dump


class Form(Protocol):
    """The form of one kind of answer."""

    def events(self) -> AsyncIterator[bytes]:
        """The answer as events, as it comes."""

    def whole(self, done: Sequence[Completion]) -> dict[str, Any]:
        """The whole answer as one JSON object."""


async def respond(request: Request, job: Job, form: Form, *, as_events: bool) -> Response:
    """The answer to a request, as soon as it begins or when it has ended.

    Raises Refused where a whole answer did not end well.
    """
    if as_events:
        return EventStream(form.events(), job, Service.of(request).settings.keep_alive)
    done = await whole(request, job)
    check(done)
    return Response(dump(form.whole(done)), media_type="application/json")


def usage(job: Job) -> dict[str, Any]:
    """The tokens of a job that has ended."""
    cached = sum(stream.completions()[0].cached_tokens for stream in job.streams)
    return {
        "prompt_tokens": job.prompt_tokens,
        "completion_tokens": job.generated_tokens,
        "total_tokens": job.prompt_tokens + job.generated_tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def failure(finish_reason: FinishReason | None, error: str | None) -> Failure | None:
    """Why an answer did not end well; None where it did, or was called off by the client."""
    if error is None:
        return None
    return Failure("generation" if finish_reason == "error" else "incomplete", error)


def check(completions: Sequence[Completion]) -> None:
    """Raises Refused where one of them did not end well."""
    for completion in completions:
        found = failure(completion.finish_reason, completion.error)
        if found is not None:
            raise Refused(found.kind, found.message)
