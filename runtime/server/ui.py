"""The page at /ui, and what it asks for besides the API."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.responses import HTMLResponse, StreamingResponse

from cleave.runtime.async_llm import AsyncLLM
from cleave.runtime.server.live import Live

_PAGE = Path(__file__).with_name("ui.html")


def ui_router(llm: AsyncLLM, model_name: str) -> APIRouter:
    """/ui, /ui/about and /ui/live of one model."""
    router = APIRouter(tags=["Page"])
    page = _PAGE.read_text("utf-8")
    headers = {
        "Content-Security-Policy": _policy(page),
        "Cache-Control": "no-cache",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    live = Live(llm)

    @router.get("/ui", response_class=HTMLResponse)
    async def ui() -> HTMLResponse:
        """A chat, and beside it a picture of the machine."""
        return HTMLResponse(page, headers=headers)

    @router.get("/ui/about")
    async def about() -> dict[str, Any]:
        """What the page has to know of the model."""
        return {
            "model": model_name,
            "chat": llm.model.chat.has_template,
            "max_model_len": llm.model.max_length,
        }

    @router.get("/ui/live", response_class=StreamingResponse)
    async def watch() -> StreamingResponse:
        """The picture, as server-sent events; see docs/observing.md."""
        return StreamingResponse(
            live.watch(),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    return router


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
