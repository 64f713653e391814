"""Find the simplest scenario that still fails, and say how to see it again."""

from __future__ import annotations

from simulation.run import Simulation
from simulation.scenario import Scenario, random_scenario, smaller

_MOST_TRIES = 3000


def failure(scenario: Scenario) -> Exception | None:
    """What goes wrong in a scenario."""
    try:
        Simulation(scenario).run()
    except Exception as error:
        return error
    return None


def shrink(scenario: Scenario) -> Scenario:
    """A simplest scenario that fails, starting from one that does."""
    tries = 0
    found = True
    while found and tries < _MOST_TRIES:
        found = False
        for candidate in smaller(scenario):
            tries += 1
            if failure(candidate) is not None:
                scenario, found = candidate, True
                break
    return scenario


def describe(seed: int) -> str | None:
    """What is wrong with a seed, where something is: the replay command and the shrunk scenario."""
    scenario = random_scenario(seed)
    error = failure(scenario)
    if error is None:
        return None
    shrunk = shrink(scenario)
    last = failure(shrunk)
    return (
        f"seed {seed}: {type(error).__name__}: {error}\n"
        f"shrunk: {type(last).__name__}: {last}\n{shrunk}\n"
        f"replay: make sim SEED={seed}"
    )
