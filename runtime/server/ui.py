"""The page at /ui, and what it asks for besides the API."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, StreamingResponse

from cleave.runtime.server.service import Service

router = APIRouter(include_in_schema=False)


@router.get("/ui", response_class=HTMLResponse)
async def page() -> HTMLResponse:
    """A chat, and beside it a picture of the machine."""
    return HTMLResponse(_PAGE, headers=_HEADERS)


@router.get("/ui/about")
async def about(request: Request) -> dict[str, Any]:
    """What the page has to know of the model."""
    service = Service.of(request)
    model = service.llm.model
    return {
        "model": service.model_name,
        "chat": model.chat.has_template,
        "max_model_len": model.max_length,
    }


@router.get("/ui/live", response_class=StreamingResponse)
async def watch(request: Request) -> StreamingResponse:
    """The picture, as server-sent events; docs/observing.md says what is in them."""
    return StreamingResponse(
        Service.of(request).live.watch(),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


def _policy(page: str) -> str:
    """Lets the browser run what is in the page, by its hash, fetch from this server, and nothing else."""
    scripts = " ".join(_hash(text) for text in re.findall(r"<script>(.*?)</script>", page, re.DOTALL))
    styles = " ".join(_hash(text) for text in re.findall(r"<style>(.*?)</style>", page, re.DOTALL))
    return (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_PAGE = Path(__file__).with_name("ui.html").read_text("utf-8")
_HEADERS = {
    "Content-Security-Policy": _policy(_PAGE),
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
