"""A hostile request is refused or bounded: it takes neither the process, nor its memory, nor minutes."""

from __future__ import annotations

import json
from pathlib import Path

from command import process
from vocabularies import DEMO

MEMORY_BYTES = 600 << 20
REFUSED = {
    "parentheses", "nested groups", "deep text", "embedded schema", "exponential terminals", "long terminal",
    "intersections", "exponential objects",
}  # fmt: skip
"""Refused before anything runs; the others may be, and then end by themselves where they get too costly."""


def test_hostile_inputs_are_refused_or_bounded() -> None:
    """In a process of its own, which the system ends after a minute of processor time."""
    ended = process([Path(__file__).with_name("hostile.py"), DEMO])
    assert ended.code == 0, ended
    outcomes, grown = map(json.loads, ended.out.splitlines())
    assert {name for name, outcome in outcomes.items() if outcome == "refused"} >= REFUSED
    assert {"ranges", "large enum", "chain of rules", "chain of references", "deep schema"} <= {
        name for name, outcome in outcomes.items() if outcome == "runs"
    }
    assert grown < MEMORY_BYTES
