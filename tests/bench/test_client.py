"""The client over a real connection: a server whose delays are those of a virtual clock."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cleave.__main__ import application
from cleave.errors import BenchError
from cleave.runtime.bench.arrivals import Ask
from cleave.runtime.bench.client import Client, Server

PATIENCE = 30.0


@dataclass
class VirtualClock:
    """Time that passes only when the server says so, and not before the client has looked at it."""

    now: float = 0.0
    looks: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __call__(self) -> float:
        with self.changed:
            self.looks += 1
            self.changed.notify_all()
            return self.now

    async def sleep(self, seconds: float) -> None:
        with self.changed:
            self.now += seconds

    def advance(self, seconds: float) -> int:
        """Let time pass; gives back how often the client has looked."""
        with self.changed:
            self.now += seconds
            return self.looks

    def wait_for_look(self, after: int) -> None:
        """Wait until the client has stamped what was sent."""
        with self.changed:
            if not self.changed.wait_for(lambda: self.looks > after, PATIENCE):
                raise TimeoutError("the client never looked at its clock")


@dataclass
class Script:
    """What the server does: `delays` before each token of every request."""

    clock: VirtualClock | None
    """None: nobody waits for anybody."""
    delays: list[float]
    with_usage: bool = True
    status: int = 200
    broken_after: int | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    script: Script

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer(200, json.dumps({"data": [{"id": "tiny"}]}).encode())

    def do_POST(self) -> None:
        script = self.script
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        script.bodies.append(body)
        script.keys.append(self.headers.get("Authorization"))
        if script.status != 200:
            self.answer(script.status, b"overloaded, come again")
            return
        is_chat = "messages" in body
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        if is_chat:
            self.event(
                {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}, 0.0
            )
        for index, delay in enumerate(script.delays):
            if index == script.broken_after:
                self.event({"error": {"message": "out of pages"}}, 0.0)
                return
            choice = {"delta": {"content": "w"}} if is_chat else {"text": "w"}
            self.event({"choices": [choice | {"finish_reason": None}]}, delay)
        last = {"delta": {}} if is_chat else {"text": ""}
        self.event({"choices": [last | {"finish_reason": "length"}]}, 0.0)
        if script.with_usage:
            usage = {"prompt_tokens": 11, "completion_tokens": len(script.delays)}
            self.event({"choices": [], "usage": usage}, 0.0)
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, data: dict[str, Any], delay: float) -> None:
        clock = self.script.clock
        looks = clock.advance(delay) if clock else 0
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())
        self.wfile.flush()
        if clock:
            clock.wait_for_look(looks)

    def answer(self, status: int, text: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


class LoadServer(ThreadingHTTPServer):
    """With room for a load that comes all at once; the library's five places would reset the rest."""

    request_queue_size = 128


@pytest.fixture
def script() -> Script:
    return Script(VirtualClock(), [0.5, 0.25, 0.25, 1.0])


@pytest.fixture
def url(script: Script) -> Iterator[str]:
    handler = type("Bound", (Handler,), {"script": script})
    server = LoadServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def run(server: Server, script: Script, load: list[Ask]) -> tuple[str, list[Any], float, set[str]]:
    client = Client(server, max_concurrency=1, clock=script.clock, sleep=script.clock.sleep)
    model, timings, seconds = asyncio.run(client.run(load))
    return model, timings, seconds, client.notes


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_every_message_is_stamped_when_it_comes(api: Any, url: str, script: Script) -> None:
    load = [Ask(0.0, "one two three", 4)]
    model, timings, seconds, notes = run(Server(url, api=api), script, load)
    assert model == "tiny"
    assert timings[0].ttft == 0.5
    assert timings[0].itl == [0.25, 0.25, 1.0]
    assert timings[0].e2e == 2.0
    assert timings[0].tpot == 0.5
    assert (timings[0].prompt_tokens, timings[0].output_tokens) == (11, 4)
    assert seconds == 2.0
    assert notes == set()


def test_the_request_is_what_an_openai_server_takes(url: str, script: Script) -> None:
    run(Server(f"{url}/v1/", model="named", api_key="secret"), script, [Ask(0.0, [1, 2, 3], 7)])
    assert script.bodies == [
        {
            "prompt": [1, 2, 3],
            "model": "named",
            "max_tokens": 7,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
        }
    ]
    assert script.keys == ["Bearer secret"]
    run(Server(url, api="chat", ignore_eos=False), script, [Ask(0.0, "hello", 7)])
    assert script.bodies[1]["messages"] == [{"role": "user", "content": "hello"}]
    assert "ignore_eos" not in script.bodies[1]


def test_requests_wait_for_their_time(url: str, script: Script) -> None:
    _, timings, _, _ = run(Server(url), script, [Ask(0.0, "a", 4), Ask(100.0, "b", 4)])
    assert all(timing.error is None for timing in timings)
    assert timings[1].sent >= 100.0


def test_without_usage_a_message_counts_as_a_token_and_the_client_says_so(url: str, script: Script) -> None:
    script.with_usage = False
    _, timings, _, notes = run(Server(url), script, [Ask(0.0, "one two three", 4)])
    assert (timings[0].prompt_tokens, timings[0].output_tokens) == (3, 4)
    assert notes == {"the server sent no usage: a message is counted as one token"}


def test_a_refused_request_fails_alone(url: str, script: Script) -> None:
    script.status = 429
    _, timings, _, _ = run(Server(url), script, [Ask(0.0, "a", 4)])
    assert timings[0].error == "429: overloaded, come again"


def test_an_error_in_the_stream_is_a_failed_request(url: str, script: Script) -> None:
    script.broken_after = 2
    _, timings, _, _ = run(Server(url), script, [Ask(0.0, "a", 4)])
    assert timings[0].error == '{"message": "out of pages"}'


def test_the_command_sends_a_load_at_once_and_writes_table_figures_and_plot(
    url: str, script: Script, tmp_path: Path
) -> None:
    script.clock = None
    out, plot = tmp_path / "serve.json", tmp_path / "serve.html"
    options = [
        "--requests",
        "20",
        "--prompt",
        "3:9",
        "--output",
        "4",
        "--json",
        str(out),
        "--plot",
        str(plot),
    ]
    result = CliRunner().invoke(application(), ["bench", "serve", "--url", url, *options])
    assert result.exit_code == 0, result.output
    figures = json.loads(out.read_text())["figures"]
    assert figures["errors"] == []
    assert (figures["completed"], figures["failed"]) == (20, 0)
    assert (figures["prompt_tokens"], figures["output_tokens"]) == (220, 80)
    assert set(figures["milliseconds"]) == {"TTFT", "TPOT", "ITL", "E2E"}
    assert all(set(values) == {"mean", "median", "p99"} for values in figures["milliseconds"].values())
    assert "20 of 20 requests" in result.output
    assert "<svg" in plot.read_text()


def test_a_server_that_refuses_everything_is_an_error(url: str, script: Script) -> None:
    script.status = 503
    result = CliRunner().invoke(application(), ["bench", "serve", "--url", url, "--requests", "2"])
    assert "all 2 requests failed; the first one: 503: overloaded" in str(result.exception)


def test_an_unreachable_server_is_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else answers there
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(
            BenchError, match=f"no server answers at {address} .*; start one, or correct --url"
        ):
            asyncio.run(Client(Server(address)).run([Ask(0.0, "a", 1)]))


@pytest.mark.parametrize("address", ["127.0.0.1:80", "ftp://127.0.0.1", "http://", "nonsense"])
def test_what_is_no_url_is_one_sentence(address: str) -> None:
    with pytest.raises(BenchError, match="no server answers at"):
        asyncio.run(Client(Server(address)).run([Ask(0.0, "a", 1)]))
