"""The limits are those of the device that the engine computes on, for the dtype of its products."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cleave.errors import BenchError
from cleave.export.artifact import Artifact
from cleave.runtime.bench import fit
from cleave.runtime.bench.gpu_limits import sizes
from cleave.runtime.bench.latency import LatencyRequest, measure
from cleave.runtime.bench.limits import CpuProbe
from cleave.runtime.bench.probe import make_probe, products_in
from cleave.runtime.bench.ranges import Range
from cleave.runtime.bench.tables import limits_line
from cleave.runtime.bench.throughput import ThroughputRequest, run_throughput

GIB = 1 << 30
COMPUTED_IN = {
    "float32": "float32",
    "float16": "float32",
    "bfloat16": "float32",
    "int8": "int8",
    "int4": "int8",
}


@pytest.fixture
def weights(quantized_artifact: Callable[..., Path]) -> Callable[[str], Path]:
    """The artifact of one checkpoint with one kind of weights."""

    def get(kind: str) -> Path:
        return quantized_artifact("gqa", **{"quantize" if kind in ("int8", "int4") else "dtype": kind})

    return get


@pytest.mark.parametrize("kind", COMPUTED_IN)
def test_each_kind_of_weights_is_held_to_the_rate_of_its_products(
    kind: str, weights: Callable[[str], Path]
) -> None:
    request = LatencyRequest(weights(kind), [2], prompt=8, output=3, repetitions=2, warm_ups=0)
    measurement = measure(request)
    figures = measurement.figures("latency", request)
    assert figures["products_in"] == COMPUTED_IN[kind]
    for phase, row in zip(measurement.phases, figures["rows"], strict=True):
        shares = [
            max(
                phase.work.bytes / run.limits.bandwidth,
                phase.work.operations / run.limits.operations[COMPUTED_IN[kind]],
            )
            / sum(run.seconds)
            for run in phase.runs
        ]
        if not row["disturbed"] and row["repetitions"] == 2:
            assert row["percent_of_limit"] == pytest.approx(statistics.median(shares) * 100)
    assert f"limits, {measurement.model['device']}: read " in limits_line(figures)


def test_a_run_of_integer_products_is_held_to_their_rate(quantized_artifact: Callable[..., Path]) -> None:
    request = ThroughputRequest(quantized_artifact("gqa", quantize="int8"), 4, Range(5, 9), Range(3, 4))
    found = run_throughput(request)
    limits = found["limits"]
    least = max(
        found["bytes_per_s"] / limits["bytes_per_s"],
        found["operations_per_s"] / limits["operations_per_s"]["int8"],
    )
    assert found["percent_of_limit"] == pytest.approx(least * 100)


def test_an_engine_on_the_processor_has_the_limits_of_its_threads() -> None:
    engine: Any = SimpleNamespace(device="cpu", dtype="float32")
    probe = make_probe(engine, 1)
    assert isinstance(probe, CpuProbe)
    assert (probe.device, probe.threads) == ("1 thread", 1)
    probe.close()


def test_an_engine_in_floats_multiplies_in_its_own_dtype(
    artifact: Callable[[str], Path], quantized_artifact: Callable[..., Path]
) -> None:
    engine: Any = SimpleNamespace(device="cuda:0", dtype="bfloat16")
    plain, int4 = artifact("gqa"), quantized_artifact("gqa", quantize="int4")
    found = [products_in(engine, Artifact.open(folder, verify=False)) for folder in (plain, int4)]
    assert found == ["bfloat16", "int8"]


@pytest.mark.parametrize(
    ("engine", "device", "item"),
    [
        (None, None, 4),
        ("onnxruntime", None, 4),
        ("inductor", "cpu", 4),
        ("inductor", None, 2),
        ("inductor", "cuda", 2),
    ],
)
def test_what_fits_is_asked_of_the_device_that_the_engine_takes(
    engine: str | None,
    device: str | None,
    item: int,
    weights: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fit, "cuda_is_usable", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1234, 5678))
    memory = fit.Memory.of(engine, device, Artifact.open(weights("float16")))
    assert memory.item_bytes == item
    assert (memory.free == 1234) is (item == 2)


def test_what_a_gpu_is_measured_with_fits_what_is_free() -> None:
    assert sizes(80 * GIB, 50 << 20, 2) == (GIB, 8192)
    copied, size = sizes(GIB, 4 << 20, 4)
    assert 2 * copied + 3 * size**2 * 4 <= GIB * 3 // 4
    assert size in (2048, 4096)
    with pytest.raises(BenchError, match=r"512\.0 MiB of the GPU's memory are free, too little"):
        sizes(GIB // 2, 50 << 20, 2)
