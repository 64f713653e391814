"""The LLM for event loops."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from cleave.export.artifact import Progress
from cleave.runtime.chat import Message
from cleave.runtime.engine_call import EngineState
from cleave.runtime.engine_thread import EngineThread
from cleave.runtime.intake import Intake
from cleave.runtime.llm import shut_down
from cleave.runtime.mailbox import Mailbox
from cleave.runtime.model import Model
from cleave.runtime.model_options import ModelOptions
from cleave.runtime.observer import EngineObserver
from cleave.runtime.request import Completion, Prompt, SamplingParams
from cleave.runtime.stats import Stats
from cleave.runtime.stream import AsyncStream

T = TypeVar("T")


class AsyncLLM:
    """A model that answers prompts from any number of asyncio tasks, in any number of event loops.

    >>> async with AsyncLLM("model_files/demo-artifact") as llm:
    ...     async for chunk in llm.stream("San Francisco is a"):
    ...         print(chunk.text, end="")
    """

    def __init__(
        self,
        artifact: str | Path,
        engine: str | None = None,
        *,
        progress: Progress | None = None,
        **options: Any,
    ) -> None:
        """Load the artifact in a folder, which blocks; see `LLM`."""
        self._model = Model(artifact, ModelOptions(engine=engine, **options), progress)
        self._thread = EngineThread(self._model)
        self._intake = Intake(self._model)
        self._finalizer = weakref.finalize(self, shut_down, self._thread, self._model)

    @property
    def model(self) -> Model:
        """The engine, attention server and tokenizer behind it."""
        return self._model

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
    ) -> AsyncStream:
        """Answer one prompt piece by piece. Leaving the iterator early calls the request off.

        The prompt is checked and queued at once, in the calling thread; `asyncio.to_thread` keeps the
        event loop free where prompts are very long. Raises RequestError if the prompt is not allowed or
        `request_id` is in use.
        """
        mailbox = Mailbox(self._model.options.max_unread_tokens)
        generation = self._intake.generation(
            prompt, params, mailbox, request_id=request_id, priority=priority
        )
        self._thread.submit([generation])
        return AsyncStream(self._thread, generation, mailbox)

    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_options: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        priority: int = 0,
    ) -> AsyncStream:
        """Answer one conversation piece by piece, through the checkpoint's chat template."""
        prompt = self._model.chat_prompt(messages, tools, template_options)
        return self.stream(prompt, params, request_id=request_id, priority=priority)

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
    ) -> list[Completion]:
        """The `n` answers to one prompt, once they are whole. Cancelling the task calls them off."""
        async with self.stream(prompt, params, request_id=request_id, priority=priority) as stream:
            async for _ in stream:
                pass
            return stream.completions()

    async def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_options: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        priority: int = 0,
    ) -> list[Completion]:
        """The `n` answers to one conversation, once they are whole."""
        prompt = self._model.chat_prompt(messages, tools, template_options)
        return await self.generate(prompt, params, request_id=request_id, priority=priority)

    def abort(self, request_id: str) -> None:
        """Call a request off, which ends with the finish reason "abort".

        Raises RequestError where no request of that name is under way.
        """
        self._thread.abort(request_id)

    def stats(self) -> Stats:
        """What is running and waiting, the pages, and counts since the model was loaded."""
        return self._thread.stats()

    async def look(self, function: Callable[[EngineState], T]) -> T:
        """What a function makes of the engine's state between two steps; the engine waits for it.

        Raises EngineError where nothing runs any more.
        """
        return await asyncio.wrap_future(self._thread.call(function))

    def observe(self, observer: EngineObserver) -> None:
        """Tell an observer of every step, and of how requests fare that are submitted from now on."""
        self._thread.observe(observer)

    def ignore(self, observer: EngineObserver) -> None:
        """Tell an observer nothing more."""
        self._thread.ignore(observer)

    @property
    def failure(self) -> str | None:
        """Why nothing runs any more, and the model has to be loaded again; None where all is well."""
        return self._thread.failure

    async def wait_until_idle(self, timeout: float | None = None) -> bool:
        """Whether nothing is under way any more, after at most `timeout` seconds; None: however long."""
        return await asyncio.to_thread(self._thread.wait_until_idle, timeout)

    def close(self) -> None:
        """Call off what runs, give back memory and threads; waits for the step under way."""
        self._finalizer()

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
