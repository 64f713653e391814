"""Whatever arrives, fails or is called off: nobody is torn, lost, stalled for ever, or blamed for others."""

from __future__ import annotations

import logging
from collections import Counter

import pytest
from simulation.run import Simulation
from simulation.scenario import random_scenario
from simulation.shrink import describe

SEEDS_A_TEST = 125
TESTS = 8


@pytest.mark.parametrize("first", range(0, TESTS * SEEDS_A_TEST, SEEDS_A_TEST))
def test_every_request_ends_as_if_it_were_alone(first: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "cleave")
    counts: Counter[str] = Counter()
    for seed in range(first, first + SEEDS_A_TEST):
        try:
            counts += Simulation(random_scenario(seed)).run().counts
        except Exception:
            pytest.fail(describe(seed) or f"seed {seed} failed once and not again", pytrace=False)
    assert counts["steps"] > 50 * SEEDS_A_TEST
    for event in ("preemptions", "found tokens", "evicted pages", "steps searched", "interrupts"):
        assert counts[event] > 10, f"the scenarios hardly have any {event}"
    for reason in ("stop", "length", "abort", "error"):
        assert counts[f"ended by {reason}"] > 10, f"hardly a request was ended by {reason}"


def test_the_same_seed_gives_the_same_schedule() -> None:
    for seed in range(20):
        first, second = (Simulation(random_scenario(seed)) for _ in range(2))
        assert first.run().counts == second.run().counts
        assert first.seen == second.seen
