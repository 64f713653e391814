"""What is refused before anything is spent on it: sizes, syntax, the queue, the key."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import Served, until

KEY = "the key of the server"
AUTHORISED = {"Authorization": f"Bearer {KEY}"}
ENDLESS = {"prompt": "San Francisco is a", "max_tokens": 3000, "ignore_eos": True, "stream": True}
POSTS = ("/v1/completions", "/v1/chat/completions", "/generate", "/generate_stream", "/", "/tokenize")


@pytest.fixture(scope="module")
def served(demo_artifact: Path) -> Iterator[Served]:
    settings = {"api_key": KEY, "max_body_bytes": 10_000, "max_queue": 1}
    with Served(demo_artifact, settings=settings, max_sequences=2) as server:
        yield server
        server.idle()


def post(served: Served, path: str, content: Any, **headers: str) -> httpx.Response:
    sent = {"Content-Type": "application/json", **AUTHORISED, **headers}
    return httpx.post(f"{served.url}{path}", content=content, headers=sent, timeout=60)


def message(answer: httpx.Response) -> str:
    """The message of an error, which has the form of its dialect."""
    error = answer.json()["error"]
    if answer.url.path.startswith("/v1/"):
        assert set(error) == {"message", "type", "param", "code"}
        return str(error["message"])
    assert set(answer.json()) == {"error", "error_type"}
    return str(error)


@pytest.mark.parametrize("path", POSTS)
def test_a_body_that_is_too_long(served: Served, path: str) -> None:
    body = json.dumps({"prompt": "a" * 10_000}).encode()
    said = "the body is too long; at most 10000 bytes are allowed"
    for content in (body, iter([body[:6000], body[6000:]])):
        answer = post(served, path, content)
        assert (answer.status_code, message(answer)) == (413, said)


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "body", [b'{"prompt":', b"", b"nonsense", b'{"prompt": "\xff"}', b"[" * 5000, b"1" * 5000, b'{"a": \xc3}']
)
def test_a_body_that_is_not_json(served: Served, path: str, body: bytes) -> None:
    answer = post(served, path, body)
    assert answer.status_code == 400 if body not in (b"", b"1" * 5000) else answer.status_code in (400, 422)
    assert "body" in message(answer)


@pytest.mark.parametrize("body", [b"[]", b"3", b'"text"', b"null", b"{}"])
def test_a_body_that_is_another_json(served: Served, body: bytes) -> None:
    assert post(served, "/v1/completions", body).status_code == 400
    assert post(served, "/generate", body).status_code == 422


@pytest.mark.parametrize("text", ["\\ud800", "\\u0000", "\\udc00\\ud800"])
def test_text_that_utf8_cannot_encode(served: Served, text: str) -> None:
    for path, field in (("/v1/completions", "prompt"), ("/generate", "inputs"), ("/tokenize", "inputs")):
        answer = post(served, path, f'{{"{field}": "{text}"}}')
        assert answer.status_code < 500
    body = f'{{"messages": [{{"role": "user", "content": "{text}", "name": "{text}"}}], "max_tokens": 1}}'
    assert post(served, "/v1/chat/completions", body).status_code < 500


def test_other_content_is_not_json(served: Served) -> None:
    answer = httpx.post(f"{served.url}/v1/completions", data={"prompt": "a"}, headers=AUTHORISED)
    assert answer.status_code == 415
    assert "Content-Type: application/json" in message(answer)


def test_a_path_or_method_that_is_not_there(served: Served) -> None:
    assert httpx.get(f"{served.url}/v1/nothing", headers=AUTHORISED).status_code == 404
    assert httpx.get(f"{served.url}/nothing", headers=AUTHORISED).json()["error_type"] == "not_found"
    answer = httpx.get(f"{served.url}/v1/completions", headers=AUTHORISED)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert "takes POST" in message(answer)


def test_the_queue_is_bounded(served: Served) -> None:
    with httpx.Client(headers=AUTHORISED, timeout=60) as client:
        streams = [client.stream("POST", f"{served.url}/v1/completions", json=ENDLESS) for _ in range(3)]
        opened = [stream.__enter__() for stream in streams]
        assert [answer.status_code for answer in opened] == [200, 200, 200]
        until(
            lambda: (served.stats()["requests"]["running"], served.stats()["requests"]["waiting"]) == (2, 1)
        )
        answer = client.post(f"{served.url}/v1/completions", json=ENDLESS)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["type"] == "rate_limit_error"
        answer = client.post(f"{served.url}/generate", json={"inputs": "a"})
        assert answer.status_code == 429
        assert answer.json() == {"error": "Model is overloaded", "error_type": "overloaded"}
        assert served.stats()["requests"]["refused"] >= 2
        # What is not allowed is said also when nothing more is taken.
        assert client.post(f"{served.url}/v1/completions", json={"prompt": "a", "n": 0}).status_code == 400
        for stream in streams:
            stream.__exit__(None, None, None)
    served.idle()
    answer = httpx.post(f"{served.url}/v1/completions", json={"prompt": "a", "n": 4}, headers=AUTHORISED)
    assert answer.status_code == 400
    assert "asks for 4 answers; at most 3" in message(answer)


def test_the_key(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    for path in ("/v1/models", "/stats", "/info", "/docs", "/openapi.json", "/nothing"):
        assert httpx.get(f"{served.url}{path}", headers=AUTHORISED).status_code in (200, 404)
        for headers in (
            {},
            {"Authorization": "Bearer wrong key"},
            {"Authorization": KEY},
            {"X-Api-Key": KEY},
        ):
            answer = httpx.get(f"{served.url}{path}", headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert KEY not in answer.text
    for path in ("/live", "/ready", "/health", "/ping"):
        assert httpx.get(f"{served.url}{path}").status_code == 200
    assert httpx.post(f"{served.url}/", json={"inputs": "a"}).status_code == 401
    assert httpx.post(f"{served.url}/live").status_code == 401
    assert KEY not in json.dumps(served.stats())
    assert KEY not in caplog.text
    assert KEY not in repr(served.settings)


def test_a_key_in_bytes_that_are_no_text(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2]))) as raw:
        raw.sendall(
            b"GET /stats HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer \xff\xfe\r\nConnection: close\r\n\r\n"
        )
        assert b" 401 " in raw.recv(4096)


def test_an_id_that_is_in_use(served: Served) -> None:
    headers = {"X-Request-Id": "mine"}
    with httpx.Client(headers={**AUTHORISED, **headers}, timeout=60) as client:
        with client.stream("POST", f"{served.url}/v1/completions", json=ENDLESS) as first:
            assert first.headers["x-request-id"] == "mine"
            answer = client.post(f"{served.url}/v1/completions", json={"prompt": "a"})
            assert answer.status_code == 409
            assert "request id mine is in use" in message(answer)
        served.idle()
        assert client.post(f"{served.url}/v1/completions", json={"prompt": "a"}).status_code == 200
