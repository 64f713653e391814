"""Spans, as OpenTelemetry's own exporter for tests sees them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from served import Served, until

from cleave import AsyncLLM, SamplingParams
from cleave.errors import MissingPackage
from cleave.runtime.server.tracing import TraceContext, Tracing, otlp_provider

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


class Exported:
    """A provider, and the spans that it was given."""

    def __init__(self) -> None:
        self.memory = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.memory))

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.memory.get_finished_spans())


@pytest.fixture
def exported() -> Iterator[Exported]:
    found = Exported()
    yield found
    found.provider.shutdown()


def test_a_span_for_each_answer_with_its_times(demo_artifact: Path, exported: Exported) -> None:
    async def run() -> None:
        async with AsyncLLM(demo_artifact) as llm:
            tracing = Tracing(llm, exported.provider)
            tracer = exported.provider.get_tracer("caller")
            with tracer.start_as_current_span("caller"):
                params = SamplingParams(max_tokens=5, ignore_eos=True, n=2)
                await llm.generate([0, *range(10, 50)], params, request_id="mine")
            await llm.generate([0, 9], SamplingParams(max_tokens=1))
            tracing.close()
            await llm.generate([0, 9], SamplingParams(max_tokens=1))

    asyncio.run(run())
    caller = next(span for span in exported.spans if span.name == "caller")
    spans = [span for span in exported.spans if span.name == "cleave.request"]
    assert len(spans) == 3
    for index, span in enumerate(sorted(spans[:2], key=lambda span: span.attributes["cleave.index"])):
        assert span.parent is not None
        assert (span.context.trace_id, span.parent.span_id) == (
            caller.context.trace_id,
            caller.context.span_id,
        )
        attributes = dict(span.attributes or {})
        assert attributes["gen_ai.response.id"] == "mine"
        assert attributes["gen_ai.usage.input_tokens"] == 41
        assert attributes["gen_ai.usage.output_tokens"] == 5
        assert attributes["gen_ai.response.finish_reasons"] == ("length",)
        assert attributes["cleave.index"] == index
        assert attributes["cleave.cached_tokens"] == 32 * index
        assert [event.name for event in span.events] == ["queued", "prefill", "decode", "last token"]
        times = [span.start_time, *(event.timestamp for event in span.events), span.end_time]
        assert times == sorted(times)
        assert caller.start_time <= span.start_time <= span.end_time <= caller.end_time + 1_000_000
        assert span.status.status_code is StatusCode.UNSET
    assert spans[2].parent is None


def test_an_answer_that_fails_is_an_error(demo_artifact: Path, exported: Exported) -> None:
    async def run() -> None:
        async with AsyncLLM(demo_artifact) as llm:
            Tracing(llm, exported.provider)

            def broken(*_: object) -> None:
                raise RuntimeError("the engine is on fire")

            llm.model.engine.run = broken  # type: ignore[method-assign, assignment]
            await llm.generate([0, 9])

    asyncio.run(run())
    (span,) = exported.spans
    assert span.status.status_code is StatusCode.ERROR
    assert "the engine is on fire" in str(span.status.description)
    assert [event.name for event in span.events] == ["queued"] or span.events[1].name == "prefill"


def test_traceparent_of_a_request_is_the_parent(demo_artifact: Path, exported: Exported) -> None:
    with Served(demo_artifact, trace_provider=exported.provider) as server:
        body = {"model": server.service.model_name, "prompt": "2 + 3 =", "max_tokens": 2}
        for stream in (False, True):
            httpx.post(
                f"{server.url}/v1/completions",
                json={**body, "stream": stream},
                headers={"traceparent": TRACEPARENT, "x-request-id": f"traced-{stream}"},
                timeout=60,
            ).raise_for_status()
        httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).raise_for_status()
        until(lambda: len(exported.spans) == 3)
    first, second, last = exported.spans
    for span, name in ((first, "traced-False"), (second, "traced-True")):
        assert span.parent is not None
        assert f"{span.parent.trace_id:032x}" == TRACE
        assert f"{span.parent.span_id:016x}" == PARENT
        assert span.parent.is_remote
        assert span.kind is SpanKind.SERVER
        assert dict(span.attributes or {})["gen_ai.response.id"] == name
    assert last.parent is None


def test_a_span_of_another_instrumentation_comes_first(exported: Exported) -> None:
    from opentelemetry import trace

    seen = []

    async def app(scope: object, receive: object, send: object) -> None:
        seen.append(trace.get_current_span().get_span_context())

    async def run() -> None:
        scope = {"type": "http", "headers": [(b"traceparent", TRACEPARENT.encode())]}
        middleware = TraceContext(app)
        await middleware(scope, None, None)  # type: ignore[arg-type]
        with exported.provider.get_tracer("other").start_as_current_span("outer"):
            await middleware(scope, None, None)  # type: ignore[arg-type]
        await middleware({"type": "http", "headers": [(b"traceparent", b"nonsense")]}, None, None)  # type: ignore[arg-type]
        await middleware({"type": "lifespan"}, None, None)  # type: ignore[arg-type]

    asyncio.run(run())
    assert f"{seen[0].trace_id:032x}" == TRACE
    assert seen[1].trace_id == exported.spans[0].context.trace_id
    assert not seen[2].is_valid
    assert not seen[3].is_valid


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(MissingPackage, match="sending spans needs opentelemetry-exporter"):
        otlp_provider("http://127.0.0.1:4318/v1/traces", "cleave")
