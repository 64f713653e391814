"""Streams: the same text as generate, for any number of readers, and no trace of those who left."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cleave import LLM, AsyncLLM, SamplingParams
from cleave.errors import EngineError, RequestError

ENDLESS = SamplingParams(max_tokens=3000, ignore_eos=True)
SCRIPTS = (
    "abcdefghij ,.",
    "äöüßéèñ ",
    "абвгдеж ",
    "你好世界東京",
    "हिन्दीका ",
    "👍🎉👩‍👩‍👧🇫🇷",
    "مرحبا ",
    "\n\t{}[]",
)


@pytest.fixture(scope="module")
def llm(demo_artifact: Path) -> Iterator[LLM]:
    with LLM(demo_artifact) as loaded:
        yield loaded


def random_texts(count: int) -> list[str]:
    generator = random.Random(0)
    texts = []
    for _ in range(count):
        alphabets = generator.sample(SCRIPTS, 2)
        letters = [generator.choice(generator.choice(alphabets)) for _ in range(generator.randint(1, 60))]
        texts.append("".join(letters))
    return texts


def test_streams_joined_are_what_generate_gives(llm: LLM) -> None:
    texts = random_texts(200)
    params = SamplingParams(max_tokens=24, ignore_eos=True)
    expected = llm.generate(texts, params)
    assert any("\ufffd" not in answer.text and not answer.text.isascii() for answer in expected)
    for start in range(0, 200, 50):
        streams = [llm.stream(text, params) for text in texts[start : start + 50]]
        for stream, answer in zip(streams, expected[start:], strict=False):
            chunks = list(stream)
            assert "".join(chunk.text for chunk in chunks) == answer.text
            assert tuple(token for chunk in chunks for token in chunk.token_ids) == answer.token_ids
            assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["length"]
            assert stream.completions() == [answer]


def test_any_stop_string_ends_a_stream_where_the_text_has_it(llm: LLM) -> None:
    prompt = "San Francisco is a"
    (whole,) = llm.generate(prompt)
    generator = random.Random(1)
    for _ in range(40):
        start = generator.randrange(len(whole.text))
        stop = whole.text[start : start + generator.randint(1, 12)]
        at = whole.text.index(stop)
        for include in (False, True):
            params = SamplingParams(stop=stop, include_stop_str_in_output=include)
            (answer,) = llm.generate(prompt, params)
            assert answer.text == whole.text[: at + len(stop) if include else at]
            assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
            assert whole.token_ids[: len(answer.token_ids)] == answer.token_ids
            chunks = list(llm.stream(prompt, params))
            assert "".join(chunk.text for chunk in chunks) == answer.text
            assert (chunks[-1].finish_reason, chunks[-1].stop_reason) == ("stop", stop)


def test_a_stop_string_counts_from_min_tokens_on(llm: LLM) -> None:
    (whole,) = llm.generate("San Francisco is a")
    later = SamplingParams(stop=("San Francisco", "fog"), min_tokens=40)
    (answer,) = llm.generate("San Francisco is a", later)
    assert (answer.text, answer.stop_reason) == (whole.text[: whole.text.index("fog")], "fog")
    (early,) = llm.generate("San Francisco is a", SamplingParams(stop="San Francisco"))
    assert early.text == whole.text[: whole.text.index("San Francisco")]


def test_a_stop_string_in_the_last_token_allowed_is_a_stop(llm: LLM) -> None:
    (answer,) = llm.generate("The capital of France is", SamplingParams(max_tokens=1, stop="Paris"))
    assert (answer.text, answer.finish_reason, answer.stop_reason) == (" ", "stop", "Paris")


@pytest.mark.parametrize("leave", ["close", "with", "break", "drop", "exception"])
def test_leaving_a_stream_gives_its_pages_back(llm: LLM, leave: str) -> None:
    def read() -> None:
        if leave == "with":
            with llm.stream([0, 10, 20], ENDLESS) as stream:
                next(stream)
        elif leave == "break":
            for _ in llm.stream([0, 10, 20], ENDLESS):
                break
        elif leave == "drop":
            llm.stream([0, 10, 20], ENDLESS)
        elif leave == "close":
            stream = llm.stream([0, 10, 20], ENDLESS)
            next(stream)
            stream.close()
            assert list(stream) == []
        else:
            with suppress(ZeroDivisionError), llm.stream([0, 10, 20], ENDLESS) as stream:
                next(stream)
                raise ZeroDivisionError

    aborted = llm.stats().ended.get("abort", 0)
    steps = steps_until_idle_after(llm, read)
    assert steps <= 1
    assert llm.stats().ended["abort"] == aborted + 1
    assert llm.stats().pages_used == 0


def steps_until_idle_after(llm: LLM, leave: Callable[[], None]) -> int:
    """Steps that begin after the reader has left; another request keeps the engine busy meanwhile."""
    run, engine = llm.model.engine.run, llm.model.engine
    left = threading.Event()
    later = []

    def counted(token_ids: Any, *arguments: Any) -> Any:
        if left.is_set():
            later.append(len(token_ids))
        return run(token_ids, *arguments)

    engine.run = counted  # type: ignore[method-assign]
    try:
        leave()
        gc.collect()
        left.set()
        assert llm.wait_until_idle(60)
    finally:
        engine.run = run  # type: ignore[method-assign]
    return len(later)


def test_a_reader_that_does_not_read_is_called_off_and_blocks_nobody(demo_artifact: Path) -> None:
    with LLM(demo_artifact, max_unread_tokens=100) as llm:
        lazy = llm.stream([0, 10, 20], ENDLESS)
        other = llm.stream([0, 11, 21], SamplingParams(max_tokens=90, ignore_eos=True))
        assert sum(len(chunk.token_ids) for chunk in other) == 90
        assert llm.wait_until_idle(60)
        chunks = list(lazy)
        assert chunks[-1].finish_reason == "abort"
        assert "unread" in str(chunks[-1].error)
        assert sum(len(chunk.token_ids) for chunk in chunks) == 101
        assert (
            len(llm.generate([0, 10, 20], SamplingParams(max_tokens=100, ignore_eos=True))[0].token_ids)
            == 100
        )


def test_many_threads_ask_at_once(llm: LLM) -> None:
    prompts = [[0, 10 + index, 20] for index in range(24)]
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    expected = llm.generate(prompts, params)
    got: dict[int, Any] = {}

    def ask(index: int) -> None:
        if index % 2:
            got[index] = llm.generate([prompts[index]], params)[0]
        else:
            stream = llm.stream(prompts[index], params)
            list(stream)
            got[index] = stream.completions()[0]

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [got[index] for index in range(24)] == expected


def test_abort_by_name(llm: LLM) -> None:
    stream = llm.stream([0, 10, 20], ENDLESS, request_id="mine")
    next(stream)
    with pytest.raises(RequestError, match="'mine' is in use"):
        llm.stream([0, 1], request_id="mine")
    llm.abort("mine")
    last = list(stream)[-1]
    assert (last.finish_reason, last.error) == ("abort", None)
    with pytest.raises(RequestError, match="no request 'mine' is under way"):
        llm.abort("mine")
    assert llm.stream([0, 1], SamplingParams(max_tokens=1), request_id="mine").request_id == "mine"
    for name in ("", 5):
        with pytest.raises(RequestError, match="request_id"):
            llm.stream([0, 1], request_id=name)  # type: ignore[arg-type]


def test_n_answers_share_the_prompt(llm: LLM) -> None:
    prompt = [0, *range(100, 164)]
    params = SamplingParams(n=3, max_tokens=8, ignore_eos=True)
    answers = llm.generate([prompt, [0, 5]], params)
    assert [answer.index for answer in answers] == [0, 1, 2, 0, 1, 2]
    assert len({answer.token_ids for answer in answers[:3]}) == 1
    assert [answer.cached_tokens for answer in answers[:3]] == [0, 64, 64]
    texts = {0: "", 1: "", 2: ""}
    for chunk in llm.stream(prompt, params):
        texts[chunk.index] += chunk.text
    assert set(texts.values()) == {answers[0].text}


def test_a_prompt_is_tokenised_once_for_all_answers(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand answers to a long prompt would hold up an event loop for a second."""
    asked = []
    encode = llm.model.tokenizer.encode

    def counted(text: str) -> tuple[int, ...]:
        asked.append(text)
        return encode(text)

    monkeypatch.setattr(llm.model.tokenizer, "encode", counted)
    assert len(llm.generate("San Francisco", SamplingParams(n=3, max_tokens=2))) == 3
    assert asked == ["San Francisco"]


def test_n_answers_that_do_not_fit_the_cache_together(demo_artifact: Path) -> None:
    with LLM(demo_artifact, kv_cache_bytes=1 << 20) as llm:
        with pytest.raises(RequestError, match=r"n is 9 .* lower n or max_tokens"):
            llm.generate([0, 1], SamplingParams(n=9, max_tokens=60))
        assert llm.stats().ended == {}


def test_a_closed_llm_says_so(demo_artifact: Path) -> None:
    llm = LLM(demo_artifact)
    stream = llm.stream([0, 10, 20], ENDLESS)
    llm.close()
    assert list(stream)[-1].finish_reason == "abort"
    with pytest.raises(EngineError, match="closed"):
        llm.generate([0, 1])
    llm.close()


def test_an_llm_that_is_dropped_ends_its_thread(demo_artifact: Path) -> None:
    before = threading.active_count()
    llm = LLM(demo_artifact, attention="reference")
    assert threading.active_count() > before
    del llm
    gc.collect()
    assert threading.active_count() == before


def test_when_the_loop_itself_breaks_everybody_is_told(demo_artifact: Path, caplog: Any) -> None:
    with LLM(demo_artifact) as llm:
        streams = [llm.stream([0, 10 + index], ENDLESS) for index in range(3)]
        for stream in streams:
            next(stream)

        def broken() -> None:
            raise RuntimeError("a bug")

        llm._thread._scheduler.schedule = broken  # type: ignore[method-assign, assignment]
        for stream in streams:
            last = list(stream)[-1]
            assert (last.finish_reason, last.error) == ("error", "RuntimeError: a bug")
        with pytest.raises(EngineError, match="cannot go on: RuntimeError: a bug"):
            llm.generate([0, 1])


def test_tasks_stream_together(demo_artifact: Path, llm: LLM) -> None:
    prompts = [[0, 10 + index, 20] for index in range(40)]
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    expected = [answer.text for answer in llm.generate(prompts, params)]

    async def ask(async_llm: AsyncLLM, prompt: list[int]) -> str:
        return "".join([chunk.text async for chunk in async_llm.stream(prompt, params)])

    async def run() -> tuple[list[str], Any, Any]:
        async with AsyncLLM(demo_artifact) as async_llm:
            texts = await asyncio.gather(*(ask(async_llm, prompt) for prompt in prompts))
            (whole,) = await async_llm.generate(prompts[0], params)
            chat = await async_llm.chat([{"role": "user", "content": "What is the capital of France?"}])
            return texts, whole, chat

    texts, whole, chat = asyncio.run(run())
    assert texts == expected
    assert whole.text == expected[0]
    assert chat[0].text == "The capital of France is Paris."


@pytest.mark.parametrize("leave", ["break", "cancel", "timeout", "aclose"])
def test_leaving_an_async_stream_gives_its_pages_back(demo_artifact: Path, leave: str) -> None:
    async def read(async_llm: AsyncLLM) -> None:
        if leave == "break":
            async for _ in async_llm.stream([0, 10], ENDLESS):
                break
        elif leave == "aclose":
            stream = async_llm.stream([0, 10], ENDLESS)
            await anext(stream)
            await stream.aclose()
            assert [chunk async for chunk in stream] == []
        elif leave == "timeout":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(async_llm.generate([0, 10], ENDLESS), 0.05)
        else:
            task = asyncio.create_task(async_llm.generate([0, 10], ENDLESS))
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def run() -> Any:
        async with AsyncLLM(demo_artifact) as async_llm:
            await read(async_llm)
            assert await async_llm.wait_until_idle(60)
            return async_llm.stats()

    stats = asyncio.run(run())
    assert (stats.pages_used, stats.running, stats.waiting) == (0, 0, 0)
    assert stats.ended == {"abort": 1}


def test_an_event_loop_that_ends_in_mid_stream_stops_nobody(demo_artifact: Path) -> None:
    async_llm = AsyncLLM(demo_artifact)
    kept = []

    async def begin() -> None:
        kept.append(async_llm.stream([0, 10], ENDLESS))
        await anext(kept[0])

    asyncio.run(begin())
    (answer,) = asyncio.run(async_llm.generate([0, 11], SamplingParams(max_tokens=5, ignore_eos=True)))
    assert len(answer.token_ids) == 5
    kept.clear()
    assert asyncio.run(async_llm.wait_until_idle(60))
    async_llm.close()
