"""The metrics against a count that knows nothing of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cleave import AsyncLLM, Completion, SamplingParams
from cleave.runtime.server.distribution import Distribution, decades, powers_of_two
from cleave.runtime.server.metrics import Metrics

PROMPTS = [[0, *range(10 + index, 10 + index + 5 * index)] for index in range(1, 21)]
GENERATED = 7


class Scraped:
    """An exposition, read by Prometheus' own parser."""

    def __init__(self, text: str) -> None:
        families = list(text_string_to_metric_families(text))
        self.names = [family.name for family in families]
        self.types = {family.name: family.type for family in families}
        self.samples = [sample for family in families for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        (found,) = [one.value for one in self.samples if (one.name, one.labels) == (name, labels)]
        return float(found)


def scrape(metrics: Metrics) -> Scraped:
    body, content_type = metrics.exposition()
    assert content_type.startswith("text/plain")
    return Scraped(body.decode())


class Load:
    """Requests of known sizes through one AsyncLLM, and what the engine was given meanwhile."""

    def __init__(self, artifact: Path) -> None:
        self.rows: list[int] = []
        asyncio.run(self._run(artifact))

    async def _run(self, artifact: Path) -> None:
        async with AsyncLLM(artifact, max_tokens_per_step=64, max_sequences=8) as llm:
            metrics, other = Metrics(llm), Metrics(llm)
            run = llm.model.engine.run

            def counted(token_ids: Any, *arguments: Any) -> Any:
                self.rows.append(len(token_ids))
                return run(token_ids, *arguments)

            llm.model.engine.run = counted  # type: ignore[method-assign]
            params = SamplingParams(max_tokens=GENERATED, ignore_eos=True)
            answers = await asyncio.gather(*(llm.generate(prompt, params) for prompt in PROMPTS))
            answers += await asyncio.gather(*(llm.generate(prompt, params) for prompt in PROMPTS[:4]))
            self.answers: list[Completion] = [answer for (answer,) in answers]
            async with llm.stream([0, 9], SamplingParams(max_tokens=3000, ignore_eos=True)) as stream:
                self.left_after = len((await anext(stream)).token_ids)
                self.during = scrape(metrics)
            assert await llm.wait_until_idle(60)
            metrics.responded(429)
            metrics.responded(429)
            other.responded(200)
            self.stats = llm.stats()
            self.after, self.other = scrape(metrics), scrape(other)
            llm.model.engine.run = run  # type: ignore[method-assign]
            metrics.close()
            await llm.generate([0, 1], params)
            self.closed = scrape(metrics)


@pytest.fixture(scope="module")
def load(demo_artifact: Path) -> Load:
    return Load(demo_artifact)


def test_tokens_are_those_of_the_answers(load: Load) -> None:
    scraped, answers = load.after, load.answers
    hits = sum(answer.cached_tokens for answer in answers)
    assert hits > 0
    assert scraped.value("cleave_prefix_cache_hit_tokens_total") == hits
    prompts = sum(len(answer.prompt_token_ids) for answer in answers)
    assert scraped.value("cleave_prompt_tokens_total") == prompts - hits + 2
    # The stream that was left may have had more tokens than its reader saw.
    left = load.stats.generated_tokens - len(answers) * GENERATED
    assert left >= load.left_after
    assert scraped.value("cleave_generated_tokens_total") == len(answers) * GENERATED + left
    assert scraped.value("cleave_inter_token_latency_seconds_count") == len(answers) * 6 + left - 1


def test_answers_are_counted_by_their_end(load: Load) -> None:
    ended = "cleave_requests_ended_total"
    assert load.after.value(ended, finish_reason="length") == len(load.answers)
    assert load.after.value(ended, finish_reason="abort") == 1
    assert load.after.value(ended, finish_reason="stop") == 0
    assert load.after.value(ended, finish_reason="error") == 0
    for name in (
        "cleave_request_duration_seconds",
        "cleave_request_queue_seconds",
        "cleave_time_to_first_token_seconds",
        "cleave_request_prompt_tokens",
        "cleave_request_generated_tokens",
    ):
        assert load.after.value(f"{name}_count") == len(load.answers) + 1, name
    prompts = [*(len(answer.prompt_token_ids) for answer in load.answers), 2]
    assert load.after.value("cleave_request_prompt_tokens_sum") == sum(prompts)
    for bound in (1, 8, 32, 64):
        counted = load.after.value("cleave_request_prompt_tokens_bucket", le=f"{bound}.0")
        assert counted == sum(prompt <= bound for prompt in prompts)
    total = load.after.value("cleave_request_duration_seconds_sum")
    assert 0 < load.after.value("cleave_request_queue_seconds_sum") < total
    assert 0 < load.after.value("cleave_time_to_first_token_seconds_sum") < total


def test_steps_are_those_of_the_engine(load: Load) -> None:
    kinds = ("prefill", "decode", "mixed")
    steps = [load.after.value("cleave_step_duration_seconds_count", kind=kind) for kind in kinds]
    assert sum(steps) == len(load.rows)
    assert min(steps) > 0
    rows = [load.after.value("cleave_step_tokens_sum", kind=kind) for kind in kinds[:2]]
    assert sum(rows) == sum(load.rows)
    assert rows[0] == load.after.value("cleave_prompt_tokens_total")


def test_what_is_under_way_shows_while_it_is(load: Load) -> None:
    assert load.during.value("cleave_requests_running") == 1
    assert load.during.value("cleave_kv_cache_pages", state="used") >= 1
    assert load.during.value("cleave_kv_cache_usage_ratio") > 0
    assert load.after.value("cleave_requests_running") == 0
    assert load.after.value("cleave_kv_cache_pages", state="used") == 0
    pages = sum(
        load.after.value("cleave_kv_cache_pages", state=state) for state in ("used", "cached", "free")
    )
    assert pages == load.stats.pages


def test_responses_belong_to_the_server_that_gave_them(load: Load) -> None:
    assert load.after.value("cleave_http_responses_total", status="429") == 2
    given = [one.labels for one in load.other.samples if one.name == "cleave_http_responses_total"]
    assert given == [{"status": "200"}]


def test_closed_metrics_count_no_steps(load: Load) -> None:
    name = "cleave_request_duration_seconds_count"
    assert load.closed.value(name) == load.after.value(name)


def test_build_info(load: Load) -> None:
    (build,) = [one for one in load.after.samples if one.name == "cleave_build_info"]
    assert build.value == 1
    assert set(build.labels) == {"version", "model", "engine", "attention"}


def test_names_follow_the_rules_of_prometheus(load: Load) -> None:
    """Base units, `_total` on counters and on nothing else, one family a name."""
    assert len(set(load.after.names)) == len(load.after.names)
    for name, kind in load.after.types.items():
        if not name.startswith("process_"):
            assert name.startswith("cleave_")
            assert ":" not in name
            assert "milli" not in name
            assert not name.endswith(("_count", "_sum", "_bucket"))
            assert kind in ("counter", "gauge", "histogram"), name


def test_open_metrics_for_those_who_ask(demo_artifact: Path) -> None:
    async def run() -> None:
        async with AsyncLLM(demo_artifact) as llm:
            body, content_type = Metrics(llm).exposition("application/openmetrics-text; version=1.0.0")
            assert content_type.startswith("application/openmetrics-text")
            assert body.endswith(b"# EOF\n")

    asyncio.run(run())


def test_a_distribution_counts_as_prometheus_client_does() -> None:
    from prometheus_client import CollectorRegistry, Histogram, generate_latest

    values = [0.0, 0.001, 0.0010001, 0.3, 0.5, 2.0, 499.0, 500.0, 501.0, 1e9]
    bounds = decades(1e-3, 5e2)
    registry, own = CollectorRegistry(), CollectorRegistry()
    theirs = Histogram("h", "Help.", buckets=bounds, registry=registry)
    ours = Distribution("h", "Help.", bounds)
    for value in values:
        theirs.observe(value)
    ours.extend(values)

    class Collector:
        def collect(self) -> Iterator[Any]:
            yield ours.family()

    own.register(Collector())

    def lines(of: CollectorRegistry) -> list[str]:
        return [line for line in generate_latest(of).decode().splitlines() if "_created" not in line]

    assert lines(own) == lines(registry)


def test_bounds() -> None:
    assert decades(1e-3, 1e-1) == [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1]
    assert powers_of_two(3) == [1, 2, 4, 8]
