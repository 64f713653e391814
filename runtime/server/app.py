"""The application: routes, guards, and one way to tell of errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from cleave.errors import CleaveError
from cleave.runtime.async_llm import AsyncLLM
from cleave.runtime.server import operation, ui
from cleave.runtime.server.errors import Refused, dialect_of, failure_of
from cleave.runtime.server.guards import ApiKey, BodyLimit
from cleave.runtime.server.openai import chat, completions, models
from cleave.runtime.server.request_scope import RequestScope
from cleave.runtime.server.service import Service
from cleave.runtime.server.settings import ServerSettings
from cleave.runtime.server.tgi import about, generate
from cleave.version import version

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

_ROUTERS = (
    completions.router,
    chat.router,
    models.router,
    generate.router,
    about.router,
    operation.router,
    ui.router,
)


def create_app(
    llm: AsyncLLM, settings: ServerSettings, *, trace_provider: TracerProvider | None = None
) -> FastAPI:
    """An application that serves a loaded model; `app.state.service` is what its handlers share.

    With `trace_provider` each answer becomes a span of OpenTelemetry.
    """
    app = FastAPI(
        title="Cleave",
        version=version(),
        description="One model, in the dialects of OpenAI and of text-generation-inference.",
        redoc_url=None,
    )
    service = Service.over(llm, settings)
    app.state.service = service
    for router in _ROUTERS:
        app.include_router(router)
    for kind in (CleaveError, Refused, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _refuse)
    # The last one added is the first that a request meets.
    app.add_middleware(BodyLimit, most=settings.max_body_bytes)
    if settings.api_key is not None:
        app.add_middleware(ApiKey, key=settings.api_key)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["*"], allow_headers=["*"]
        )
    if trace_provider is not None:
        from cleave.runtime.server.tracing import TraceContext, Tracing

        Tracing(llm, trace_provider)
        app.add_middleware(TraceContext)
    app.add_middleware(RequestScope, service=service)
    return app


async def _refuse(request: Request, error: Exception) -> Response:
    return failure_of(error).response(dialect_of(request.url.path))
