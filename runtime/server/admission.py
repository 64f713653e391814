"""Admission: how many answers may be under way, and for which requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cleave.runtime.server.errors import Refused

_RETRY_AFTER = "1"


@dataclass(slots=True)
class Slot:
    """The place of one request."""

    answers: int
    _abort: Callable[[], None] | None = None
    _is_over: bool = False

    def begin(self, abort: Callable[[], None]) -> None:
        """The request is in the engine, and `abort` calls it off."""
        self._abort = abort
        if self._is_over:
            abort()

    def abort(self) -> None:
        """Call the request off, now or when it begins."""
        self._is_over = True
        if self._abort is not None:
            self._abort()


class Admission:
    """A slot for every request that is under way. Used by one event loop alone."""

    def __init__(self, limit: int) -> None:
        """`limit`: answers that may run and wait, all requests together."""
        self.limit = limit
        self._open: dict[str, Slot] = {}
        self._answers = 0
        self.refused = 0

    @property
    def requests(self) -> int:
        """Requests under way."""
        return len(self._open)

    @property
    def answers(self) -> int:
        """Answers that they ask for."""
        return self._answers

    def enter(self, request_id: str, answers: int) -> Slot:
        """Take a slot. Raises Refused where there is none, or the id is in use."""
        if request_id in self._open:
            raise Refused("conflict", f"the request id {request_id} is in use; give each request its own")
        if answers > self.limit:
            raise Refused(
                "validation",
                f"the request asks for {answers} answers; at most {self.limit} may be under way at once",
            )
        if self._answers + answers > self.limit:
            self.refused += 1
            raise Refused(
                "overloaded",
                f"{self._answers} answers are under way, and at most {self.limit} may be; try again later",
                Retry_After=_RETRY_AFTER,
            )
        slot = self._open[request_id] = Slot(answers)
        self._answers += answers
        return slot

    def leave(self, request_id: str) -> None:
        """Give the slot back."""
        self._answers -= self._open.pop(request_id).answers

    def abort(self, request_id: str) -> None:
        """Call a request off. Raises Refused where it is not under way."""
        if request_id not in self._open:
            raise Refused(
                "not_found", f"no request {request_id!r:.200} is under way; it may have ended already"
            )
        self._open[request_id].abort()

    def abort_all(self) -> None:
        """Call everything off."""
        for slot in self._open.values():
            slot.abort()
