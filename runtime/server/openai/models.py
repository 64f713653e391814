"""GET /v1/models."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from cleave.runtime.server.openai.parameters import check_model
from cleave.runtime.server.service import Service

router = APIRouter(tags=["OpenAI"])


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The one model that is served."""
    return {"object": "list", "data": [_described(Service.of(request))]}


@router.get("/v1/models/{name:path}")
async def model(name: str, request: Request) -> dict[str, Any]:
    """The same, by its name."""
    service = Service.of(request)
    check_model(service, name)
    return _described(service)


def _described(service: Service) -> dict[str, Any]:
    return {
        "id": service.model_name,
        "object": "model",
        "created": int(service.started),
        "owned_by": "cleave",
        "max_model_len": service.llm.model.max_length,
    }
