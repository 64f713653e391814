"""Guards before the handlers: the key, and the size of a body."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cleave.runtime.server.errors import Failure, dialect_of

_OPEN = frozenset({"/", "/live", "/ready", "/health", "/ping", "/ui"})
"""Paths whose GET tells nothing that is worth a key: probes, and a page that has to ask for it."""


class ApiKey:
    """Middleware: 401 without `Authorization: Bearer KEY`, but for probes."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or self._may_pass(scope):
            await self._app(scope, receive, send)
            return
        failure = Failure(
            "unauthorized",
            "the API key is missing or wrong; send it as Authorization: Bearer KEY",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await failure.response(dialect_of(scope["path"]))(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        if scope["path"] in _OPEN and scope["method"] in ("GET", "HEAD"):
            return True
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        # In constant time, so that nobody can feel their way to the key.
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), self._key)


class BodyLimit:
    """Middleware: 413 for a longer body, whether it says its length or not."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        said = f"the body is too long; at most {self._most} bytes are allowed"
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdecimal() and int(length) > self._most:
            await Failure("too_large", said).response(dialect_of(scope["path"]))(scope, receive, send)
            return
        size = 0

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._most:
                # The one kind of error that FastAPI lets through while it reads a body.
                raise HTTPException(413, said)
            return message

        await self._app(scope, limited, send)
