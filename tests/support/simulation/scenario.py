"""What happens in one simulation: all of it follows from a seed, and is plain data, so that it shrinks."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

VOCAB = 64
STOP = 60
POISON = 61
"""The engine fails on a step with this token."""
LATE_POISON = 62
"""A sequence that begins with this token fails once more than `LATE_LIMIT` of its tokens are stored."""
LATE_LIMIT = 12

FAULTS = (
    "plan", "engine", "attention", "half_writes", "not_finite", "second_mask", "interrupt",
    "interrupt_in_plan",
)  # fmt: skip


@dataclass(frozen=True)
class RequestPlan:
    """One request, and what becomes of it from outside. Times are counted in steps."""

    arrives: int
    prompt: tuple[int, ...]
    max_tokens: int
    priority: int = 0
    stops: bool = False
    aborted: int | None = None
    aborted_in_flight: bool = False
    """The call comes between schedule() and commit(), or while two steps are launched."""


@dataclass(frozen=True)
class Scenario:
    """One simulation."""

    num_pages: int
    page_size: int
    max_tokens: int
    max_sequences: int
    places_per_priority: int
    prefix_cache: bool
    requests: tuple[RequestPlan, ...]
    faults: dict[int, str] = field(default_factory=dict)
    """Which run of the engine, counted from 0, meets what. No two in a row, so none is a lone culprit."""
    ahead: bool = False
    """On a device: steps are launched before the tokens of the one before are known."""


def random_scenario(seed: int) -> Scenario:
    """The scenario of a seed."""
    rng = random.Random(seed)
    page_size = rng.choice((1, 2, 4, 4, 8))
    prefixes = [_tokens(rng, rng.randint(page_size, 5 * page_size)) for _ in range(rng.randint(1, 3))]
    poisons = rng.random() < 0.4
    requests: list[RequestPlan] = []
    for _ in range(rng.choice((1, 2, 4, 8, 12, 18))):
        if requests and rng.random() < 0.15:
            requests.append(replace(rng.choice(requests), arrives=rng.randint(0, 30)))
        else:
            requests.append(_request(rng, prefixes, poisons))
    longest = max(len(request.prompt) + request.max_tokens - 1 for request in requests)
    smallest = -(-longest // page_size)
    if rng.random() < 0.1:
        smallest = max(1, smallest - rng.randint(1, 2))  # some request is refused
    faults: dict[int, str] = {}
    if rng.random() < 0.6:
        for run in sorted(rng.sample(range(60), rng.randint(1, 8))):
            if run - 1 not in faults:
                faults[run] = rng.choice(FAULTS)
    is_tight = rng.random() < 0.6
    spare = rng.choice((0, 1, 2, 4) if is_tight else (smallest // 2, smallest, 3 * smallest))
    return Scenario(
        num_pages=smallest + spare,
        page_size=page_size,
        max_tokens=rng.choice((2, 3, 5, 8, 16, 64)),
        max_sequences=rng.choice((1, 2, 3, 5, 8, 16, 16)),
        places_per_priority=rng.choice((1, 3, 1000)),
        prefix_cache=rng.random() < 0.8,
        requests=tuple(requests),
        faults=faults,
        ahead=rng.random() < 0.5,
    )


def _tokens(rng: random.Random, count: int) -> tuple[int, ...]:
    return tuple(rng.randrange(STOP) for _ in range(count))


def _request(rng: random.Random, prefixes: list[tuple[int, ...]], poisons: bool) -> RequestPlan:
    prompt = _tokens(rng, rng.choice((1, 1, 2, 3, 5, 8, 13, 21, 34)))
    if rng.random() < 0.6:
        prefix = rng.choice(prefixes)
        prompt = prefix[: rng.randint(1, len(prefix))] + prompt[: rng.randint(1, len(prompt))]
    if poisons and rng.random() < 0.25:
        place = rng.randrange(len(prompt))
        prompt = (*prompt[:place], POISON, *prompt[place + 1 :])
    elif poisons and rng.random() < 0.25:
        prompt = (LATE_POISON, *prompt[1:])
    return RequestPlan(
        arrives=rng.choice((0, 0, rng.randint(0, 30))),
        prompt=prompt,
        max_tokens=rng.choice((1, 2, 4, 8, 16, 24, 40)),
        priority=rng.choice((0, 0, 0, -1, 1, 2)),
        stops=rng.random() < 0.5,
        aborted=rng.randint(0, 40) if rng.random() < 0.15 else None,
        aborted_in_flight=rng.random() < 0.5,
    )


def smaller(scenario: Scenario) -> Iterator[Scenario]:
    """Scenarios that are one step simpler, the largest cuts first."""
    requests = scenario.requests
    for index in range(len(requests)):
        if len(requests) > 1:
            yield replace(scenario, requests=requests[:index] + requests[index + 1 :])
    if scenario.faults:
        yield replace(scenario, faults={})
    for run in scenario.faults:
        yield replace(scenario, faults={key: kind for key, kind in scenario.faults.items() if key != run})
    if scenario.ahead:
        yield replace(scenario, ahead=False)
    for index, request in enumerate(requests):
        for change in _simpler(request):
            yield replace(scenario, requests=(*requests[:index], change, *requests[index + 1 :]))
    for change in ({"prefix_cache": False}, {"max_sequences": 2}, {"page_size": 4}, {"max_tokens": 8}):
        changed = replace(scenario, **change)
        if changed != scenario:
            yield changed


def _simpler(request: RequestPlan) -> Iterator[RequestPlan]:
    if request.aborted is not None:
        yield replace(request, aborted=None)
    if request.priority:
        yield replace(request, priority=0)
    if request.stops:
        yield replace(request, stops=False)
    if request.arrives:
        yield replace(request, arrives=request.arrives // 2)
    if request.max_tokens > 1:
        yield replace(request, max_tokens=request.max_tokens // 2)
    if len(request.prompt) > 1:
        yield replace(request, prompt=request.prompt[: len(request.prompt) // 2])
        yield replace(request, prompt=request.prompt[:-1])
