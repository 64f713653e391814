"""Engines that fail: for one request, or for good."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from command import REPOSITORY
from served import Served, until

PROMPT = "San Francisco is a"
POISON = 300
"""A token that the engine is made to stumble over."""


@pytest.fixture
def served(demo_artifact: Path) -> Iterator[Served]:
    with Served(demo_artifact) as server:
        yield server


def break_engine(served: Served, breaks: Callable[[np.ndarray], bool]) -> None:
    """Make the engine raise for some steps."""
    engine = served.llm.model.engine
    run = engine.run

    def broken(token_ids: np.ndarray, *arguments: Any) -> Any:
        if breaks(token_ids):
            raise RuntimeError("the engine stumbled")
        return run(token_ids, *arguments)

    engine.run = broken  # type: ignore[method-assign]


def completion(served: Served, **body: Any) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/completions", json=body, timeout=60)


def test_the_culprit_alone_gets_an_error(served: Served) -> None:
    expected = completion(served, prompt=PROMPT, max_tokens=200).json()["choices"]
    break_engine(served, lambda token_ids: POISON in token_ids)
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(completion(served, prompt=PROMPT, max_tokens=200)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    culprits = [completion(served, prompt=[10, POISON]) for _ in range(3)]
    with httpx.stream(
        "POST", f"{served.url}/v1/completions", json={"prompt": [10, POISON], "stream": True}, timeout=60
    ) as streamed:
        lines = [line for line in streamed.iter_lines() if line]
    for thread in threads:
        thread.join()
    assert [answer.json()["choices"] for answer in answers] == [expected] * 8
    for culprit in culprits:
        assert culprit.status_code == 500
        assert culprit.json()["error"]["code"] == "generation"
        assert "the engine stumbled" in culprit.json()["error"]["message"]
    assert streamed.status_code == 200
    assert "the engine stumbled" in json.loads(lines[0].removeprefix("data: "))["error"]["message"]
    assert lines[1:] == ["data: [DONE]"]
    served.idle()
    assert httpx.get(f"{served.url}/ready").status_code == 200


def test_the_culprit_gets_an_error_in_the_other_dialect(served: Served) -> None:
    poison = served.llm.model.tokenizer.text_of(POISON)
    assert POISON in served.llm.model.tokenizer.encode(poison)
    break_engine(served, lambda token_ids: POISON in token_ids)
    answer = httpx.post(f"{served.url}/generate", json={"inputs": poison}, timeout=60)
    assert answer.status_code == 424
    assert answer.json()["error_type"] == "generation"
    assert answer.json()["error"].startswith("Request failed during generation: Server error: ")
    answer = httpx.post(f"{served.url}/generate_stream", json={"inputs": poison}, timeout=60)
    assert answer.status_code == 200
    assert json.loads(answer.text.removeprefix("data: "))["error_type"] == "generation"


def test_an_engine_that_fails_everybody_ends_the_server(served: Served) -> None:
    assert httpx.get(f"{served.url}/ready").status_code == 200
    break_engine(served, lambda token_ids: True)
    answer = completion(served, prompt=PROMPT)
    assert answer.status_code == 500
    until(lambda: not served.thread.is_alive())
    assert served.server.failed


def test_a_bug_while_answering_is_an_event_and_a_line_in_the_log(
    served: Served, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> None:
        raise ZeroDivisionError("an oversight")

    monkeypatch.setattr("cleave.runtime.server.openai.completions._Form._piece", bug)
    answer = completion(served, prompt=PROMPT, stream=True)
    event = json.loads(answer.text.removeprefix("data: "))
    assert event["error"]["type"] == "server_error"
    assert "oversight" not in answer.text
    monkeypatch.setattr("cleave.runtime.server.openai.completions._Form.whole", bug)
    answer = completion(served, prompt=PROMPT)
    assert answer.status_code == 500
    assert "the server has a bug" in answer.json()["error"]["message"]
    assert answer.headers["x-request-id"] in caplog.text
    assert "ZeroDivisionError: an oversight" in caplog.text
    served.idle()


FATAL = """
import sys, threading
from cleave import AsyncLLM
from cleave.runtime.server.lifecycle import bind, serve_model
from cleave.runtime.server.settings import ServerSettings

llm = AsyncLLM(sys.argv[1])
steps = 0
schedule = llm._thread._scheduler.schedule
def broken():
    global steps
    steps += 1
    if steps > 20:
        raise MemoryError("the scheduler is broken")
    return schedule()
llm._thread._scheduler.schedule = broken
settings = ServerSettings(port=0)
listener = bind(settings)
print(listener.getsockname()[1], flush=True)
sys.exit(serve_model(llm, settings, listener))
"""


def test_a_fatal_error_answers_everybody_and_ends_the_process_with_a_code(demo_artifact: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", FATAL, str(demo_artifact)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        body = {"prompt": PROMPT, "max_tokens": 3000, "ignore_eos": True, "stream": True}
        transport = httpx.HTTPTransport(retries=10)
        with httpx.Client(transport=transport, timeout=60) as client:
            lines: list[str] = []

            def ask() -> None:
                with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
                    lines.extend(answer.iter_lines())

            threads = [threading.Thread(target=ask) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert sum("the scheduler is broken" in line for line in lines) == 3
        assert lines.count("data: [DONE]") == 3
        assert process.wait(60) == 1
    finally:
        process.kill()
        process.communicate()
