"""The step loop: what the scheduler decides is run, one step ahead of its tokens where that can be."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

from cleave.runtime.scheduler import Scheduler
from cleave.runtime.step import Step, StepOutcome
from cleave.runtime.stepper import Launch, Stepper

_log = logging.getLogger("cleave")


@dataclass(frozen=True, slots=True)
class EndedStep:
    """A step that was committed."""

    step: Step
    outcome: StepOutcome
    began: float
    """When it was first thought of, or the step before it ended, on the clock of `time.monotonic`."""


class StepLoop:
    """Runs steps of one scheduler with one stepper.

    While the device runs a step, the next one is scheduled, planned and launched; its token ids that are not
    known yet it takes from where the first one leaves them on the device. Then the tokens of the first one
    are waited for. A step that needs the host between logits and token, or that cannot be launched, waits
    until the one before it has ended, and is run in lockstep: the device waits for the host.
    """

    def __init__(self, scheduler: Scheduler, stepper: Stepper, *, ahead: bool = True) -> None:
        """`ahead=False`: every step is run in lockstep."""
        self._ahead = ahead
        self._scheduler = scheduler
        self._stepper = stepper
        self._under_way: tuple[Launch, float] | None = None
        self._last_end = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to do."""
        return self._scheduler.is_idle

    def advance(self) -> Iterator[EndedStep]:
        """Start one more step, where there is one, and end those before it that need not run on.

        Gives the steps that ended, in order, each as soon as it has.
        """
        began = time.monotonic()
        before = self._under_way
        left, self._scheduler.left = self._scheduler.left, []
        self._stepper.forget(left)
        step = self._scheduler.schedule()
        launch = self._launch(step, before[0] if before is not None else None)
        if launch is None and not step and before is None:
            raise RuntimeError("the scheduler has nothing to run, and requests are waiting")
        self._under_way = None if launch is None else (launch, began)
        if before is not None:
            if launch is None and step:
                self._scheduler.withdraw()
            yield self._end(*before)
            if launch is None and step:
                step = self._scheduler.schedule()
        if launch is None and step:
            yield self._run(step, began)

    def drain(self) -> None:
        """Wait for the step under way; nobody is told what comes of it."""
        if self._under_way is not None:
            launch, _ = self._under_way
            self._under_way = None
            self._stepper.fetch(launch, StepOutcome())

    def _launch(self, step: Step, before: Launch | None) -> Launch | None:
        """Launch the scheduled step; None where it has to be run in lockstep."""
        if not (step and self._ahead and self._stepper.can_launch(step)):
            return None
        try:
            launch = self._stepper.launch(step, before)
        except Exception as error:
            _log.warning("a step of %d requests cannot be launched: %s", len(step), error)
            return None
        except BaseException:
            self._scheduler.withdraw()
            raise
        self._scheduler.launched()
        return launch

    def _end(self, launch: Launch, began: float) -> EndedStep:
        outcome = StepOutcome()
        try:
            self._stepper.fetch(launch, outcome)
        finally:
            self._scheduler.commit(outcome)
        return self._ended(launch.step, outcome, began)

    def _run(self, step: Step, began: float) -> EndedStep:
        outcome = StepOutcome()
        try:
            self._stepper.run(step, outcome)
        finally:
            self._scheduler.commit(outcome)
        return self._ended(step, outcome, began)

    def _ended(self, step: Step, outcome: StepOutcome, began: float) -> EndedStep:
        began, self._last_end = max(began, self._last_end), time.monotonic()
        return EndedStep(step, outcome, began)
