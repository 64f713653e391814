"""Answering while the client is there: whole answers, and server-sent events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cleave.runtime.request import Completion
from cleave.runtime.server.errors import Dialect, dialect_of, failure_of
from cleave.runtime.server.job import Job

_log = logging.getLogger("cleave.server")
_COMMENT = b":\n\n"


async def whole(request: Request, job: Job) -> list[Completion]:
    """The answers, once they are whole; a client that leaves calls them off."""
    async with _left(request.receive, job):
        return await job.completions()


class EventStream(Response):
    """Server-sent events, each written as it comes and no faster than the client reads."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[bytes], job: Job, keep_alive: float, headers: dict[str, str] | None = None
    ) -> None:
        """`events` are whole events, each with its empty line."""
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no", **(headers or {})})
        self._events = events
        self._job = job
        self._keep_alive = keep_alive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events. A bug while making them is an event, too: the status is gone already."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with _left(receive, self._job), _kept_alive(send, self._keep_alive) as silence:
            try:
                async for event in self._events:
                    if not event:
                        continue
                    silence.broken = True
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            except Exception as error:
                _log.error("request %s fails", self._job.request_id, exc_info=error)
                self._job.abort()
                dialect: Dialect = dialect_of(scope["path"])
                event = failure_of(error).event(dialect)
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@asynccontextmanager
async def _left(receive: Receive, job: Job) -> AsyncIterator[None]:
    """Call the job off when the client leaves: before the next step, also while a write waits for it."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        job.abort()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()


class _Silence:
    broken = False


@asynccontextmanager
async def _kept_alive(send: Send, seconds: float) -> AsyncIterator[_Silence]:
    """Send a comment where nothing else was sent for so long."""
    silence = _Silence()

    async def comment() -> None:
        while True:
            await asyncio.sleep(seconds)
            if not silence.broken:
                await send({"type": "http.response.body", "body": _COMMENT, "more_body": True})
            silence.broken = False

    task = asyncio.create_task(comment())
    try:
        yield silence
    finally:
        task.cancel()
