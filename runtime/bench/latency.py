"""`cleave bench latency`: prefill and decode of each batch size, beside the machine's limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cleave.errors import BenchError
from cleave.export.artifact import Artifact
from cleave.kvcache.memory_plan import ITEM_BYTES
from cleave.runtime.bench.counts import ModelShape, total
from cleave.runtime.bench.fit import PAGE_SIZE, Memory, kv_bytes_for
from cleave.runtime.bench.limits import Limits
from cleave.runtime.bench.lockstep import Lockstep, decode_steps, ending_rows, prefill_steps
from cleave.runtime.bench.phase import Phase, Run, middle_limits
from cleave.runtime.bench.probe import Probe, make_probe, products_in
from cleave.runtime.bench.quiet import OthersWatch
from cleave.runtime.model import Model
from cleave.runtime.model_options import ModelOptions

Progress = Callable[[int, int], None]
"""Called with the repetitions done and those in all, warm-ups included."""


@dataclass(frozen=True, slots=True)
class LatencyRequest:
    """What to measure. None means: what suits the machine."""

    artifact: Path
    batches: Sequence[int]
    prompt: int
    output: int
    repetitions: int = 5
    warm_ups: int = 1
    engine: str | None = None
    attention: str | None = None
    device: str | None = None
    threads: int | None = None
    max_tokens_per_step: int = 512

    def __post_init__(self) -> None:
        """Raises BenchError for values that are not allowed."""
        if self.output < 2:
            raise BenchError(f"output is {self.output}; decoding needs at least 2 tokens")
        if self.repetitions < 1:
            raise BenchError(f"repetitions is {self.repetitions}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class Measurement:
    """All phases, and the limits of every repetition."""

    model: dict[str, Any]
    phases: list[Phase]
    limits: list[Limits]

    def figures(self, name: str, request: LatencyRequest) -> dict[str, Any]:
        """What is written down."""
        return {
            "benchmark": name,
            **self.model,
            "prompt": request.prompt,
            "output": request.output,
            "limits": limits_figures(self.limits),
            "rows": [phase.row() for phase in self.phases],
        }


def measure(request: LatencyRequest, progress: Progress = lambda done, total: None) -> Measurement:
    """Run every batch in every repetition, each repetition after a measurement of the limits.

    Raises BenchError where the largest batch does not fit, and what loading a model raises.
    """
    artifact = Artifact.open(request.artifact)
    most = max(request.batches)
    memory = Memory.of(request.engine, request.device, artifact)
    kv_bytes = kv_bytes_for(artifact, most, request.prompt, request.output, memory)
    model = Model(
        request.artifact,
        ModelOptions(
            engine=request.engine,
            attention=request.attention,
            device=request.device,
            max_model_len=request.prompt + request.output,
            kv_cache_bytes=kv_bytes,
            max_tokens_per_step=max(request.max_tokens_per_step, most),
            max_sequences=most,
            page_size=PAGE_SIZE,
            threads=request.threads,
            verify=False,
        ),
    )
    probe: Probe | None = None
    try:
        probe = make_probe(model.engine, request.threads)
        phases = {batch: _phases(artifact, model, request, batch) for batch in request.batches}
        limits = []
        repetitions = request.warm_ups + request.repetitions
        for repetition in range(repetitions):
            limits.append(probe.measure())
            for batch, pair in phases.items():
                generator = np.random.default_rng(repetition)
                prompts = generator.integers(0, artifact.manifest.vocab_size, (batch, request.prompt))
                runs = _run(model, prompts, request.output, limits[-1])
                if repetition >= request.warm_ups:
                    for phase, run in zip(pair, runs, strict=True):
                        phase.runs.append(run)
            progress(repetition + 1, repetitions)
        return Measurement(
            model_figures(artifact, model, probe),
            [phase for pair in phases.values() for phase in pair],
            limits[request.warm_ups :],
        )
    finally:
        if probe is not None:
            probe.close()
        model.close()


def model_figures(artifact: Artifact, model: Model, probe: Probe) -> dict[str, Any]:
    """What was measured: the model and how it ran."""
    shape = ModelShape.of(artifact)
    dtype = model.engine.dtype
    quantization = artifact.manifest.quantization
    return {
        "model": artifact.manifest.architecture,
        "source": Path(artifact.manifest.source).name,
        "step_parameters": shape.step_parameters,
        "weight_bytes": shape.step_weight_bytes(ITEM_BYTES[dtype]),
        "quantization": quantization.description if quantization else None,
        "last_level_cache_bytes": probe.cache_bytes,
        "engine": model.engine.kind,
        "attention": model.attention_backend,
        "dtype": dtype,
        "products_in": products_in(model.engine, artifact),
        "device": probe.device,
        "threads": probe.threads,
    }


def limits_figures(limits: Sequence[Limits]) -> dict[str, Any]:
    """The medians, and how far apart the measurements were."""
    middle = middle_limits(limits)
    bandwidths = [item.bandwidth for item in limits]
    return {
        "bytes_per_s": middle.bandwidth,
        "bytes_per_s_range": [min(bandwidths), max(bandwidths)],
        "operations_per_s": middle.operations,
    }


def _phases(artifact: Artifact, model: Model, request: LatencyRequest, batch: int) -> tuple[Phase, Phase]:
    shape = ModelShape.of(artifact)
    item = {"weight_item": ITEM_BYTES[model.engine.dtype], "kv_item": _kv_item(artifact, model)}
    prefill = prefill_steps(batch, request.prompt, model.max_tokens_per_step)
    decode = decode_steps(batch, request.prompt, request.output - 1)
    prefill_work = total(shape.work(step, len(ending_rows(step, request.prompt)), **item) for step in prefill)
    decode_work = total(shape.work(step, batch, **item) for step in decode)
    products = products_in(model.engine, artifact)
    return (
        Phase("prefill", batch, batch * request.prompt, prefill_work, products),
        Phase("decode", batch, batch * len(decode), decode_work, products),
    )


def _run(model: Model, prompts: npt.NDArray[np.int64], output: int, limits: Limits) -> tuple[Run, Run]:
    lockstep = Lockstep(model, prompts)
    try:
        with OthersWatch() as watch:
            prefill = lockstep.prefill()
        first = Run((prefill,), limits, watch.cores)
        with OthersWatch() as watch:
            decode = lockstep.decode(output - 1)
        return first, Run(decode, limits, watch.cores)
    finally:
        lockstep.close()


def _kv_item(artifact: Artifact, model: Model) -> int:
    """Bytes of one cached value, from what a page takes."""
    values = sum(2 * spec.kv_size for spec in artifact.manifest.layer_specs) * model.options.page_size
    return model.page_bytes // values
