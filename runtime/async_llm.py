"""The LLM for event loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

from cleave.runtime.chat import Message
from cleave.runtime.engine_call import EngineState
from cleave.runtime.loaded import Loaded
from cleave.runtime.observer import EngineObserver
from cleave.runtime.request import Completion, Prompt, SamplingParams
from cleave.runtime.stream import AsyncStream

T = TypeVar("T")


class AsyncLLM(Loaded):
    """A model that answers prompts from any number of asyncio tasks, in any number of event loops.

    >>> async with AsyncLLM("model_files/demo-artifact") as llm:
    ...     async for chunk in llm.stream("San Francisco is a"):
    ...         print(chunk.text, end="")
    """

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
        return AsyncStream(self._thread, *self._submit(prompt, params, request_id, priority))

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

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
