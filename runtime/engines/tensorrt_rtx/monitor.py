"""Progress of a build, and its end by Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cleave.runtime.engines.builder import BuildProgress

STEPS = 1000


@dataclass(slots=True)
class _Phase:
    name: str
    steps: int
    done: int = 0
    used: float = 0.0
    """Of the step under way, by phases within it that are over."""


class Phases:
    """How far a build is: phases lie within phases, each with a number of steps.

    How many phases a step has inside is not known beforehand: each of them counts as half of what is
    left of the step.
    """

    def __init__(self) -> None:
        self._open: list[_Phase] = []
        self._reached = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins within another, or by itself."""
        while self._open and self._open[-1].name != parent:
            self._open.pop()
        self._open.append(_Phase(name, max(steps, 1)))

    def step(self, name: str, number: int) -> None:
        """Step `number` of a phase is done."""
        for phase in self._open:
            if phase.name == name:
                phase.done, phase.used = number + 1, 0.0

    def finish(self, name: str) -> None:
        """A phase is over, and with it what lies within it."""
        names = [phase.name for phase in self._open]
        if name in names:
            del self._open[names.index(name) :]
            if self._open:
                self._open[-1].used += (1 - self._open[-1].used) / 2

    @property
    def fraction(self) -> float:
        """Of the whole build, between 0 and 1; it never falls."""
        share, fraction = 1.0, 0.0
        for phase in self._open:
            fraction += share * min((phase.done + phase.used) / phase.steps, 1)
            share *= (1 - phase.used) / 2 / phase.steps
        self._reached = max(self._reached, min(fraction, 1))
        return self._reached


def make_monitor(trt: Any, piece: str, progress: BuildProgress | None) -> Any:
    """An IProgressMonitor that reports, and that ends the build once anything was raised in it.

    The library cannot pass an exception on: its attribute `raised` has it after the build.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.raised: BaseException | None = None
            self._phases = Phases()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._guard(lambda: self._phases.start(phase_name, parent_phase, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._guard(lambda: self._step(phase_name, step))
            return self.raised is None

        def phase_finish(self, phase_name: str) -> None:
            self._guard(lambda: self._phases.finish(phase_name))

        def _step(self, phase_name: str, step: int) -> None:
            self._phases.step(phase_name, step)
            if progress is not None:
                progress(piece, int(self._phases.fraction * STEPS), STEPS)

        def _guard(self, action: Callable[[], None]) -> None:
            # Ctrl-C arrives here, where Python runs again: the build itself is native code.
            try:
                action()
            except BaseException as error:
                self.raised = self.raised or error

    return Monitor()
