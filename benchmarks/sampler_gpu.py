"""What choosing the next tokens costs on an NVIDIA GPU, beside one pass over the same logits.

The kernels of one step are replayed as a CUDA graph, so that only the GPU's time counts; `call_us` is what
the host spends on a call of the sampler, which it spends while the GPU computes. `passes` is the time over
that of reading the logits once at the bandwidth of a large copy on the same GPU, in the same run. `torch_us`
is the usual way in torch: sort, cumulative sum, scatter, softmax and exponential noise, as a graph too.

Logits are normal: with a deviation of 4 some tens of tokens have nearly all of the probability, as in a
language model; `flat` has a deviation of 1, and 90 % of the probability are tens of thousands of tokens: the
hardest case of top-p.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton
from record import save
from rich.console import Console
from rich.table import Table
from sampler_kinds import HISTORY
from sampler_kinds import KINDS as SAMPLED

from cleave.runtime.sampling.device.row import SampledRow
from cleave.runtime.sampling.device.sampler import DeviceSampler
from cleave.runtime.sampling.state import SamplingState
from cleave.runtime.sampling_params import SamplingDefaults, SamplingParams

REPLAYS = 20
KINDS: dict[str, dict[str, Any] | None] = {"greedy": None, **SAMPLED}
MIXED = "mixed"
"""Rows of all kinds in turn."""


def state(params: dict[str, Any] | None, vocab: int, seed: int) -> SamplingState | None:
    """The state of a request that has HISTORY tokens."""
    if params is None:
        return None
    tokens = np.random.default_rng(seed).integers(0, vocab, HISTORY).tolist()
    resolved = SamplingParams(seed=seed, **params).resolved(SamplingDefaults())
    made = SamplingState(resolved, tokens[: HISTORY // 2], vocab)
    for token in tokens[HISTORY // 2 :]:
        made.accept(token)
    return made


def rows_of(kind: str, vocab: int, count: int) -> list[SampledRow]:
    """Rows of one kind, or of all in turn."""
    kinds = itertools.cycle(KINDS) if kind == MIXED else itertools.repeat(kind)
    states = [state(KINDS[name], vocab, seed) for seed, name in zip(range(count), kinds, strict=False)]
    return [SampledRow(index, one, one.generated if one else 0) for index, one in enumerate(states)]


def graph_seconds(step: Callable[[], Any]) -> float:
    """Seconds of the GPU for a step, replayed."""
    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    times = []
    for _ in range(REPLAYS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def call_seconds(sampler: DeviceSampler, logits: torch.Tensor, rows: list[SampledRow]) -> float:
    """Seconds of the host for a call, for rows that follow from those of the call before."""
    times = []
    for step in range(REPLAYS):
        rows = [row._replace(position=row.position + 1) for row in rows] if step else rows
        began = time.perf_counter()
        pending = sampler.sample(logits, rows)
        times.append(time.perf_counter() - began)
        pending.wait()
    return statistics.median(times)


def torch_step(kind: str, logits: torch.Tensor) -> Callable[[], torch.Tensor] | None:
    """The usual way in torch, for rows that all are of one kind; None for a mixture."""
    params = KINDS.get(kind, {})
    if params is None:
        return lambda: logits.argmax(-1)
    if kind == MIXED or "min_p" in params:
        return None
    rows, vocab = logits.shape
    temperature = torch.full((rows, 1), params["temperature"], device=logits.device)
    top_k = torch.full((rows, 1), params.get("top_k", vocab), device=logits.device)
    top_p = torch.full((rows, 1), params.get("top_p", 1.0), device=logits.device)
    counts = torch.randint(0, 2, (rows, vocab), device=logits.device, dtype=torch.int32)

    def step() -> torch.Tensor:
        scores = logits.clone()
        if "repetition_penalty" in params:
            factor = torch.where(counts > 0, params["repetition_penalty"], 1.0)
            scores = torch.where(scores > 0, scores / factor, scores * factor)
            scores -= params["frequency_penalty"] * counts
        scores /= temperature
        if "top_k" in params or "top_p" in params:
            ascending, order = scores.sort(dim=-1)
            if "top_k" in params:
                edge = ascending.gather(1, vocab - top_k)
                ascending.masked_fill_(ascending < edge, -torch.inf)
            if "top_p" in params:
                sums = ascending.softmax(-1).cumsum(-1)
                mask = sums <= 1 - top_p
                mask[:, -1] = False
                ascending.masked_fill_(mask, -torch.inf)
            scores = torch.empty_like(scores).scatter_(1, order, ascending)
        shares = scores.softmax(-1)
        return shares.div_(torch.empty_like(shares).exponential_()).argmax(-1)

    return step


def copy_bandwidth() -> float:
    """Bytes a second of a large copy on the GPU, read and written bytes both counted."""
    source = torch.randn(1 << 29, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / graph_seconds(lambda: target.copy_(source))


def measure(vocab: int, count: int, kind: str, sampler: DeviceSampler, bandwidth: float) -> dict[str, Any]:
    """One row of the table."""
    generator = torch.Generator("cuda").manual_seed(count)
    logits = torch.randn(count, vocab, device="cuda", generator=generator)
    logits *= 1.0 if "flat" in kind else 4.0
    rows = rows_of(kind, vocab, count)
    sampler.sample(logits, rows).wait()
    plan, results = sampler._plan, sampler._results[0]
    taken = graph_seconds(
        lambda: plan.launches.run(
            logits, count, sampler._buffers, sampler._slots, sampler._parameters, results
        )
    )
    for row in rows:
        sampler.forget(row.sequence)
    call = call_seconds(sampler, logits, rows)
    for row in rows:
        sampler.forget(row.sequence)
    usual = torch_step(kind, logits)
    one_pass = logits.nbytes / bandwidth
    torch_us = None if usual is None else graph_seconds(usual) * 1e6
    return {
        "kind": kind,
        "vocab": vocab,
        "rows": count,
        "us": round(taken * 1e6, 1),
        "pass_us": round(one_pass * 1e6, 1),
        "passes": round(taken / one_pass, 1),
        "call_us": round(call * 1e6),
        "torch_us": torch_us and round(torch_us, 1),
        "times_torch": torch_us and round(torch_us / (taken * 1e6), 1),
    }


def main() -> None:
    """Measure, print the table, write results/NAME.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", default="32000,128256")
    parser.add_argument("--rows", default="1,8,32,128,256")
    parser.add_argument("--name", default="sampler_gpu")
    arguments = parser.parse_args()
    bandwidth = copy_bandwidth()
    figures: dict[str, Any] = {
        "benchmark": "sampler_gpu",
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "copy_tb_per_second": round(bandwidth / 1e12, 3),
        "rows": [],
    }
    console = Console(width=150)
    counts = [int(rows) for rows in arguments.rows.split(",")]
    for vocab in (int(vocab) for vocab in arguments.vocab.split(",")):
        sampler = DeviceSampler(vocab, "cuda", max(counts))
        for count in counts:
            for kind in (*KINDS, MIXED):
                figures["rows"].append(measure(vocab, count, kind, sampler, bandwidth))
                print(figures["rows"][-1], flush=True)
        del sampler
        torch.cuda.empty_cache()
    table = Table(title=f"Sampling on {figures['gpu']}, copy {bandwidth / 1e12:.2f} TB/s")
    for column in figures["rows"][0]:
        table.add_column(column, justify="left" if column == "kind" else "right")
    for row in figures["rows"]:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    console.print(table)
    console.print(f"written to {save(arguments.name, figures)}")


if __name__ == "__main__":
    main()
