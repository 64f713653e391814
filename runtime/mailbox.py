"""Between the engine thread and a reader: bounded, and never in anybody's way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable

from cleave.runtime.request import Chunk

Wakeups = dict[asyncio.AbstractEventLoop, list["asyncio.Future[None]"]]
"""What to resolve in which event loop, so that each loop is called once a step."""


class Mailbox:
    """Chunks of one request on their way to its reader.

    Writing never blocks. A reader that lags gets what came meanwhile as one chunk, so it catches up with
    a single read, and memory is bounded by the tokens that may lie unread.
    """

    def __init__(self, limit: int) -> None:
        """At most `limit` tokens lie unread; the writer asks `is_full` and calls the request off."""
        self._limit = limit
        self._ready = threading.Condition()
        self._waiting: dict[int, Chunk] = {}
        self._tokens = 0
        self._future: asyncio.Future[None] | None = None

    @property
    def is_full(self) -> bool:
        """Whether the reader has left more unread than it may."""
        return self._tokens > self._limit

    def put(self, chunk: Chunk, wakeups: Wakeups) -> None:
        """Add a chunk. A reader in an event loop is noted in `wakeups`, any other is woken at once."""
        with self._ready:
            before = self._waiting.get(chunk.index)
            self._waiting[chunk.index] = chunk if before is None else before + chunk
            self._tokens += len(chunk.token_ids)
            future, self._future = self._future, None
            if future is not None:
                wakeups.setdefault(future.get_loop(), []).append(future)
            self._ready.notify()

    def take(self) -> Chunk:
        """The next chunk; blocks until there is one."""
        with self._ready:
            while not self._waiting:
                self._ready.wait()
            return self._pop()

    async def take_async(self) -> Chunk:
        """The next chunk, for a reader in an event loop."""
        while True:
            with self._ready:
                if self._waiting:
                    return self._pop()
                future = self._future = asyncio.get_running_loop().create_future()
            await future

    def _pop(self) -> Chunk:
        chunk = self._waiting.pop(next(iter(self._waiting)))
        self._tokens -= len(chunk.token_ids)
        return chunk


def wake(wakeups: Wakeups) -> None:
    """Resolve what the writers noted; readers whose event loop is closed are gone."""
    for loop, futures in wakeups.items():
        try:
            loop.call_soon_threadsafe(_resolve, futures)
        except RuntimeError:
            if not loop.is_closed():
                raise


def _resolve(futures: Iterable[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
