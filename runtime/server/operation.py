"""What operators ask for: probes, numbers, and calling a request off."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from cleave.runtime.server.errors import Failure
from cleave.runtime.server.service import Service

router = APIRouter(tags=["operation"])
_PREFIXES = ("chatcmpl-", "cmpl-")


@router.get("/live")
async def live() -> dict[str, bool]:
    """200 while the process can answer at all."""
    return {"live": True}


@router.get("/ready")
async def ready(request: Request) -> Response:
    """200 while requests are taken; 503 while the server drains, or when the engine cannot go on."""
    service = Service.of(request)
    content: dict[str, Any] = {"ready": service.is_ready}
    if service.draining:
        content["reason"] = "the server is shutting down"
    elif service.health.failure is not None:
        content["reason"] = f"the engine cannot go on: {service.health.failure}"
    return JSONResponse(content, 200 if service.is_ready else 503)


@router.get("/health")
@router.get("/ping")
@router.get("/", include_in_schema=False)
async def health(request: Request) -> Response:
    """`/ready` as text-generation-inference has it: empty, or 503."""
    if Service.of(request).is_ready:
        return Response()
    return Failure("unhealthy", "unhealthy").response("tgi")


@router.get("/stats")
async def stats(request: Request) -> dict[str, Any]:
    """What runs and waits, the pages of the KV cache, and counts since the model was loaded."""
    service = Service.of(request)
    numbers = service.llm.stats()
    admission = service.admission
    return {
        "model": service.model_name,
        "engine": service.llm.model.engine.kind,
        "ready": service.is_ready,
        "uptime_seconds": round(time.time() - service.started, 3),
        "requests": {
            "open": admission.requests,
            "answers": admission.answers,
            "limit": admission.limit,
            "refused": admission.refused,
            "running": numbers.running,
            "waiting": numbers.waiting,
            "ended": dict(numbers.ended),
            "preemptions": numbers.preemptions,
        },
        "pages": {
            "all": numbers.pages,
            "used": numbers.pages_used,
            "cached": numbers.pages_cached,
            "free": numbers.pages_free,
            "tokens_each": numbers.page_size,
        },
        "tokens": {
            "prompt": numbers.prompt_tokens,
            "prompt_cached": numbers.cached_prompt_tokens,
            "generated": numbers.generated_tokens,
            "per_second": round(numbers.tokens_per_second, 3),
        },
        "steps": numbers.steps,
    }


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """The metrics for Prometheus; docs/observing.md lists them."""
    content, media_type = Service.of(request).metrics.exposition(request.headers.get("accept", ""))
    return Response(content, media_type=media_type)


@router.post("/v1/abort/{request_id}")
async def abort(request_id: str, request: Request) -> dict[str, Any]:
    """Call a request off, by the id in its X-Request-Id header or in its answer."""
    service = Service.of(request)
    for prefix in _PREFIXES:
        request_id = request_id.removeprefix(prefix)
    service.admission.abort(request_id)
    return {"id": request_id, "aborted": True}
