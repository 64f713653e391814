"""The engine inductor over the attention backend triton on one GPU, beside what the GPU can do at most.

Shapes of real models with random weights, requests in lockstep (no scheduler), greedy on the GPU: decode
steps by batch, prefill, the engine alone with attention replaced by a copy, the kernels of a step, and the
start of a process, cold and warm.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_model import GpuModel
from gpu_shapes import ENGINES, GPU_SHAPES
from gpu_sizes import Sizes
from needs import require_gpu
from record import save
from rich.console import Console
from rich.table import Table

from cleave.runtime.bench.gpu_limits import GpuProbe
from cleave.runtime.bench.limits import Limits

BATCHES = (1, 8, 32, 128, 256)
PROFILED = (1, 64)
PROMPT, STEPS = 512, 64
PREFILL_BATCH = 32
KERNELS = 12


def measure(
    shape: str, folder: Path, attention: str, batches: tuple[int, ...], *, deterministic: bool = False
) -> dict[str, Any]:
    """All figures of a shape; seconds and bytes, unless the name says otherwise."""
    from random_artifact import random_artifact

    artifact = random_artifact(shape, folder / shape)
    cache = Path(tempfile.mkdtemp(prefix="engines", dir=folder))
    starts = {}
    if not deterministic:
        starts = {name: start(artifact, cache, attention, max(batches)) for name in ("cold", "warm")}
    model = GpuModel(
        artifact, cache, attention, max(batches), PROMPT + STEPS + 1, deterministic=deterministic
    )
    dtype = model.manifest.dtype
    limits = limits_of(model.engine.device, dtype)
    sizes = Sizes.of(model.artifact)
    figures = {
        "gpu": torch.cuda.get_device_name(),
        "shape": shape,
        "dtype": dtype,
        "attention": attention,
        "deterministic": deterministic,
        "copy_bytes_per_second": limits.bandwidth,
        "matmul_flops_per_second": limits.rate(dtype),
        "weight_bytes_read_by_a_step": sizes.read,
        "start": starts,
        "decode": [decode(model, sizes, limits, batch) for batch in batches],
        "prefill": prefill(model, sizes, limits),
        "kernels": {str(batch): kernels(model, batch) for batch in PROFILED if batch <= max(batches)},
    }
    shutil.rmtree(cache)
    return figures


def limits_of(device: str, dtype: str) -> Limits:
    """What the GPU can do at most."""
    probe = GpuProbe(device, dtype)
    try:
        return probe.measure()
    finally:
        probe.close()


def kernel_tables(shape: str, folder: Path, attention: str) -> dict[str, Any]:
    """Every kernel of a decode step of the batches `PROFILED`, and the seconds of that step by itself."""
    from random_artifact import random_artifact

    artifact = random_artifact(shape, folder / shape)
    cache = artifact / ENGINES
    model = GpuModel(artifact, cache, attention, max(PROFILED), PROMPT + STEPS + 1)
    figures: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "shape": shape, "prompt": PROMPT}
    for batch in PROFILED:
        _, tokens = model.prefill(batch, PROMPT)
        step = model.decode(tokens, PROMPT, STEPS)
        model.forget(batch)
        figures[f"batch {batch}"] = {"step": step, "kernels": kernels(model, batch, None)}
    return figures


def decode(model: GpuModel, sizes: Sizes, limits: Limits, batch: int) -> dict[str, Any]:
    """The best of two runs of `STEPS` steps after prompts of `PROMPT` tokens."""
    best = math.inf
    for _ in range(2):
        _, tokens = model.prefill(batch, PROMPT)
        best = min(best, model.decode(tokens, PROMPT, STEPS))
        model.forget(batch)
    least = sizes.decode_bytes(batch, PROMPT + STEPS / 2) / limits.bandwidth
    alone = model.batchful(batch)
    return {
        "batch": batch,
        "step": best,
        "tokens_per_second": batch / best,
        "percent_of_limit": 100 * least / best,
        "engine_alone": alone,
        "engine_alone_percent_of_limit": 100 * sizes.read / limits.bandwidth / alone,
    }


def prefill(model: GpuModel, sizes: Sizes, limits: Limits) -> dict[str, Any]:
    """The best of three prefills of `PREFILL_BATCH` prompts."""
    best = math.inf
    for _ in range(3):
        seconds, _ = model.prefill(PREFILL_BATCH, PROMPT)
        best = min(best, seconds)
        model.forget(PREFILL_BATCH)
    tokens = PREFILL_BATCH * PROMPT
    flops = sizes.prefill_flops(PREFILL_BATCH, PROMPT)
    return {
        "batch": PREFILL_BATCH,
        "prompt": PROMPT,
        "tokens_per_second": tokens / best,
        "percent_of_limit": 100 * flops / limits.rate(model.manifest.dtype) / best,
    }


def kernels(model: GpuModel, batch: int, most: int | None = KERNELS) -> list[dict[str, Any]]:
    """The kernels of one decode step, `most` of them (None: all), by their time on the GPU.

    A kernel that starts before the last one has ended is counted from its start, waiting included.
    """
    _, tokens = model.prefill(batch, PROMPT)
    model.one_decode_step(tokens, PROMPT)
    events = profiled(lambda: model.one_decode_step(tokens, PROMPT))
    model.forget(batch)
    return events[:most]


def profiled(work: Callable[[], None]) -> list[dict[str, Any]]:
    """What ran on the GPU: name, launches and microseconds in all, the longest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
    events = [event for event in profile.key_averages() if event.self_device_time_total > 0]
    events.sort(key=lambda event: -event.self_device_time_total)
    return [
        {"kernel": event.key[:80], "launches": event.count, "microseconds": event.self_device_time_total}
        for event in events
    ]


def start(artifact: Path, cache: Path, attention: str, batch: int) -> dict[str, float]:
    """A process that loads the model and answers one step: its seconds, and those of its parts.

    Inductor's own cache is empty each time; Triton's is kept with the engine cache.
    """
    environment = os.environ | {
        "TORCHINDUCTOR_CACHE_DIR": tempfile.mkdtemp(dir=cache.parent),
        "TRITON_CACHE_DIR": str(cache.with_name(f"{cache.name}-triton")),
    }
    began = time.perf_counter()
    arguments = [sys.executable, __file__, "--start", str(artifact), str(cache), attention, str(batch)]
    done = subprocess.run(arguments, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    parts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {"process": time.perf_counter() - began} | parts


def start_here(artifact: str, cache: str, attention: str, batch: str) -> None:
    """What `start` runs."""
    model = GpuModel(Path(artifact), Path(cache), attention, int(batch), PROMPT + STEPS + 1)
    model.prefill(1, 16)
    sys.stdout.write(json.dumps({"engine": model.seconds_of_engine, "model": model.seconds_of_start}) + "\n")


def table(figures: dict[str, Any]) -> Table:
    """The figures for people."""
    shown = Table(title=f"{figures['shape']}, {figures['dtype']}, {figures['gpu']}")
    for column in ("batch", "ms a step", "tokens/s", "% of limit", "engine alone, ms", "% of limit"):
        shown.add_column(column, justify="right")
    for row in figures["decode"]:
        shown.add_row(
            str(row["batch"]),
            f"{row['step'] * 1e3:.3f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['percent_of_limit']:.0f}",
            f"{row['engine_alone'] * 1e3:.3f}",
            f"{row['engine_alone_percent_of_limit']:.0f}",
        )
    filled, started = figures["prefill"], figures["start"]
    shown.caption = (
        f"prefill {filled['batch']} x {filled['prompt']}: {filled['tokens_per_second']:,.0f} tokens/s, "
        f"{filled['percent_of_limit']:.0f} % of limit"
    )
    if started:
        shown.caption += (
            f"; start: {started['cold']['process']:.1f} s cold, {started['warm']['process']:.1f} s warm "
            f"(model {started['cold']['model']:.1f} / {started['warm']['model']:.1f})"
        )
    return shown


def kernel_table(figures: dict[str, Any], batch: int) -> Table:
    """The kernels of a step for people."""
    measured = figures[f"batch {batch}"]
    total = sum(row["microseconds"] for row in measured["kernels"])
    shown = Table(title=f"{figures['shape']}, batch {batch}: {measured['step'] * 1e3:.3f} ms a step")
    for column in ("kernel", "launches", "us in all", "us each", "% of kernels"):
        shown.add_column(column, justify="left" if column == "kernel" else "right")
    for row in measured["kernels"]:
        spent, launches = row["microseconds"], row["launches"]
        share = 100 * spent / total
        shown.add_row(row["kernel"], str(launches), f"{spent:.0f}", f"{spent / launches:.1f}", f"{share:.1f}")
    return shown


def main() -> None:
    """Measure the shapes asked for; write results/gpu_engine_SHAPE_GPU.json, or gpu_kernels_..., for each."""
    if sys.argv[1:2] == ["--start"]:
        start_here(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=GPU_SHAPES, default=list(GPU_SHAPES))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "cleave-shapes")
    parser.add_argument("--attention", default="triton")
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--deterministic", action="store_true", help="what that option costs; no starts")
    parser.add_argument("--kernels", action="store_true", help="only the kernels of a decode step")
    given = parser.parse_args()
    require_gpu()
    gpu = torch.cuda.get_device_name().split()[-1].lower()
    given.folder.mkdir(parents=True, exist_ok=True)
    console = Console()
    for shape in given.shapes:
        if given.kernels:
            figures = kernel_tables(shape, given.folder, given.attention)
            for batch in PROFILED:
                console.print(kernel_table(figures, batch))
            name = f"gpu_kernels_{shape}_{gpu}"
        else:
            fixed = given.deterministic
            figures = measure(shape, given.folder, given.attention, tuple(given.batches), deterministic=fixed)
            console.print(table(figures))
            name = f"gpu_engine_{shape}_{'deterministic_' if fixed else ''}{gpu}"
        console.print(f"written to {save(name, figures)}")
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
