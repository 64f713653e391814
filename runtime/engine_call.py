"""A look into the engine between two steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from cleave.errors import EngineError
from cleave.kvcache.page_manager import PageManager
from cleave.runtime.generation import Answer, Generation
from cleave.runtime.mailbox import Wakeups

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EngineState:
    """What the engine thread owns, for a function that it runs: to look at, not to change or keep."""

    pages: PageManager
    answers: Mapping[int, tuple[Generation, Answer]]
    """Sequence id -> the request and the answer that it belongs to, of all that have not ended."""


class EngineCall(Generic[T]):
    """A function on its way to the engine thread, and the future of its result."""

    def __init__(self, function: Callable[[EngineState], T], state: EngineState) -> None:
        self._function = function
        self._state = state
        self.future: Future[T] = Future()

    def __call__(self, wakeups: Wakeups) -> None:
        """Run it; what it raises goes to the future."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self._function(self._state))
        except Exception as error:
            self.future.set_exception(error)

    def refuse(self, why: str) -> None:
        """It will not be run any more."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(EngineError(why))
