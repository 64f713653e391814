"""Spans of requests, for OpenTelemetry."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from cleave.errors import MissingPackage
from cleave.runtime.async_llm import AsyncLLM
from cleave.runtime.observer import AnswerReport, StepReport

try:
    from opentelemetry import context, trace
    from opentelemetry.trace import SpanKind, Status, StatusCode, TracerProvider
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:
    raise MissingPackage("opentelemetry", "otel", "tracing") from None

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider


class Tracing:
    """An observer of an engine that makes one span of each answer, once it has ended.

    The parent is the span that was current where the request was made: that of the caller of
    `AsyncLLM`, of another instrumentation, or what `TraceContext` took from the request's headers.
    """

    def __init__(self, llm: AsyncLLM, provider: TracerProvider | None = None) -> None:
        """Trace from now on, until `close`; `provider` None: OpenTelemetry's global one."""
        self._llm = llm
        self._model = llm.model.folder.name
        self._tracer = trace.get_tracer("cleave", tracer_provider=provider)
        llm.observe(self)

    def close(self) -> None:
        """Trace no more."""
        self._llm.ignore(self)

    def stepped(self, step: StepReport) -> None:
        """See `EngineObserver`."""

    def answered(self, answer: AnswerReport) -> None:
        """See `EngineObserver`."""
        # Reports are on a clock that only goes forward, spans on the wall's.
        offset = time.time() - time.monotonic()
        span = self._tracer.start_span(
            "cleave.request",
            context=answer.context.run(context.get_current),
            kind=SpanKind.SERVER,
            start_time=_nanoseconds(answer.asked, offset),
            attributes=_attributes(answer, self._model),
        )
        events = {
            "queued": answer.asked,
            "prefill": answer.started,
            "decode": answer.first_token,
            "last token": answer.last_token,
        }
        for name, moment in events.items():
            if moment is not None:
                span.add_event(name, timestamp=_nanoseconds(moment, offset))
        if answer.finish_reason == "error":
            span.set_status(Status(StatusCode.ERROR, answer.error))
        span.end(_nanoseconds(answer.ended, offset))


class TraceContext:
    """Middleware: what a request's `traceparent` names becomes the parent of its spans.

    Nothing happens where another instrumentation has begun a span already.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or trace.get_current_span().get_span_context().is_valid:
            await self._app(scope, receive, send)
            return
        token = context.attach(self._propagator.extract(dict(Headers(scope=scope))))
        try:
            await self._app(scope, receive, send)
        finally:
            context.detach(token)


def otlp_provider(endpoint: str, model: str) -> SdkTracerProvider:
    """A provider that sends spans to `endpoint`, such as "http://localhost:4318/v1/traces".

    Raises MissingPackage where the exporter is not installed. Shut it down to send what is left.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise MissingPackage("opentelemetry-exporter-otlp-proto-http", "otel", "sending spans") from None
    resource = Resource.create({"service.name": "cleave", "service.instance.id": model})
    provider = SdkTracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    return provider


def _attributes(answer: AnswerReport, model: str) -> Mapping[str, Any]:
    """Names of OpenTelemetry's conventions for generative AI, and our own beside them."""
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.model": model,
        "gen_ai.usage.input_tokens": answer.prompt_tokens,
        "gen_ai.usage.output_tokens": answer.generated_tokens,
        "gen_ai.response.finish_reasons": [answer.finish_reason],
        "gen_ai.response.id": answer.request_id,
        "cleave.index": answer.index,
        "cleave.cached_tokens": answer.cached_tokens,
        "cleave.preemptions": answer.preemptions,
        "cleave.queue_seconds": answer.queue_seconds,
    }
    if answer.first_token is not None:
        attributes["gen_ai.server.time_to_first_token"] = answer.first_token - answer.asked
    return attributes


def _nanoseconds(moment: float, offset: float) -> int:
    return int((moment + offset) * 1e9)
