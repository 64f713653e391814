"""The simulation is worth something: each of these planted faults makes it fail within a few seeds."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable

import pytest
from simulation.mutations import ahead, pages, steps
from simulation.run import Simulation
from simulation.scenario import random_scenario
from simulation.shrink import failure, shrink

MOST_SEEDS = 300

Patch = pytest.MonkeyPatch
MUTATIONS: list[Callable[[Patch], None]] = [
    plant
    for module in (pages, steps, ahead)
    for _, plant in inspect.getmembers(module, inspect.isfunction)
    if plant.__module__ == module.__name__
]


@pytest.mark.parametrize("plant", MUTATIONS, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_caught(
    plant: Callable[[Patch], None], monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "cleave")
    monkeypatch.setattr("simulation.run._MOST_STEPS", 1500)
    plant(monkeypatch)
    for seed in range(MOST_SEEDS):
        if failure(random_scenario(seed)) is not None:
            return
    pytest.fail(f"{MOST_SEEDS} seeds did not notice that {plant.__name__.replace('_', ' ')}")


def test_a_failing_scenario_shrinks(monkeypatch: Patch) -> None:
    pages.a_page_leaks_when_a_sequence_ends(monkeypatch)
    scenario = next(scenario for scenario in map(random_scenario, range(50)) if len(scenario.requests) > 5)
    shrunk = shrink(scenario)
    assert len(shrunk.requests) == 1
    assert not shrunk.faults
    with pytest.raises(Exception, match=r"page|sequence"):
        Simulation(shrunk).run()
