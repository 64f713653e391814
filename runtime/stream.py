"""Streams: the answers to one prompt, piece by piece, for threads and for event loops."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Self

from cleave.runtime.engine_thread import EngineThread
from cleave.runtime.generation import Generation
from cleave.runtime.mailbox import Mailbox
from cleave.runtime.request import Chunk, Completion


class _Reading:
    """What both kinds of streams share: they end with the generation, or end it when they are left."""

    def __init__(self, engine_thread: EngineThread, generation: Generation, mailbox: Mailbox) -> None:
        self._engine_thread = engine_thread
        self._generation = generation
        self._mailbox = mailbox
        self._open = len(generation.answers)

    @property
    def request_id(self) -> str:
        """The name to abort it by."""
        return self._generation.request_id

    @property
    def prompt_token_ids(self) -> tuple[int, ...]:
        """The prompt as the model sees it."""
        return self._generation.answers[0].sequence.prompt

    def texts(self) -> list[str]:
        """The texts of the answers so far."""
        return [answer.text for answer in self._generation.answers]

    def completions(self) -> list[Completion]:
        """The whole answers, once all have ended."""
        return self._generation.completions()

    def _passed_on(self, chunk: Chunk) -> Chunk:
        if chunk.finish_reason is not None:
            self._open -= 1
        return chunk

    def _leave(self) -> None:
        if self._open:
            self._open = 0
            self._engine_thread.discard(self._generation)

    def __del__(self) -> None:
        self._leave()


class Stream(_Reading, Iterator[Chunk]):
    """Chunks of one request; an iterator and a context manager.

    Leaving it calls the request off, and its pages are free before the next step: by `close`, by the end
    of a `with`, or by dropping the last reference, as the end of a `for` loop does.
    """

    def __next__(self) -> Chunk:
        if not self._open:
            raise StopIteration
        return self._passed_on(self._mailbox.take())

    def close(self) -> None:
        """Leave it."""
        self._leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()


class AsyncStream(_Reading, AsyncIterator[Chunk]):
    """Chunks of one request for an event loop; an asynchronous iterator and context manager.

    It is left as a `Stream` is, and also when the task that reads it is cancelled.
    """

    async def __anext__(self) -> Chunk:
        if not self._open:
            raise StopAsyncIteration
        try:
            return self._passed_on(await self._mailbox.take_async())
        except BaseException:
            self._leave()
            raise

    async def aclose(self) -> None:
        """Leave it."""
        self._leave()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
