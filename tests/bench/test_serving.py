"""The latencies of serving: the arithmetic exactly, arrivals, and what counts as a token."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cleave.errors import BenchError
from cleave.runtime.bench.arrivals import arrivals, asks, parse_rate
from cleave.runtime.bench.client import brings_a_token
from cleave.runtime.bench.ranges import Range, numbers
from cleave.runtime.bench.serving import Timing, serving_figures, spread


def test_the_latencies_of_one_request() -> None:
    timing = Timing(10.0, (10.5, 10.75, 11.75), prompt_tokens=7, output_tokens=6)
    assert timing.ttft == 0.5
    assert timing.e2e == 1.75
    assert timing.tpot == 0.25  # 1.25 s for the five tokens after the first, in two messages
    assert timing.itl == [0.25, 1.0]


def test_one_token_has_no_time_per_output_token() -> None:
    assert Timing(0.0, (1.0,), 3, 1).tpot is None


def test_figures_are_those_of_a_known_schedule() -> None:
    # Request i is sent at i, its first token comes 0.1 * (i + 1) later, then 3 more, 0.01 * (i + 1) apart.
    timings = [
        Timing(i, tuple(i + 0.1 * (i + 1) + 0.01 * (i + 1) * step for step in range(4)), 5, 4)
        for i in range(100)
    ]
    figures = serving_figures([*timings, Timing(100.0, error="503: busy")], seconds=200.0)
    milliseconds = figures["milliseconds"]
    assert milliseconds["TTFT"] == pytest.approx({"mean": 5050.0, "median": 5050.0, "p99": 9901.0})
    assert milliseconds["TPOT"] == pytest.approx({"mean": 505.0, "median": 505.0, "p99": 990.1})
    assert milliseconds["ITL"]["mean"] == pytest.approx(505.0)
    # Rank 0.99 * 299 = 296.01 of the 300 gaps, of which the last three are 1000 and three before them 990.
    assert milliseconds["ITL"]["p99"] == pytest.approx(990 + 0.01 * 10)
    assert milliseconds["E2E"] == pytest.approx({"mean": 6565.0, "median": 6565.0, "p99": 12871.3})
    assert (figures["completed"], figures["failed"], figures["errors"]) == (100, 1, ["503: busy"])
    assert figures["requests_per_s"] == 0.5
    assert figures["output_tokens_per_s"] == 2.0
    assert figures["tokens_per_s"] == 4.5


def test_percentiles_are_interpolated_as_numpy_does() -> None:
    values = [0.004, 0.001, 0.003, 0.002]
    assert spread(values) == pytest.approx({"mean": 2.5, "median": 2.5, "p99": 3.97})


def test_arrivals_are_a_poisson_process() -> None:
    times = arrivals(20_000, 4.0, np.random.default_rng(0))
    gaps = np.diff(times)
    assert times[0] == 0.0
    assert gaps.mean() == pytest.approx(0.25, rel=0.02)
    assert gaps.std() == pytest.approx(0.25, rel=0.02)
    assert (gaps < 0.25 * math.log(2)).mean() == pytest.approx(0.5, abs=0.01)


def test_an_infinite_rate_sends_all_at_once() -> None:
    assert arrivals(3, math.inf, np.random.default_rng(0)) == [0.0, 0.0, 0.0]


def test_the_same_seed_gives_the_same_load() -> None:
    load = asks(20, 3.0, Range(2, 9), Range(4, 5), seed=1)
    assert load == asks(20, 3.0, Range(2, 9), Range(4, 5), seed=1)
    assert load != asks(20, 3.0, Range(2, 9), Range(4, 5), seed=2)
    assert {len(str(ask.prompt).split()) for ask in load} <= set(range(2, 10))
    tokens = asks(20, 3.0, Range(2, 9), Range(4, 5), seed=1, vocab=50)
    assert all(isinstance(ask.prompt, list) and max(ask.prompt) < 50 for ask in tokens)


@pytest.mark.parametrize(
    ("event", "brings"),
    [
        ({"choices": [{"text": "a", "finish_reason": None}]}, True),
        ({"choices": [{"text": "", "finish_reason": None}]}, True),
        ({"choices": [{"text": "a", "finish_reason": "length"}]}, True),
        ({"choices": [{"text": "", "finish_reason": "stop"}]}, False),
        ({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}, False),
        ({"choices": [{"delta": {"content": "a"}, "finish_reason": None}]}, True),
        ({"choices": [{"delta": {"content": ""}, "finish_reason": None}]}, True),
        ({"choices": [{"delta": {}, "finish_reason": "stop"}]}, False),
        ({"choices": [], "usage": {"completion_tokens": 3}}, False),
    ],
)
def test_a_message_brings_a_token_or_not(event: dict[str, object], brings: bool) -> None:
    assert brings_a_token(event) is brings


@pytest.mark.parametrize("text", ["0", "-1", "fast", "nan", ""])
def test_a_rate_is_checked(text: str) -> None:
    with pytest.raises(BenchError, match="give requests a second"):
        parse_rate(text)


@pytest.mark.parametrize("text", ["0", "5:3", "a", "1:b", "-1:4", ""])
def test_a_range_is_checked(text: str) -> None:
    with pytest.raises(BenchError, match="--prompt is"):
        Range.parse("prompt", text)


def test_ranges_and_numbers_are_read() -> None:
    assert (Range.parse("prompt", "100:1024"), Range.parse("prompt", "7")) == (Range(100, 1024), Range(7, 7))
    assert numbers("batch", "4,1,2,2") == [1, 2, 4]
    for text in ("", "0,1", "one"):
        with pytest.raises(BenchError, match="--batch is"):
            numbers("batch", text)
