"""The live picture: what is in its frames, who gets them, and that it stops when nobody looks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from served import Served, until

from cleave import LLM, AsyncLLM, SamplingParams
from cleave.kvcache.page_map import CACHED, FREE, SHARED
from cleave.runtime.bench.limits import Limits
from cleave.runtime.observer import StepReport
from cleave.runtime.server.errors import Refused
from cleave.runtime.server.limit_share import LimitShare
from cleave.runtime.server.live import Live, cells_of

ENDLESS = SamplingParams(max_tokens=3000, ignore_eos=True)


def parsed(event: bytes) -> dict[str, Any]:
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    frame: dict[str, Any] = json.loads(event[6:])
    return frame


async def next_frame(frames: AsyncIterator[bytes], wanted: Any) -> dict[str, Any]:
    async with asyncio.timeout(60):
        async for event in frames:
            if wanted(frame := parsed(event)):
                return frame
    raise AssertionError("it ended")


def expanded(cells: list[int]) -> list[int]:
    return [code for code, count in zip(cells[::2], cells[1::2], strict=True) for _ in range(count)]


def test_a_frame_is_one_moment_of_the_engine(demo_artifact: Path) -> None:
    async def run() -> None:
        async with AsyncLLM(demo_artifact, max_sequences=3, kv_cache_bytes=40 << 20) as llm:
            live = Live(llm, interval=0.01)
            frames = live.watch()
            streams = [
                llm.stream([0, *range(30 + 50 * index, 60 + 50 * index)], ENDLESS, request_id=f"r{index}")
                for index in range(5)
            ]
            frame = await next_frame(frames, lambda frame: len(frame["running"]) == 3 and frame["steps"])
            assert {name for _, name, *_ in frame["running"]} == {"r0", "r1", "r2"}
            assert [name for _, name, _ in frame["waiting"]] == ["r3", "r4"]
            assert frame["waiting_count"] == 2
            # The pages that each request has are those that its tokens need, between any two steps.
            codes = expanded(frame["cells"])
            assert len(codes) == llm.stats().pages
            for code, (_, _, prompt, cached, generated) in enumerate(frame["running"], 3):
                assert codes.count(code) == -(-cached // 16)
                assert cached == prompt + generated - 1
            assert codes.count(0) == frame["pages"][2]
            assert codes.count(1) == frame["pages"][1]
            assert sum(code > 1 for code in codes) == frame["pages"][0]
            assert frame["page_size"] == 16
            batched = {sequence for sequence, _ in frame["batch"]}
            assert batched == {sequence for sequence, *_ in frame["running"]}
            for stream in streams:
                await stream.aclose()
            frame = await next_frame(frames, lambda frame: not frame["running"])
            assert frame["pages"][0] == 0
            await frames.aclose()  # type: ignore[attr-defined]

    asyncio.run(run())


def test_the_steps_in_the_frames_are_those_of_the_engine(demo_artifact: Path) -> None:
    async def run() -> None:
        async with AsyncLLM(demo_artifact) as llm:
            live = Live(llm, interval=0.01)
            frames = live.watch()
            await anext(frames)
            bins: dict[float, list[float]] = {}

            async def collect() -> None:
                async for event in frames:
                    for one in parsed(event)["steps"]:
                        bins[one[0]] = one

            collecting = asyncio.create_task(collect())
            params = SamplingParams(max_tokens=150, ignore_eos=True)
            await asyncio.gather(*(llm.generate([0, 10 + index, 20], params) for index in range(4)))
            stats = llm.stats()
            async with asyncio.timeout(60):
                while sum(one[2] for one in bins.values()) < stats.steps:
                    await asyncio.sleep(0.01)
            collecting.cancel()
            ordered = [bins[began] for began in sorted(bins)]
            assert sum(one[2] for one in ordered) == stats.steps
            assert sum(one[3] for one in ordered) == stats.prompt_tokens
            assert sum(one[4] for one in ordered) == 4 * 149
            assert sum(one[5] for one in ordered) == 4 * 150
            assert len(ordered) < stats.steps
            for earlier, later in pairwise(ordered):
                assert earlier[0] < earlier[1] <= later[0] + 0.2

    asyncio.run(run())


def test_nothing_runs_while_nobody_watches(demo_artifact: Path) -> None:
    async def run() -> None:
        async with AsyncLLM(demo_artifact) as llm:
            looks = []
            look = llm.look

            async def counted(function: Any) -> Any:
                looks.append(function)
                return await look(function)

            llm.look = counted  # type: ignore[method-assign]
            live = Live(llm, interval=0.001)
            await llm.generate([0, 10], SamplingParams(max_tokens=5, ignore_eos=True))
            assert not looks
            first, second = live.watch(), live.watch()
            assert live.watchers == 0
            await asyncio.gather(anext(first), anext(second))
            assert live.watchers == 2
            assert llm._thread._observers._observers
            await first.aclose()  # type: ignore[attr-defined]
            assert live.watchers == 1
            await second.aclose()  # type: ignore[attr-defined]
            assert live.watchers == 0
            assert not llm._thread._observers._observers
            before = len(looks)
            await llm.generate([0, 10], SamplingParams(max_tokens=50, ignore_eos=True))
            assert len(looks) == before
            # And again.
            third = live.watch()
            assert parsed(await anext(third))
            await third.aclose()  # type: ignore[attr-defined]

    asyncio.run(run())


def test_an_idle_engine_is_not_asked_again(demo_artifact: Path) -> None:
    async def run() -> None:
        async with AsyncLLM(demo_artifact) as llm:
            live = Live(llm, interval=0.001)
            frames = live.watch()
            await anext(frames)
            pending = asyncio.ensure_future(anext(frames))
            await asyncio.sleep(0.1)
            assert not pending.done()
            await llm.generate([0, 10], SamplingParams(max_tokens=2, ignore_eos=True))
            async with asyncio.timeout(60):
                await pending
            await frames.aclose()  # type: ignore[attr-defined]

    asyncio.run(run())


def test_watchers_hear_of_the_end(demo_artifact: Path) -> None:
    async def run() -> None:
        async with AsyncLLM(demo_artifact) as llm:
            live, other = (Live(llm, interval=0.001, heartbeat=0.05) for _ in range(2))
            frames, others = live.watch(), other.watch()
            await asyncio.gather(anext(frames), anext(others))
            live.end("the server is shutting down")
            rest = [event async for event in frames]
            assert rest[-1] == b'event: end\ndata: "the server is shutting down"\n\n'
            assert [event async for event in live.watch()][-1] == rest[-1]
        # Closed: a look is refused.
        rest = [event async for event in others]
        assert rest[-1].startswith(b"event: end\ndata: ")

    asyncio.run(run())


def test_too_many_watchers_are_refused(demo_artifact: Path) -> None:
    async def run() -> None:
        async with AsyncLLM(demo_artifact) as llm:
            live = Live(llm, interval=0.001)
            watching = [live.watch() for _ in range(64)]
            await asyncio.gather(*(anext(one) for one in watching))
            with pytest.raises(Refused, match="64 pages watch already"):
                live.watch()
            for one in watching:
                await one.aclose()  # type: ignore[attr-defined]

    asyncio.run(run())


def test_over_http_a_watcher_who_leaves_is_forgotten(demo_artifact: Path) -> None:
    with Served(demo_artifact) as server:
        with httpx.stream("GET", f"{server.url}/ui/live", timeout=60) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            chunks = answer.iter_raw()
            assert parsed(next(chunks))["running"] == []
            assert server.service.live.watchers == 1
        until(lambda: server.service.live.watchers == 0)


def test_a_server_that_drains_does_not_wait_for_watchers(demo_artifact: Path) -> None:
    with Served(demo_artifact) as server, httpx.stream("GET", f"{server.url}/ui/live", timeout=60) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        server.service.draining = True
        assert 'data: "the server is shutting down"' in list(lines)


def test_the_share_of_the_limit_is_what_the_shape_says(demo_artifact: Path) -> None:
    """Counted here from the config alone: a decode step reads every weight once, and the history."""
    hidden, inner, layers, vocab, q, kv = 256, 704, 6, 3072, 256, 128
    layer = hidden * (q + 2 * kv) + q * hidden + 3 * hidden * inner + 2 * hidden
    weights = layers * layer + hidden + vocab * hidden

    async def run() -> None:
        async with AsyncLLM(demo_artifact) as llm:
            share = LimitShare(llm.model, Limits(1e9, {"float32": 1e15}))
            steps: list[StepReport] = []

            class Keeper:
                def stepped(self, step: StepReport) -> None:
                    steps.append(step)

                def answered(self, answer: object) -> None: ...

            llm.observe(Keeper())
            await llm.generate([0, *range(10, 40)], SamplingParams(max_tokens=4, ignore_eos=True))
            assert [(step.chunks[0].start, step.chunks[0].count) for step in steps] == [
                (0, 31),
                (31, 1),
                (32, 1),
                (33, 1),
            ]
            for step in steps[1:]:
                floats = weights + hidden + layers * 2 * kv * (step.chunks[0].start + 1)
                assert share.of(step) == pytest.approx(100 * floats * 4 / 1e9 / step.seconds)
            assert share.lately(steps[1]) == share.of(steps[1])
            both = (share.of(steps[1]) + share.of(steps[2])) / 2
            assert share.lately(steps[2]) == pytest.approx(both)

    asyncio.run(run())


def test_measured_limits_show_in_the_frames(demo_artifact: Path) -> None:
    with Served(demo_artifact, settings={"measure_limits": True}) as server:
        params = {"prompt": "Tokyo", "max_tokens": 300, "ignore_eos": True}
        with (
            httpx.stream("GET", f"{server.url}/ui/live", timeout=60) as answer,
            httpx.stream(
                "POST",
                f"{server.url}/v1/completions",
                json={"model": server.service.model_name, "stream": True, **params},
                timeout=60,
            ),
        ):
            for line in answer.iter_lines():
                if line and (percent := json.loads(line[6:])["percent_of_limit"]) is not None:
                    assert percent > 0
                    return
    raise AssertionError("no frame has it")


@pytest.mark.parametrize(("quantize", "rate"), [("int8", "int8"), (None, "float32")])
def test_the_limits_are_those_of_the_products_that_the_engine_computes(
    quantize: str | None, rate: str, demo_artifact: Path, quantized_artifact: Callable[..., Path]
) -> None:
    folder = quantized_artifact("demo", quantize=quantize) if quantize else demo_artifact
    step: Any = SimpleNamespace(
        chunks=[SimpleNamespace(sequence=SimpleNamespace(id=0), start=0, count=3)],
        generated_tokens=1,
        seconds=1.0,
    )
    with LLM(folder, attention="reference") as llm:
        assert LimitShare.measured(llm.model).of(step) > 0
        one, two = (LimitShare(llm.model, Limits(1e30, {rate: each})).of(step) for each in (2e12, 1e12))
        assert two == pytest.approx(2 * one)


def test_cells_of_many_pages_show_what_is_used() -> None:
    holders = np.full(10_000, FREE, np.int64)
    holders[17], holders[30:33], holders[9_999] = 7, CACHED, SHARED
    per_cell, cells = cells_of(holders, {7: 3})
    codes = expanded(cells)
    assert per_cell == 3
    assert len(codes) == -(-10_000 // 3)
    assert {index: code for index, code in enumerate(codes) if code} == {5: 3, 10: 1, 3333: 2}
    # A sequence that ended since is nobody's page any more that could be named.
    assert cells_of(np.array([FREE, 5, CACHED]), {}) == (1, [0, 1, 2, 1, 1, 1])
