"""A stepper and a scheduler that look at what they do, and say so where it may not be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cleave.kvcache.server import AttentionServer
from cleave.runtime.scheduler import Scheduler
from cleave.runtime.sequence import Sequence
from cleave.runtime.step import Step, StepOutcome
from cleave.runtime.stepper import Launch, Stepper


class Violation(AssertionError):
    """Something that must always hold did not."""


def require(holds: bool, message: str) -> None:
    """Raise Violation unless it holds."""
    if not holds:
        raise Violation(message)


class WatchedStepper(Stepper):
    """A stepper that sees to it that a failed part of a step changes nothing.

    It takes what a violation raises for one more failed run, so `violation` keeps it.
    """

    def __init__(
        self, engine: Any, attention: AttentionServer, tokens: Any, before_fetch: Callable[[], None]
    ) -> None:
        super().__init__(engine, attention, tokens)
        self.failed = 0
        self.launches = 0
        self.violation: AssertionError | None = None
        self._before_fetch = before_fetch

    def launch(self, step: Step, before: Launch | None) -> Launch:
        """See Stepper."""
        pages = self._attention.pages
        state, evicted = snapshot(pages), pages.stats.evicted_pages
        try:
            launch = super().launch(step, before)
        except AssertionError as violation:
            self.violation = self.violation or violation
            raise
        except BaseException:
            self.failed += 1
            self._compare(state, evicted)
            raise
        self.launches += 1
        return launch

    def fetch(self, launch: Launch, outcome: StepOutcome) -> None:
        """See Stepper."""
        self._before_fetch()
        super().fetch(launch, outcome)
        self.failed += bool(outcome.lost)

    def _run(self, group: Step, outcome: StepOutcome) -> None:
        pages = self._attention.pages
        before, evicted = snapshot(pages), pages.stats.evicted_pages
        tokens = dict(outcome.tokens)
        try:
            super()._run(group, outcome)
        except AssertionError as violation:
            self.violation = self.violation or violation
            raise
        except BaseException:
            self.failed += 1
            try:
                self._compare(before, evicted)
                require(outcome.tokens == tokens, "a failed step yielded tokens")
            except Violation as violation:
                self.violation = self.violation or violation
            raise

    def _compare(self, before: dict[str, Any], evicted: int) -> None:
        """What a failed step may have changed: pages that were evicted for it stay evicted."""
        pages = self._attention.pages
        after = snapshot(pages)
        require(not pages.has_step, "a failed step is still planned")
        require(after["tables"] == before["tables"], "a failed step changed page tables or lengths")
        require(after["available"] == before["available"], "a failed step lost or made pages")
        require(after["findable"] <= before["findable"], "a failed step made pages findable")
        gone = len(before["findable"]) - len(after["findable"])
        require(gone == pages.stats.evicted_pages - evicted, "a failed step forgot pages")


class WatchedScheduler(Scheduler):
    """A scheduler that sees to it that the least urgent is preempted, and nobody right after admission.

    Out and in again is right: copies of pages that another sequence filled first are given up for those.
    """

    scheduled: Callable[[Step], None]
    """Is told of every step."""
    ended: Callable[[Sequence], None]
    """Is told of every sequence that ends with a step."""

    def schedule(self) -> Step:
        """See Scheduler."""
        self._moved: set[int] = set()  # admitted or preempted
        step = super().schedule()
        self.scheduled(step)
        return step

    def commit(self, outcome: StepOutcome) -> list[Sequence]:
        """See Scheduler."""
        ended = super().commit(outcome)
        for sequence in ended:
            self.ended(sequence)
        return ended

    def _preempt(self, victim: Sequence, draft: Any) -> None:
        require(victim.id not in self._moved, f"sequence {victim.id} goes to and fro within one step")
        least = max(self._running, key=lambda sequence: sequence.urgency)
        require(victim is least, f"sequence {victim.id} is preempted, and {least.id} is less urgent")
        self._moved.add(victim.id)
        super()._preempt(victim, draft)

    def _admit(self, head: Sequence, draft: Any) -> bool:
        is_admitted = super()._admit(head, draft)
        if is_admitted:
            self._moved.add(head.id)
        return is_admitted


def snapshot(pages: Any) -> dict[str, Any]:
    """What a failed step may not change."""
    return {
        "tables": {name: (table.length, table.pages.tolist()) for name, table in pages._tables.items()},
        "findable": set(pages._prefix._pages.items()),
        "available": pages.available_pages,
    }
