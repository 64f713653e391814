"""The `text-generation` client, which users of text-generation-inference and kv.run have.

It needs an older huggingface_hub than the other tests, so it runs in a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import Served

from cleave import SamplingParams

FOLDER = Path(os.environ.get("TGI_CLIENT", Path(sys.prefix) / "tgi-client"))
PROMPT = "San Francisco is a"
PROGRAM = """
import asyncio, json, sys
from text_generation import AsyncClient, Client
from text_generation.errors import OverloadedError, ValidationError
url, prompt, key = sys.argv[1:]
headers = {"Authorization": f"Bearer {key}"}
client = Client(url, headers=headers, timeout=60)
found = {}
answer = client.generate(prompt, max_new_tokens=12, decoder_input_details=True, top_n_tokens=2)
found["text"] = answer.generated_text
found["reason"] = answer.details.finish_reason.value
found["prefill"] = len(answer.details.prefill)
found["top"] = [len(place) for place in answer.details.top_tokens]
found["full"] = client.generate(prompt, max_new_tokens=12, return_full_text=True).generated_text
*_, last = events = list(client.generate_stream(prompt, max_new_tokens=12))
found["streamed"] = "".join(event.token.text for event in events if not event.token.special)
found["last"] = [last.generated_text, last.details.generated_tokens]
sampled = client.generate(prompt, do_sample=True, temperature=2.0, best_of=2, max_new_tokens=4)
found["best_of"] = len(sampled.details.best_of_sequences)
chat = client.chat([{"role": "user", "content": "What is 2 + 3?"}], seed=1)
found["chat"] = chat.choices[0].message.content
try:
    client.generate(prompt, max_new_tokens=5000)
except ValidationError as error:
    found["refused"] = str(error)
async def ask():
    aclient = AsyncClient(url, headers=headers, timeout=60)
    whole = await aclient.generate(prompt, max_new_tokens=12)
    pieces = [event.token.text async for event in aclient.generate_stream(prompt, max_new_tokens=12)]
    return [whole.generated_text, "".join(pieces)]
found["async"] = asyncio.run(ask())
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def served(demo_artifact: Path) -> Iterator[Served]:
    with Served(demo_artifact, settings={"api_key": "a key of a client"}) as server:
        yield server
        server.idle()


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"`make setup` installs the client in {FOLDER}")
def test_the_client_runs_unchanged(served: Served) -> None:
    (expected,) = asyncio.run(served.llm.generate(PROMPT, SamplingParams(max_tokens=12)))
    (chat,) = asyncio.run(served.llm.chat([{"role": "user", "content": "What is 2 + 3?"}]))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, served.url, PROMPT, "a key of a client"],
        env=os.environ | {"PYTHONPATH": str(FOLDER)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["text"] == found["streamed"] == expected.text
    assert found["async"] == [expected.text, expected.text]
    assert found["full"] == PROMPT + expected.text
    assert found["reason"] == "length"
    assert found["prefill"] == len(expected.prompt_token_ids)
    assert found["top"] == [2] * 12
    assert found["last"] == [expected.text, 12]
    assert found["best_of"] == 1
    assert found["chat"] == chat.text
    assert "`inputs` tokens + `max_new_tokens` must be <= 4096" in found["refused"]
