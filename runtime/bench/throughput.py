"""`cleave bench throughput`: many requests at once through the whole LLM, scheduler and text included."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cleave.errors import BenchError
from cleave.export.artifact import Artifact
from cleave.kvcache.memory_plan import ITEM_BYTES
from cleave.kvcache.step import Chunk
from cleave.runtime.bench.counts import ModelShape, Work
from cleave.runtime.bench.latency import limits_figures, model_figures
from cleave.runtime.bench.phase import middle_limits
from cleave.runtime.bench.probe import Probe, make_probe, products_in
from cleave.runtime.bench.quiet import BUSY, OthersWatch
from cleave.runtime.bench.ranges import Range
from cleave.runtime.llm import LLM
from cleave.runtime.request import Completion, SamplingParams

_PROBES = 5
"""Measurements of the limits before the run, and as many after it."""
_WARM_UP = 4


@dataclass(frozen=True, slots=True)
class ThroughputRequest:
    """What to measure. None means: what suits the machine."""

    artifact: Path
    requests: int
    prompt: Range
    output: Range
    seed: int = 0
    shared_prefix: int = 0
    """Tokens that all prompts begin with; they come on top of `prompt`."""
    engine: str | None = None
    attention: str | None = None
    device: str | None = None
    threads: int | None = None
    max_sequences: int = 64
    kv_cache_bytes: int | None = None

    def __post_init__(self) -> None:
        """Raises BenchError for values that are not allowed."""
        if self.requests < 1 or self.shared_prefix < 0:
            raise BenchError(
                f"requests is {self.requests} and shared_prefix {self.shared_prefix}; "
                "they must be at least 1 and 0"
            )

    @property
    def longest(self) -> int:
        """Tokens of the longest request that may be drawn."""
        return self.shared_prefix + self.prompt.high + self.output.high


@dataclass(frozen=True, slots=True)
class Workload:
    """The requests, drawn once."""

    prompts: list[list[int]]
    outputs: list[int]

    @classmethod
    def draw(cls, request: ThroughputRequest, vocab: int) -> Workload:
        """Random token ids; the same seed gives the same requests."""
        generator = np.random.default_rng(request.seed)
        lengths = request.prompt.draw(generator, request.requests)
        outputs = request.output.draw(generator, request.requests)
        shared = generator.integers(0, vocab, request.shared_prefix).tolist()
        prompts = [shared + generator.integers(0, vocab, length).tolist() for length in lengths]
        return cls(prompts, outputs)


def run_throughput(request: ThroughputRequest) -> dict[str, Any]:
    """Run them all at once, end-of-sequence tokens ignored.

    Raises BenchError where the longest request does not fit the context, or a request failed.
    """
    artifact = Artifact.open(request.artifact)
    context = artifact.manifest.max_position
    if request.longest > context:
        raise BenchError(
            f"a request may have {request.longest} tokens (shared prefix {request.shared_prefix}, prompt "
            f"{request.prompt}, output {request.output}); the model's context has {context}: lower "
            "--prompt or --output"
        )
    workload = Workload.draw(request, artifact.manifest.vocab_size)
    llm = LLM(
        request.artifact,
        request.engine,
        attention=request.attention,
        device=request.device,
        threads=request.threads,
        max_model_len=request.longest,
        max_sequences=request.max_sequences,
        kv_cache_bytes=request.kv_cache_bytes,
        verify=False,
    )
    probe: Probe | None = None
    try:
        probe = make_probe(llm.model.engine, request.threads)
        llm.generate(
            workload.prompts[:_WARM_UP], SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
        )
        limits = [probe.measure() for _ in range(_PROBES)]
        params = [
            SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for count in workload.outputs
        ]
        steps_before = llm.model.attention.steps
        with OthersWatch() as watch:
            began = time.perf_counter()
            completions = llm.generate(workload.prompts, params)
            seconds = time.perf_counter() - began
        steps = llm.model.attention.steps - steps_before
        limits += [probe.measure() for _ in range(_PROBES)]
        engine = llm.model.engine
        products = products_in(engine, artifact)
        work = least_work(ModelShape.of(artifact), completions, steps, ITEM_BYTES[engine.dtype])
        middle = middle_limits(limits)
        return {
            "benchmark": "throughput",
            **model_figures(artifact, llm.model, probe),
            "requests": request.requests,
            "prompt": str(request.prompt),
            "output": str(request.output),
            "shared_prefix": request.shared_prefix,
            "seed": request.seed,
            "max_sequences": request.max_sequences,
            "kv_cache_bytes": llm.model.attention.num_pages * llm.model.page_bytes,
            **totals(completions, seconds),
            "steps": steps,
            "bytes_per_s": work.bytes / seconds,
            "operations_per_s": work.operations / seconds,
            "percent_of_limit": middle.seconds(work, products) / seconds * 100,
            "bound": middle.bound(work, products),
            "limits": limits_figures(limits),
            "others_cores": watch.cores,
            "disturbed": watch.cores > BUSY,
        }
    finally:
        if probe is not None:
            probe.close()
        llm.close()


def totals(completions: Sequence[Completion], seconds: float) -> dict[str, Any]:
    """Counts and rates. Raises BenchError where a request failed, since then the rates mean nothing."""
    failed = [completion for completion in completions if completion.finish_reason == "error"]
    if failed:
        raise BenchError(f"{len(failed)} of {len(completions)} requests failed: {failed[0].error}")
    prompt_tokens = sum(len(completion.prompt_token_ids) for completion in completions)
    output_tokens = sum(len(completion.token_ids) for completion in completions)
    return {
        "seconds": seconds,
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "requests_per_s": len(completions) / seconds,
        "output_tokens_per_s": output_tokens / seconds,
        "tokens_per_s": (prompt_tokens + output_tokens) / seconds,
        "cached_tokens": sum(completion.cached_tokens for completion in completions),
        "preemptions": sum(completion.preemptions for completion in completions),
    }


def least_work(shape: ModelShape, completions: Sequence[Completion], steps: int, item: int) -> Work:
    """What the run had to do at least: the weights once a step, and every request's own attention.

    Prompts are counted as one chunk each, without what the prefix cache had; steps are those that the
    scheduler took.
    """
    work = Work()
    for completion in completions:
        cached = min(completion.cached_tokens, len(completion.prompt_token_ids) - 1)
        prompt = len(completion.prompt_token_ids)
        chunks = [Chunk(0, cached, prompt - cached)]
        chunks += [Chunk(0, prompt + index, 1) for index in range(len(completion.token_ids) - 1)]
        for chunk in chunks:
            work += replace(shape.work([chunk], 1, weight_item=item, kv_item=item), weight_bytes=0)
    return work + Work(weight_bytes=steps * shape.step_weight_bytes(item))
