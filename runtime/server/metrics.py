"""The metrics of one server, for Prometheus."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import get_args

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder

from cleave.runtime.async_llm import AsyncLLM
from cleave.runtime.observer import AnswerReport, StepKind, StepReport
from cleave.runtime.request import FinishReason
from cleave.runtime.server.distribution import Distribution, decades, powers_of_two
from cleave.runtime.stats import Stats
from cleave.version import version

_LATENCIES = decades(1e-3, 5e2)
_STEP_TIMES = decades(1e-4, 1e1)
_REQUEST_TOKENS = powers_of_two(17)
_STEP_TOKENS = powers_of_two(14)


class Metrics:
    """Counts for one server: an observer of its engine, and a collector of a registry of its own.

    What the engine counts anyway is read when somebody asks. Only times and sizes are taken step by
    step, all of a step at once.
    """

    def __init__(self, llm: AsyncLLM) -> None:
        """Begin to count; `close` ends it."""
        self._llm = llm
        self._lock = threading.Lock()
        self._responses: Counter[int] = Counter()
        self._first_token = Distribution(
            "cleave_time_to_first_token_seconds", "From asking to the first token of an answer.", _LATENCIES
        )
        self._token_gap = Distribution(
            "cleave_inter_token_latency_seconds", "Between two tokens of an answer.", _STEP_TIMES
        )
        self._request = Distribution(
            "cleave_request_duration_seconds", "From asking to the end of an answer.", _LATENCIES
        )
        self._queue = Distribution(
            "cleave_request_queue_seconds", "From asking to the first step of an answer.", _LATENCIES
        )
        self._prompt = Distribution(
            "cleave_request_prompt_tokens", "Tokens of the prompt of an answer.", _REQUEST_TOKENS
        )
        self._generated = Distribution(
            "cleave_request_generated_tokens", "Tokens generated for an answer.", _REQUEST_TOKENS
        )
        self._step = Distribution(
            "cleave_step_duration_seconds", "Time of a step.", _STEP_TIMES, "kind", get_args(StepKind)
        )
        self._step_tokens = Distribution(
            "cleave_step_tokens", "Rows of a step.", _STEP_TOKENS, "kind", ("prefill", "decode")
        )
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        llm.observe(self)

    @property
    def registry(self) -> CollectorRegistry:
        """Where more can be registered."""
        return self._registry

    def responded(self, status: int) -> None:
        """An HTTP request was answered, or refused, with this status; 0: its client had left."""
        with self._lock:
            self._responses[status] += 1

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics in the form that an Accept header asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def close(self) -> None:
        """Count no more."""
        self._llm.ignore(self)

    def stepped(self, step: StepReport) -> None:
        """See `EngineObserver`."""
        with self._lock:
            self._step.add(step.seconds, step.kind)
            self._step_tokens.add(step.prefill_tokens, "prefill")
            self._step_tokens.add(step.decode_tokens, "decode")
            self._queue.extend(step.queued_for)
            self._first_token.extend(step.first_token_after)
            self._token_gap.extend(step.token_gaps)

    def answered(self, answer: AnswerReport) -> None:
        """See `EngineObserver`."""
        with self._lock:
            self._request.add(answer.seconds)
            self._prompt.add(answer.prompt_tokens)
            self._generated.add(answer.generated_tokens)

    def collect(self) -> Iterator[Metric]:
        """What prometheus_client asks a collector for."""
        yield from self._of_the_engine(self._llm.stats())
        with self._lock:
            responses = [(str(status), count) for status, count in sorted(self._responses.items())]
            families = [one.family() for one in self._distributions()]
        yield _counter(
            "cleave_http_responses", "HTTP requests by the status of the answer.", "status", responses
        )
        yield from families

    def _distributions(self) -> Sequence[Distribution]:
        return (
            self._first_token,
            self._token_gap,
            self._request,
            self._queue,
            self._prompt,
            self._generated,
            self._step,
            self._step_tokens,
        )

    def _of_the_engine(self, stats: Stats) -> Iterator[Metric]:
        model = self._llm.model
        build = InfoMetricFamily("cleave_build", "What runs here.")
        build.add_metric(
            [],
            {
                "version": version(),
                "model": model.folder.name,
                "engine": model.engine.kind,
                "attention": model.attention_backend,
            },
        )
        yield build
        yield GaugeMetricFamily("cleave_requests_running", "Answers that hold pages.", stats.running)
        yield GaugeMetricFamily("cleave_requests_waiting", "Answers in the queue.", stats.waiting)
        yield GaugeMetricFamily(
            "cleave_up", "1 while the engine can go on.", float(self._llm.failure is None)
        )
        pages = GaugeMetricFamily("cleave_kv_cache_pages", "Pages of the KV cache.", labels=["state"])
        pages.add_metric(["used"], stats.pages_used)
        pages.add_metric(["cached"], stats.pages_cached)
        pages.add_metric(["free"], stats.pages_free)
        yield pages
        yield GaugeMetricFamily(
            "cleave_kv_cache_usage_ratio",
            "Share of the pages that running requests hold, from 0 to 1.",
            stats.pages_used / stats.pages,
        )
        yield CounterMetricFamily("cleave_prompt_tokens", "Tokens of prompts computed.", stats.prompt_tokens)
        yield CounterMetricFamily(
            "cleave_prefix_cache_hit_tokens",
            "Tokens of prompts that the prefix cache had.",
            stats.cached_prompt_tokens,
        )
        yield CounterMetricFamily("cleave_generated_tokens", "Tokens generated.", stats.generated_tokens)
        yield CounterMetricFamily(
            "cleave_preemptions",
            "Answers that lost their pages to a more urgent one.",
            stats.preemptions,
        )
        ended = [(reason, stats.ended.get(reason, 0)) for reason in get_args(FinishReason)]
        yield _counter("cleave_requests_ended", "Answers by how they ended.", "finish_reason", ended)


def _counter(name: str, meaning: str, label: str, values: Sequence[tuple[str, int]]) -> Metric:
    family = CounterMetricFamily(name, meaning, labels=[label])
    for value, count in values:
        family.add_metric([value], count)
    return family
