"""The mailbox: nothing lost, nothing reordered, bounded, for readers in threads and in event loops."""

from __future__ import annotations

import asyncio
import threading

import pytest

from cleave.runtime.mailbox import Mailbox, Wakeups, wake
from cleave.runtime.request import Chunk


def chunk(token: int, *, index: int = 0, last: bool = False) -> Chunk:
    return Chunk(f"{token} ", (token,), "stop" if last else None, index=index)


def put(mailbox: Mailbox, *chunks: Chunk) -> None:
    wakeups: Wakeups = {}
    for one in chunks:
        mailbox.put(one, wakeups)
    wake(wakeups)


def test_a_reader_that_lags_gets_one_chunk() -> None:
    mailbox = Mailbox(10)
    put(mailbox, chunk(1), chunk(2), chunk(3, last=True))
    assert mailbox.take() == Chunk("1 2 3 ", (1, 2, 3), "stop")


def test_answers_are_kept_apart() -> None:
    mailbox = Mailbox(10)
    put(mailbox, chunk(1), chunk(2, index=1), chunk(3), chunk(4, index=1, last=True))
    assert mailbox.take() == Chunk("1 3 ", (1, 3), None)
    assert mailbox.take() == Chunk("2 4 ", (2, 4), "stop", index=1)


def test_what_lies_unread_is_counted() -> None:
    mailbox = Mailbox(2)
    put(mailbox, chunk(1), chunk(2))
    assert not mailbox.is_full
    put(mailbox, chunk(3))
    assert mailbox.is_full
    mailbox.take()
    assert not mailbox.is_full


def test_a_thread_that_waits_is_woken() -> None:
    mailbox = Mailbox(10_000)
    got: list[int] = []

    def read() -> None:
        while True:
            one = mailbox.take()
            got.extend(one.token_ids)
            if one.finish_reason is not None:
                return

    reader = threading.Thread(target=read)
    reader.start()
    for token in range(2000):
        put(mailbox, chunk(token, last=token == 1999))
    reader.join(60)
    assert got == list(range(2000))


def test_tasks_of_several_event_loops_are_woken() -> None:
    boxes = [Mailbox(10_000) for _ in range(6)]
    got: list[list[int]] = [[] for _ in boxes]

    async def read(which: int) -> None:
        while True:
            one = await boxes[which].take_async()
            got[which].extend(one.token_ids)
            if one.finish_reason is not None:
                return

    async def several(which: range) -> None:
        await asyncio.gather(*(read(one) for one in which))

    loops = [
        threading.Thread(target=lambda which=which: asyncio.run(several(which)))
        for which in (range(3), range(3, 6))
    ]
    for loop in loops:
        loop.start()
    for token in range(500):
        wakeups: Wakeups = {}
        for box in boxes:
            box.put(chunk(token, last=token == 499), wakeups)
        assert len(wakeups) <= 2
        wake(wakeups)
    for loop in loops:
        loop.join(60)
    assert got == [list(range(500))] * 6


def test_a_reader_that_was_cancelled_loses_nothing() -> None:
    mailbox = Mailbox(10)

    async def run() -> Chunk:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(mailbox.take_async(), 0.01)
        put(mailbox, chunk(7, last=True))
        return await mailbox.take_async()

    assert asyncio.run(run()).token_ids == (7,)


def test_an_event_loop_that_is_closed_stops_nobody() -> None:
    mailbox, other = Mailbox(10), Mailbox(10)
    loop = asyncio.new_event_loop()
    task = loop.create_task(mailbox.take_async())
    loop.run_until_complete(asyncio.sleep(0))
    wakeups: Wakeups = {}
    mailbox.put(chunk(1), wakeups)
    other.put(chunk(2), wakeups)
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()
    wake(wakeups)
    assert other.take().token_ids == (2,)
