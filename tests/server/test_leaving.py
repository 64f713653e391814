"""Clients that leave, and clients that do not read."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import Served, until

PROMPT = "San Francisco is a"
ENDLESS = {"prompt": PROMPT, "max_tokens": 3000, "ignore_eos": True}
UNREAD = 200


class Gate:
    """Lets the engine thread run so many steps and no more."""

    def __init__(self, served: Served) -> None:
        self._permits = threading.Semaphore(0)
        self._thread = served.llm._thread
        self._run: Callable[..., Any] = self._thread._loop._stepper.run

    def __enter__(self) -> Gate:
        self._thread._loop._stepper.run = self._gated  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        self._thread._loop._stepper.run = self._run  # type: ignore[method-assign]
        self._permits.release(10_000)

    def allow(self, steps: int) -> None:
        """Let it run."""
        self._permits.release(steps)

    @property
    def has_work(self) -> bool:
        """Whether it was told something that it has not seen to."""
        return bool(self._thread._commands)

    def _gated(self, *arguments: Any) -> None:
        self._permits.acquire()
        self._run(*arguments)


@pytest.fixture
def served(demo_artifact: Path) -> Iterator[Served]:
    with Served(demo_artifact, max_unread_tokens=UNREAD) as server:
        yield server
        server.idle()


def connect(served: Served, path: str, body: dict[str, Any], *, buffer: int | None = None) -> socket.socket:
    """A connection that has sent a request."""
    raw = socket.socket()
    if buffer is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    raw.settimeout(60)
    raw.connect(("127.0.0.1", int(served.url.rpartition(":")[2])))
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    )
    raw.sendall(f"{head}\r\n\r\n".encode() + content)
    return raw


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {**ENDLESS, "stream": True}),
        ("/v1/completions", ENDLESS),
        ("/v1/completions", {**ENDLESS, "prompt": [PROMPT, "The capital"], "n": 2, "stream": True}),
        ("/v1/completions", {**ENDLESS, "prompt": [PROMPT, "The capital"], "n": 2}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "ignore_eos": True}),
        ("/generate_stream", {"inputs": PROMPT, "parameters": {"max_new_tokens": 3000}}),
        ("/generate", {"inputs": PROMPT, "parameters": {"max_new_tokens": 3000}}),
    ],
)
def test_the_pages_of_a_client_that_left_are_free_before_the_next_step(
    served: Served, path: str, body: dict[str, Any]
) -> None:
    with Gate(served) as gate:
        raw = connect(served, path, body)
        gate.allow(3)
        until(lambda: served.stats()["steps"] == 3)
        assert served.stats()["pages"]["used"] > 0
        raw.close()
        until(lambda: gate.has_work)
        # The one step that was under way.
        gate.allow(1)
        until(lambda: served.stats()["requests"]["open"] == 0)
        stats = served.stats()
        assert stats["pages"]["used"] == stats["requests"]["running"] == stats["requests"]["waiting"] == 0
        assert stats["steps"] == 4


def test_who_does_not_read_is_called_off_and_slows_nobody(served: Served) -> None:
    # Else the kernel alone could take in the whole answer.
    served.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    body = {**ENDLESS, "logprobs": 5, "stream": True}
    with connect(served, "/v1/completions", body, buffer=4096) as lazy:
        others = []
        while served.stats()["requests"]["ended"].get("abort", 0) == 0:
            answer = httpx.post(
                f"{served.url}/v1/completions", json={"prompt": PROMPT, "max_tokens": 40}, timeout=60
            )
            others.append(answer.json()["choices"][0]["text"])
            (connection,) = [
                one
                for one in list(served.server.server_state.connections)
                if one.transport.get_extra_info("peername") == lazy.getsockname()  # type: ignore[union-attr]
            ]
            # What the transport may hold, and one event more.
            assert connection.transport.get_write_buffer_size() < 65536 + 4096  # type: ignore[union-attr]
        assert len(set(others)) == 1
        assert served.llm.stats().pages_used == 0
        received = b""
        while b"[DONE]" not in received:
            received += lazy.recv(65536)
    assert b"too many tokens unread" in received
    events = [line for line in received.decode().split("\n") if line.startswith("data: {")]
    assert "error" in json.loads(events[-1].removeprefix("data: "))
    assert len(events) > 100
