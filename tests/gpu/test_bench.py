"""`cleave bench` on an NVIDIA GPU: its limits, and in which dtype."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cleave.runtime.bench.gpu_limits import GpuProbe
from cleave.runtime.bench.latency import LatencyRequest, measure
from cleave.runtime.bench.ranges import Range
from cleave.runtime.bench.tables import limits_line
from cleave.runtime.bench.throughput import ThroughputRequest, run_throughput

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("few_functions"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.fixture(params=["float32", "float16", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    """What the engine computes in."""
    return str(request.param)


@pytest.fixture
def narrow(dtype: str, quantized_artifact: Callable[..., Path]) -> Path:
    """An artifact of this dtype."""
    return quantized_artifact("gqa", dtype=dtype)


def test_latency_is_held_to_the_limits_of_the_gpu(narrow: Path, dtype: str) -> None:
    request = LatencyRequest(narrow, [1, 4], prompt=16, output=4, repetitions=1, engine="inductor")
    figures = measure(request).figures("latency", request)
    assert (figures["device"], figures["threads"]) == (torch.cuda.get_device_name(), None)
    assert figures["products_in"] == dtype
    assert set(figures["limits"]["operations_per_s"]) == {dtype}
    assert all(row["percent_of_limit"] > 0 for row in figures["rows"])
    assert limits_line(figures).startswith(f"limits, {torch.cuda.get_device_name()}: copied ")


def test_throughput_is_held_to_the_limits_of_the_gpu(narrow: Path, dtype: str) -> None:
    request = ThroughputRequest(narrow, 6, Range(5, 20), Range(3, 9), engine="inductor", max_sequences=4)
    found = run_throughput(request)
    assert set(found["limits"]["operations_per_s"]) == {dtype}
    assert found["percent_of_limit"] > 0


def test_the_probe_gives_its_memory_back(dtype: str) -> None:
    x = torch.ones(64, 64, device="cuda:0", dtype=getattr(torch, dtype))
    torch.mm(x, x)  # torch keeps a workspace for products from the first one on
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    probe = GpuProbe("cuda:0", dtype)
    limits = probe.measure()
    assert limits.bandwidth > 0
    assert limits.rate(dtype) > 0
    probe.close()
    assert torch.cuda.memory_reserved() <= before
