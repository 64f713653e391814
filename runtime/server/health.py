"""Whether the engine can go on."""

from __future__ import annotations

import sys

from cleave.errors import EngineError
from cleave.runtime.async_llm import AsyncLLM
from cleave.runtime.request import SamplingParams

_TOKEN = 0
_PROBE = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
_FIRST = -sys.maxsize


class EngineHealth:
    """Tells a request that the engine cannot compute from an engine that cannot compute.

    After an answer that ended with an error, a request that nothing can be wrong with says which it was.
    """

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm
        self._errors = 0
        self._failure: str | None = None

    @property
    def failure(self) -> str | None:
        """Why the engine cannot go on; None where it can."""
        return self._failure or self._llm.failure

    async def look(self) -> None:
        """Look again; costs nothing where no answer has ended with an error meanwhile."""
        errors = self._llm.stats().ended.get("error", 0)
        if errors == self._errors or self.failure is not None:
            return
        try:
            (answer,) = await self._llm.generate([_TOKEN], _PROBE, priority=_FIRST)
        except EngineError:
            return  # The engine thread has ended, and says why itself.
        if answer.finish_reason == "error":
            self._failure = answer.error
        self._errors = errors
