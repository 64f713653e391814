"""POST /tokenize and GET /info."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from cleave.runtime.server.errors import Refused
from cleave.runtime.server.service import Service
from cleave.runtime.server.tgi.parameters import MAX_BEST_OF, MAX_STOP_SEQUENCES
from cleave.runtime.server.tgi.schemas import TokenizeRequest
from cleave.version import version

router = APIRouter(tags=["text-generation-inference"])
_LONG = 4096


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, request: Request) -> list[dict[str, Any]]:
    """The tokens of a text, with the characters that each stands for."""
    if not body.inputs:
        raise Refused("validation", "`inputs` cannot be empty")
    tokenizer = Service.of(request).llm.model.tokenizer
    special = body.add_special_tokens is not False

    def listed() -> list[dict[str, Any]]:
        return [
            {"id": token, "text": body.inputs[start:stop], "start": start, "stop": stop}
            for token, start, stop in tokenizer.spans(body.inputs, add_special_tokens=special)
        ]

    return await asyncio.to_thread(listed) if len(body.inputs) > _LONG else listed()


@router.get("/info")
async def info(request: Request) -> dict[str, Any]:
    """The model and the limits, under the names of both the first and the last versions."""
    service = Service.of(request)
    model, settings = service.llm.model, service.settings
    return {
        "model_id": service.model_name,
        "model_sha": None,
        "model_dtype": model.dtype,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": service.admission.limit,
        "max_best_of": MAX_BEST_OF,
        "max_stop_sequences": MAX_STOP_SEQUENCES,
        "max_input_length": model.max_length - 1,
        "max_input_tokens": model.max_length - 1,
        "max_total_tokens": model.max_length,
        "max_batch_total_tokens": model.attention.num_pages * model.options.page_size,
        "max_batch_size": model.options.max_sequences,
        "max_client_batch_size": service.admission.limit,
        "validation_workers": 1,
        "router": "cleave",
        "version": version(),
        "sha": None,
        "docker_label": None,
        "payload_limit": settings.max_body_bytes,
    }
