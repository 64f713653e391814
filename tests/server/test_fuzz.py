"""Requests made at random after the OpenAPI schema, and past it: none is answered with a 5xx."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import BaseSchema
from served import Served


@pytest.fixture(scope="module")
def served(demo_artifact: Path) -> Iterator[Served]:
    # A short context, since many of these requests generate until it is full.
    with Served(demo_artifact, max_model_len=48) as server:
        yield server
        server.idle()


@pytest.fixture(scope="module")
def api(served: Served) -> BaseSchema:
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json").exclude(path_regex="^/ui")


schema = schemathesis.pytest.from_fixture("api")
quick = settings(
    max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@schema.parametrize()
@quick
def test_no_request_makes_the_server_fail(case: schemathesis.Case) -> None:
    case.call_and_validate(checks=[not_a_server_error], timeout=60)


@pytest.mark.slow
@schema.parametrize()
@settings(quick, max_examples=300, derandomize=False)
def test_no_request_of_very_many_makes_the_server_fail(case: schemathesis.Case) -> None:
    case.call_and_validate(checks=[not_a_server_error], timeout=60)
