"""The client of a serving benchmark: streams from any OpenAI-compatible server and stamps every message."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cleave.errors import BenchError, MissingPackage, reason
from cleave.runtime.bench.arrivals import Ask
from cleave.runtime.bench.serving import Timing

try:
    import httpx
except ImportError:
    raise MissingPackage("httpx", "bench", "`cleave bench serve`") from None

_CONNECT_SECONDS = 10.0
Api = Literal["completions", "chat"]


@dataclass(frozen=True, slots=True)
class Server:
    """Where requests go, and how they are written."""

    url: str
    """With or without /v1 at its end."""
    model: str | None = None
    """None: the first one that the server lists."""
    api: Api = "completions"
    api_key: str | None = None
    ignore_eos: bool = True
    """Sent as `ignore_eos`, which vLLM and SGLang know; turn it off for servers that refuse it."""
    timeout: float = 600.0
    """Seconds without any message after which a request has failed."""

    @property
    def base(self) -> str:
        """The URL without /v1."""
        return self.url.rstrip("/").removesuffix("/v1")

    @property
    def path(self) -> str:
        """Where requests are posted."""
        return f"{self.base}/v1/" + ("completions" if self.api == "completions" else "chat/completions")

    def body(self, ask: Ask, model: str) -> dict[str, Any]:
        """The JSON of a request."""
        if self.api == "completions":
            what: dict[str, Any] = {"prompt": ask.prompt}
        else:
            what = {"messages": [{"role": "user", "content": ask.prompt}]}
        if self.ignore_eos:
            what["ignore_eos"] = True
        return what | {
            "model": model,
            "max_tokens": ask.output,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


@dataclass(slots=True)
class Client:
    """Sends a load to a server. `clock` and `sleep` are there for tests to replace."""

    server: Server
    max_concurrency: int | None = None
    clock: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    notes: set[str] = field(default_factory=set)

    async def run(self, load: Sequence[Ask]) -> tuple[str, list[Timing], float]:
        """The model's name, the timing of every request, and the seconds of the whole run.

        Raises BenchError where the server cannot be reached or knows no model.
        """
        headers = {"Authorization": f"Bearer {self.server.api_key}"} if self.server.api_key else {}
        timeout = httpx.Timeout(self.server.timeout, connect=_CONNECT_SECONDS)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        gate = asyncio.Semaphore(self.max_concurrency or len(load))
        async with httpx.AsyncClient(
            headers=headers, timeout=timeout, limits=limits, trust_env=False
        ) as http:
            model = self.server.model or await self._first_model(http)
            began = self.clock()
            tasks = [asyncio.create_task(self._send(http, ask, model, began, gate)) for ask in load]
            timings = list(await asyncio.gather(*tasks))
            return model, timings, self.clock() - began

    async def _first_model(self, http: httpx.AsyncClient) -> str:
        url = f"{self.server.base}/v1/models"
        try:
            answer = await http.get(url)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise BenchError(
                f"no server answers at {self.server.url} ({reason(error)}); start one, or correct --url"
            ) from None
        if answer.status_code in (401, 403):
            raise BenchError(f"{url} answers {answer.status_code}; give the server's key with --api_key")
        try:
            return str(answer.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            raise BenchError(
                f"{url} answers {answer.status_code} and lists no model; give the model's name with --model"
            ) from None

    async def _send(
        self, http: httpx.AsyncClient, ask: Ask, model: str, began: float, gate: asyncio.Semaphore
    ) -> Timing:
        delay = began + ask.at - self.clock()
        if delay > 0:
            await self.sleep(delay)
        async with gate:
            sent = self.clock()
            try:
                return await self._stream(http, ask, model, sent)
            except (httpx.HTTPError, httpx.InvalidURL, _Refused) as error:
                return Timing(sent, error=reason(error))

    async def _stream(self, http: httpx.AsyncClient, ask: Ask, model: str, sent: float) -> Timing:
        messages: list[float] = []
        usage: dict[str, Any] = {}
        body = self.server.body(ask, model)
        async with http.stream("POST", self.server.path, json=body) as answer:
            if answer.status_code != 200:
                text = (await answer.aread()).decode("utf-8", "replace")
                raise _Refused(f"{answer.status_code}: {_shortened(text)}")
            async with contextlib.aclosing(_events(answer)) as events:
                async for event in events:
                    now = self.clock()
                    if "error" in event:
                        raise _Refused(_shortened(json.dumps(event["error"])))
                    usage = event.get("usage") or usage
                    if brings_a_token(event):
                        messages.append(now)
        if not messages:
            raise _Refused("the stream ended without a token")
        if "completion_tokens" not in usage:
            self.notes.add("the server sent no usage: a message is counted as one token")
        return Timing(
            sent,
            tuple(messages),
            int(usage.get("prompt_tokens", len(_as_tokens(ask.prompt)))),
            int(usage.get("completion_tokens", len(messages))),
        )


class _Refused(Exception):
    """The server answered, but not with a stream of tokens."""


def brings_a_token(event: dict[str, Any]) -> bool:
    """Whether a message brings a token: text, or an empty text that neither opens nor closes the answer.

    A token may have no text of its own, such as half a character.
    """
    choice = next(iter(event.get("choices") or ()), None)
    if choice is None:
        return False
    delta = choice.get("delta")
    text = choice.get("text") if delta is None else delta.get("content")
    if text:
        return True
    opens = delta is not None and "role" in delta
    return text is not None and not opens and choice.get("finish_reason") is None


async def _events(answer: httpx.Response) -> AsyncGenerator[dict[str, Any], None]:
    """The JSON of every server-sent event up to [DONE]."""
    async for line in answer.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        try:
            event = json.loads(data)
        except ValueError:
            raise _Refused(f"a message is not JSON: {_shortened(data)}") from None
        if isinstance(event, dict):
            yield event


def _as_tokens(prompt: str | list[int]) -> Sequence[Any]:
    return prompt.split() if isinstance(prompt, str) else prompt


def _shortened(text: str) -> str:
    first = (text.strip().splitlines() or ["(empty)"])[0]
    return first if len(first) <= 200 else first[:200] + "..."
