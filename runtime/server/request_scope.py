"""What surrounds every request: its id, its slot, its line in the log, and an answer even to a bug."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cleave.runtime.server.errors import dialect_of, failure_of
from cleave.runtime.server.job import Job
from cleave.runtime.server.service import Service

HEADER = "x-request-id"
_log = logging.getLogger("cleave.server")
_GIVEN = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_PROBES = frozenset({"/live", "/ready", "/health", "/metrics", "/stats"})
"""Asked for every few seconds, and so no news."""


class RequestScope:
    """Middleware. A client may name its request in X-Request-Id; the answer has it in any case."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if _GIVEN.fullmatch(given) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        began = time.perf_counter()
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except Exception as error:
            _log.error("request %s fails", request_id, exc_info=error)
            if status:
                raise
            await failure_of(error).response(dialect_of(scope["path"]))(scope, receive, answer)
        finally:
            if state.get("slot"):
                self._service.admission.leave(request_id)
            self._service.metrics.responded(status)
            self._report(scope, status, time.perf_counter() - began)

    def _report(self, scope: Scope, status: int, seconds: float) -> None:
        level = logging.DEBUG if scope["path"] in _PROBES else logging.INFO
        if not _log.isEnabledFor(level):
            return
        fields: dict[str, Any] = {
            "request_id": scope["state"]["request_id"],
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "ms": round(seconds * 1e3, 1),
        }
        job: Job | None = scope["state"].get("job")
        if job is not None:
            fields |= {"prompt_tokens": job.prompt_tokens, "generated_tokens": job.generated_tokens}
            if self._service.settings.log_prompts:
                fields |= {"prompts": job.prompts(), "answers": job.texts()}
        _log.log(level, "request", extra={"fields": fields})
