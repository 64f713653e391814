"""The step loop over a device that does nothing before it is waited for."""

from __future__ import annotations

import logging

import pytest
from simulation.device import DeviceBackend, DeviceEngine, DeviceTokens, Stream
from simulation.fakes import LAYERS, Faults, answer_alone
from simulation.scenario import LATE_LIMIT, LATE_POISON, POISON, STOP, RequestPlan

from cleave.kvcache.server import AttentionServer
from cleave.kvcache.spec import AttentionSpec
from cleave.runtime.scheduler import Scheduler
from cleave.runtime.sequence import Sequence
from cleave.runtime.step_loop import EndedStep, StepLoop
from cleave.runtime.stepper import Stepper

PAGE = 4


class Rig:
    """Requests through a step loop over the fake device of the simulation."""

    def __init__(
        self, *plans: RequestPlan, num_pages: int = 40, faults: dict[int, str] | None = None
    ) -> None:
        self.stream = Stream()
        self.faults = Faults(faults or {})
        self.server = AttentionServer(
            [AttentionSpec(1, 1, 8, 1.0)] * LAYERS,
            backend=lambda shape: DeviceBackend(shape, faults=self.faults, stream=self.stream),
            num_pages=num_pages,
            page_size=PAGE,
            max_position=4096,
            max_tokens=64,
        )
        self.scheduler = Scheduler(self.server.pages, max_tokens=64, max_sequences=8)
        self.stepper = Stepper(DeviceEngine(self.faults, self.stream), self.server, DeviceTokens(self.stream))
        self.loop = StepLoop(self.scheduler, self.stepper)
        self.plans = plans
        self.sequences = [
            Sequence(name, plan.prompt, plan.max_tokens, frozenset((STOP,) if plan.stops else ()))
            for name, plan in enumerate(plans)
        ]
        for sequence in self.sequences:
            self.scheduler.add(sequence)

    def run(self) -> list[EndedStep]:
        ended = []
        while not self.loop.is_idle:
            ended += list(self.loop.advance())
            assert len(ended) < 1000
        self.server.check()
        assert self.server.free_pages == self.server.num_pages
        return ended

    def check(self) -> None:
        for plan, sequence in zip(self.plans, self.sequences, strict=True):
            alone = answer_alone(plan)
            assert (tuple(sequence.output), sequence.finish_reason) == (alone.tokens, alone.reason)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "cleave")


def plan(*prompt: int, max_tokens: int = 12, stops: bool = False) -> RequestPlan:
    return RequestPlan(0, prompt, max_tokens, stops=stops)


def test_the_next_step_is_launched_before_the_tokens_of_one_are_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(plan(1, 2, 3), plan(4, 5, max_tokens=5))
    events: list[str] = []
    launch, fetch, run = rig.stepper.launch, rig.stepper.fetch, rig.stepper.run
    for name, method in (("launch", launch), ("fetch", fetch), ("run", run)):
        monkeypatch.setattr(
            rig.stepper, name, lambda *a, name=name, method=method: (events.append(name), method(*a))[1]
        )
    rig.run()
    rig.check()
    assert events == ["launch", *["launch", "fetch"] * 11, "fetch"]


def test_what_the_device_cannot_sample_runs_in_lockstep_and_the_rest_ahead_again_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(plan(1, 2, 3, max_tokens=12), plan(4, 5, max_tokens=4))
    host = rig.sequences[1]
    can_launch = rig.stepper.can_launch
    monkeypatch.setattr(
        rig.stepper,
        "can_launch",
        lambda step: can_launch(step) and all(chunk.sequence is not host for chunk in step),
    )
    launches = 0
    launch = rig.stepper.launch

    def counted(*arguments: object) -> object:
        nonlocal launches
        launches += 1
        return launch(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(rig.stepper, "launch", counted)
    steps = rig.run()
    rig.check()
    assert (len(steps), launches) == (12, 8)


def test_a_request_that_makes_launches_fail_ends_alone() -> None:
    rig = Rig(plan(1, 2), plan(3, POISON), plan(5))
    rig.run()
    rig.check()
    assert rig.sequences[1].error == "Fault: poison"


def test_a_request_that_makes_the_device_fail_ends_alone() -> None:
    late = (LATE_POISON, *range(1, LATE_LIMIT - 3))
    rig = Rig(plan(1, 2), plan(*late), plan(5))
    steps = rig.run()
    rig.check()
    assert rig.sequences[1].error == "Fault: late poison"
    assert {0, 1, 2} in [step.outcome.lost for step in steps]


@pytest.mark.parametrize("fault", ["engine", "attention", "half_writes", "not_finite", "plan"])
@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_fault_that_passes_is_nobodys(fault: str, at: int) -> None:
    rig = Rig(plan(1, 2, 3), plan(4, 5), faults={at: fault})
    rig.run()
    rig.check()


def test_an_interrupt_while_a_step_is_waited_for_leaves_everything_in_order() -> None:
    rig = Rig(plan(1, 2, 3), plan(4, 5), faults={2: "interrupt"})
    with pytest.raises(KeyboardInterrupt):
        rig.run()
    rig.run()
    rig.check()
