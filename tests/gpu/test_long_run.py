"""Ten thousand steps of random load on an NVIDIA GPU: nothing is lost, and nothing grows."""

from __future__ import annotations

import gc
import math
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from cleave import LLM, SamplingParams
from cleave.export.artifact import Artifact
from cleave.kvcache.budget import page_bytes
from cleave.kvcache.memory_plan import ITEM_BYTES
from cleave.runtime.stream import Stream

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.usefixtures("few_functions"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
STEPS, EARLY = 10_000, 2_000
CLIENTS = 24
PAGES = 120
"""For 1,920 tokens: a third of what the clients may want together."""
GROWTH = 32 << 20
"""Bytes that the process may grow by over 8,000 steps: 4 KiB a step would be seen."""


class Client(threading.Thread):
    """Asks, reads some or all of the answer, and asks again, until it is told to end."""

    def __init__(self, llm: LLM, seed: int, ended: threading.Event) -> None:
        super().__init__(daemon=True)
        self._llm, self._random, self._ended = llm, random.Random(seed), ended
        self.error: BaseException | None = None
        self.left_early = 0

    def run(self) -> None:
        try:
            while not self._ended.is_set():
                self._ask()
        except BaseException as error:
            self.error = error

    def _ask(self) -> None:
        draw = self._random
        vocab_size = self._llm.model.tokenizer.vocab_size
        shared = [5] * draw.choice((0, 0, 40))
        prompt = shared + [draw.randrange(3, vocab_size) for _ in range(draw.randint(1, 120))]
        params = SamplingParams(
            max_tokens=draw.randint(1, 80),
            ignore_eos=draw.random() < 0.7,
            temperature=draw.choice((0.0, 0.0, 0.8)),
            seed=draw.randrange(1000),
            logprobs=draw.choice((None, 2)),
        )
        stream = self._llm.stream(prompt, params, priority=draw.randint(-1, 1))
        self._read(stream, draw.randint(1, 30) if draw.random() < 0.2 else None)

    def _read(self, stream: Stream, most: int | None) -> None:
        chunks = 0
        with stream:
            for chunk in stream:
                for token in chunk.logprobs or ():
                    assert all(math.isfinite(one.logprob) for one in token.values())
                chunks += 1
                if chunks == most:
                    self.left_early += 1
                    return
        assert stream.completions()[0].finish_reason in ("stop", "length")


@pytest.fixture(scope="module")
def llm(demo_artifact: Path) -> Iterator[LLM]:
    specs = Artifact.open(demo_artifact, verify=False).manifest.layer_specs
    with LLM(
        demo_artifact,
        "inductor",
        verify=False,
        max_sequences=16,
        max_tokens_per_step=256,
        max_model_len=512,
        kv_cache_bytes=PAGES * page_bytes(specs, 16, ITEM_BYTES["float16"]),
    ) as made:
        assert made.model.attention.num_pages == PAGES
        yield made


def test_ten_thousand_steps_lose_no_page_and_no_memory(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    left_early, held = 0, []
    for number, steps in enumerate(range(EARLY, STEPS + 1, EARLY)):
        began = time.monotonic()
        left_early += _load_until(llm, steps, number)
        gc.collect()
        held.append((torch.cuda.memory_allocated(), psutil.Process().memory_info().rss))
        with capsys.disabled():
            print(f"\n{llm.stats().steps:,} steps: {time.monotonic() - began:.1f} s", end="", flush=True)
    stats = llm.stats()
    assert stats.preemptions > 50
    assert left_early > 50
    assert "error" not in stats.ended
    assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)
    llm.model.attention.check()
    assert llm.model.attention.free_pages == PAGES
    early, late = held[0], held[-1]
    assert late[0] <= early[0]  # bytes of the device that tensors hold
    assert late[1] < early[1] + GROWTH


def _load_until(llm: LLM, steps: int, seed: int) -> int:
    """Let clients ask until so many steps have run and all is answered; how often one left early."""
    ended = threading.Event()
    clients = [Client(llm, seed * CLIENTS + index, ended) for index in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        while llm.stats().steps < steps and all(client.is_alive() for client in clients):
            clients[0].join(0.05)
    finally:
        ended.set()
    for client in clients:
        client.join()
    assert [client.error for client in clients if client.error] == []
    assert llm.wait_until_idle(60)
    return sum(client.left_early for client in clients)
