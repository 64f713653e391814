"""Requests made at random after the OpenAPI schema, and past it: none is answered with a 5xx."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode
from schemathesis.schemas import BaseSchema
from served import Served

MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)


@pytest.fixture(scope="module")
def served(demo_artifact: Path) -> Iterator[Served]:
    # A short context, since many of these requests generate until it is full.
    with Served(demo_artifact, max_model_len=48) as server:
        yield server
        server.idle()


@pytest.fixture(scope="module")
def api(served: Served) -> BaseSchema:
    """Everything but the live picture, which is a stream without an end."""
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json").exclude(path="/ui/live")


def fuzz(api: BaseSchema, mode: GenerationMode, examples: int) -> set[int]:
    """Call every operation with so many requests; gives back the status codes that came."""
    found = set()
    for result in api.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def call(case: schemathesis.Case) -> None:
            answer = case.call(timeout=60)
            assert answer.status_code < 500, answer.text
            assert answer.headers["x-request-id"]
            found.add(answer.status_code)

        # Where there is nothing to send, there is nothing wrong to send.
        with suppress(Unsatisfiable):
            call()
    return found


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_no_request_makes_the_server_fail(api: BaseSchema, mode: GenerationMode) -> None:
    found = fuzz(api, mode, 25)
    assert found >= ({200, 422} if mode is GenerationMode.POSITIVE else {400, 422})


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_no_request_of_very_many_makes_the_server_fail(api: BaseSchema, mode: GenerationMode) -> None:
    fuzz(api, mode, 250)
