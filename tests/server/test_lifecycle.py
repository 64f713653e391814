"""`cleave serve` as operators meet it: starting, draining, ending, and its log."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from command import cleave, process
from served import ServedProcess, until

from cleave.runtime.server.lifecycle import Server

PROMPT = "San Francisco is a"
LONG = {"prompt": PROMPT, "max_tokens": 600, "ignore_eos": True, "stream": True}


def test_sigterm_finishes_what_runs_and_takes_nothing_more(demo_artifact: Path) -> None:
    with ServedProcess(demo_artifact, "--log_format", "json") as server, httpx.Client(timeout=60) as client:
        assert client.get(f"{server.url}/ready").json() == {"ready": True}
        with client.stream("POST", f"{server.url}/v1/completions", json=LONG) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            with httpx.Client() as other:
                until(lambda: other.get(f"{server.url}/ready").status_code == 503)
                assert "shutting down" in other.get(f"{server.url}/ready").json()["reason"]
                assert other.get(f"{server.url}/live").status_code == 200
                refused = other.post(f"{server.url}/v1/completions", json=LONG)
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            events = [line for line in lines if line]
        assert events[-1] == "data: [DONE]"
        assert json.loads(events[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert server.ended() == 0
        messages = [entry["message"] for entry in server.entries()]
        assert "draining" in messages
        assert not [entry for entry in server.entries() if entry["level"] in ("error", "critical")]


def test_the_drain_has_an_end(demo_artifact: Path) -> None:
    with ServedProcess(demo_artifact, "--drain_timeout", "0.2") as server:
        body = {**LONG, "max_tokens": 4000}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            events = [line for line in lines if line]
        assert events[-1] == "data: [DONE]"
        assert json.loads(events[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "abort"
        assert server.ended() == 0
        assert "drain_timeout is over" in "".join(server.log)


def test_a_second_signal_calls_off_what_runs(demo_artifact: Path) -> None:
    with ServedProcess(demo_artifact, "--drain_timeout", "3000") as server:
        body = {**LONG, "max_tokens": 4000}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGINT)
            until(lambda: "draining" in "".join(server.log))
            server.process.send_signal(signal.SIGINT)
            events = [line for line in lines if line]
        assert events[-1] == "data: [DONE]"
        assert json.loads(events[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "abort"
        assert server.ended() == 0
        assert "a second signal came; what runs is called off requests=1" in "".join(server.log)
        assert "Traceback" not in "".join(server.log)


def test_a_third_signal_waits_for_nobody(demo_artifact: Path) -> None:
    """Not even for a client that does not read: its connection is cut, and that is no error."""
    with ServedProcess(demo_artifact, "--drain_timeout", "3000") as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((urlsplit(server.url).hostname, urlsplit(server.url).port))
        body = json.dumps({**LONG, "max_tokens": 4000, "logprobs": 20}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        assert client.recv(1) == b"H"
        for words in ("draining", "called off"):
            server.process.send_signal(signal.SIGINT)
            until(lambda words=words: words in "".join(server.log))
        server.process.send_signal(signal.SIGINT)
        assert server.ended() == 0
        assert "Traceback" not in "".join(server.log)


def test_idle_connections_are_closed_by_clients(demo_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that closes them first may do so while a client sends its next request."""
    seen: list[int] = []

    def run(server: Server, sockets: list[socket.socket]) -> None:
        seen.append(server.config.timeout_keep_alive)

    monkeypatch.setattr(Server, "run", run)
    assert cleave("serve", demo_artifact, "--port", 0).code == 0
    assert seen[0] > (httpx.Limits().keepalive_expiry or 0)


def test_the_log_in_json_names_requests_and_no_prompts(demo_artifact: Path) -> None:
    key = "a key that nobody may read"
    with ServedProcess(demo_artifact, "--log_format", "json", CLEAVE_API_KEY=key) as server:
        headers = {"Authorization": f"Bearer {key}", "X-Request-Id": "known-to-the-proxy"}
        body = {"prompt": PROMPT, "max_tokens": 4}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=60)
        assert answer.headers["x-request-id"] == "known-to-the-proxy"
        assert answer.json()["id"] == "cmpl-known-to-the-proxy"
        made_up = httpx.get(f"{server.url}/v1/models", headers={"X-Request-Id": "not an id"})
        assert made_up.status_code == 401
        assert len(made_up.headers["x-request-id"]) == 32
        server.process.send_signal(signal.SIGINT)
        assert server.ended() == 0
        (entry,) = [one for one in server.entries() if one.get("path") == "/v1/completions"]
        assert entry["request_id"] == "known-to-the-proxy"
        assert (entry["status"], entry["prompt_tokens"], entry["generated_tokens"]) == (200, 5, 4)
        assert "San Francisco" not in "".join(server.log)
        assert answer.json()["choices"][0]["text"].strip() not in "".join(server.log)
        assert key not in "".join(server.log)


def test_prompts_are_logged_where_that_is_asked_for(demo_artifact: Path) -> None:
    with ServedProcess(demo_artifact, "--log_format", "json", "--log_prompts") as server:
        body = {"prompt": PROMPT, "max_tokens": 4}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
        text = answer.json()["choices"][0]["text"]
        until(lambda: "generated_tokens" in "".join(server.log))
        (entry,) = [one for one in server.entries() if one.get("path") == "/v1/completions"]
        assert (entry["prompts"], entry["answers"]) == ([PROMPT], [text])


def test_two_servers_may_share_an_artifact_that_vanishes_under_them(
    demo_artifact: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "artifact"
    shutil.copytree(demo_artifact, copy)
    texts: list[Any] = []

    def ask(server: ServedProcess) -> None:
        answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": PROMPT}, timeout=60)
        texts.append(answer.json()["choices"][0]["text"])

    with ServedProcess(copy) as first, ServedProcess(copy) as second:
        shutil.rmtree(copy)
        threads = [threading.Thread(target=ask, args=(server,)) for server in (first, second, first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(texts) == 4
        assert len(set(texts)) == 1
    cleave("serve", copy, "--port", 0).refused(str(copy))


def test_a_port_that_is_taken(demo_artifact: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cleave("serve", demo_artifact, "--port", port).refused(f"127.0.0.1:{port}", "--port")
    cleave("serve", demo_artifact, "--host", "no.such.host.invalid").refused("no.such.host.invalid:8000")
    cleave("serve", demo_artifact, "--host", "2001:db8::1").refused("[2001:db8::1]:8000")  # of nobody


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--port", 70000), ("port is 70000", "65535")),
        (("--max_queue", -1), ("max_queue is -1", "at least 0")),
        (("--max_body_bytes", 0), ("max_body_bytes is 0",)),
        (("--drain_timeout", "nan"), ("drain_timeout is nan",)),
        (("--api_key", "short"), ("api_key is too short",)),
        (("--max_sequences", 0, "--port", 0), ("max_sequences is 0",)),
    ],
)
def test_settings_are_checked_before_anything_is_loaded(
    demo_artifact: Path, options: tuple[object, ...], words: tuple[str, ...]
) -> None:
    said = cleave("serve", demo_artifact, *options).refused(*words)
    assert "short'" not in said


def test_a_missing_package_is_named(demo_artifact: Path) -> None:
    code = """
        import sys

        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name in ("fastapi", "uvicorn", "starlette"):
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Missing())
        from cleave.__main__ import main
        main()
    """
    program = "\n".join(line[8:] for line in code.splitlines())
    process(["-c", program, "serve", demo_artifact]).refused(
        "`cleave serve` needs ", "pip install", "uvicorn"
    )


def test_the_attention_backend_is_left_to_the_engine(demo_artifact: Path) -> None:
    options = ("--engine", "inductor", "--device", "cpu")
    with ServedProcess(demo_artifact, *options) as server:
        body = {"prompt": PROMPT, "max_tokens": 4}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).raise_for_status().json()
        assert answer["usage"]["completion_tokens"] == 4
