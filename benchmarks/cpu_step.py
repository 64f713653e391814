"""Where a decode step on the CPU goes: pieces, attention, sampling, and the Python around them.

Each row is the median over the steps of one batch size. Attention is timed in every other step: from Python,
between two pieces. In those that are not, it runs inside the pieces where it can, as in service; `step` is
theirs. A part's bytes are those it has to read: weights for the pieces, KV cache for attention.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from contenders import OURS
from record import save
from rich.console import Console
from rows import rows_table
from shapes import NAMES, checkpoint

from cleave.export.artifact import Artifact
from cleave.export.exporter import ExportRequest, export
from cleave.kvcache.step import Chunk
from cleave.runtime.bench.counts import ModelShape
from cleave.runtime.bench.limits import CpuProbe
from cleave.runtime.model import Model, ModelOptions
from cleave.runtime.sampling.sampler import Sampler
from cleave.threads import own_process

PARTS = ("plan", "pieces", "attention", "sampling", "commit")
"""`pieces` is the engine's run less attention: ONNX Runtime, and the loop over the pieces."""


class Timed:
    """An attention server's run, with the seconds that it took."""

    def __init__(self, model: Model) -> None:
        self._attention = model.attention
        self.seconds = 0.0

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        """See `AttentionServer.run`."""
        began = time.perf_counter()
        self._attention.run(layer, q, k, v, out)
        self.seconds += time.perf_counter() - began


def whole_step(model: Model, sampler: Sampler, batch: int, start: int) -> float:
    """Seconds of one decode step, of which nothing is timed."""
    began = time.perf_counter()
    model.attention.plan([Chunk(sequence, start, 1) for sequence in range(batch)])
    logits = model.engine.run(np.arange(batch), np.arange(batch), model.attention)
    sampler.sample(logits, [None] * batch)
    model.attention.commit()
    return time.perf_counter() - began


def step(model: Model, sampler: Sampler, batch: int, start: int) -> dict[str, float]:
    """Seconds of each part of one decode step."""
    timed = Timed(model)
    times = [time.perf_counter()]
    model.attention.plan([Chunk(sequence, start, 1) for sequence in range(batch)])
    times.append(time.perf_counter())
    logits = model.engine.run(np.arange(batch), np.arange(batch), timed)
    times.append(time.perf_counter())
    sampler.sample(logits, [None] * batch)
    times.append(time.perf_counter())
    model.attention.commit()
    times.append(time.perf_counter())
    plan, engine, sampling, commit = (after - before for before, after in pairwise(times))
    return {
        "plan": plan,
        "pieces": engine - timed.seconds,
        "attention": timed.seconds,
        "sampling": sampling,
        "commit": commit,
    }


def measure(folder: Path, batch: int, prompt: int, steps: int, threads: int | None) -> dict[str, Any]:
    """One row."""
    artifact = Artifact.open(folder, verify=False)
    length = prompt + steps + 1
    options = ModelOptions(
        threads=threads,
        verify=False,
        max_model_len=length,
        max_sequences=batch,
        kv_cache_bytes=1 << 30,
    )
    model = Model(folder, options)
    sampler = Sampler(threads)
    for sequence in range(batch):
        model.attention.open(sequence)
        model.attention.plan([Chunk(sequence, 0, prompt)])
        tokens = np.random.default_rng(sequence).integers(0, 256, prompt)
        model.engine.run(tokens, np.array([0]), model.attention)
        model.attention.commit()
    found, wholes = [], []
    for index in range(0, steps, 2):
        found.append(step(model, sampler, batch, prompt + index))
        wholes.append(whole_step(model, sampler, batch, prompt + index + 1))
    found, wholes = found[2:], wholes[2:]
    model.close()
    shape = ModelShape.of(artifact)
    quantization = artifact.manifest.quantization
    item = OURS["float32" if quantization is None else quantization.method].item_bytes
    kv_values = sum(2 * spec.kv_size for spec in artifact.manifest.layer_specs)
    cached = batch * (prompt + steps / 2) * kv_values * 4
    medians = {part: statistics.median(row[part] for row in found) for part in PARTS}
    return {
        "batch": batch,
        "prompt": prompt,
        "step_ms": round(statistics.median(wholes) * 1e3, 2),
        "parts_ms": round(statistics.median(sum(row.values()) for row in found) * 1e3, 2),
        **{f"{part}_ms": round(seconds * 1e3, 3) for part, seconds in medians.items()},
        "pieces_gb_per_s": round(shape.step_parameters * item / medians["pieces"] / 1e9, 1),
        "attention_gb_per_s": round(cached / medians["attention"] / 1e9, 1),
    }


def main() -> None:
    """Measure, print the table, write results/cpu_step.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="135m", choices=NAMES)
    parser.add_argument("--artifact", help="measure this one instead of exporting the shape")
    parser.add_argument("--batch", default="1,8,32")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    own_process()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.artifact or Path(temporary) / "artifact")
        if arguments.artifact is None:
            source = checkpoint(arguments.shape, Path(temporary) / arguments.shape)
            export(ExportRequest(str(source), folder, dtype="float32", check=False))
        rows = [
            measure(folder, batch, arguments.prompt, arguments.steps, arguments.threads)
            for batch in map(int, arguments.batch.split(","))
        ]
    probe = CpuProbe(arguments.threads)
    limits = probe.measure()
    probe.close()
    console = Console()
    title = f"A decode step, {probe.threads} threads; read {limits.bandwidth / 1e9:.1f} GB/s"
    console.print(rows_table(title, rows))
    figures = {"shape": arguments.shape, "threads": probe.threads, "bytes_per_s": limits.bandwidth}
    console.print(f"written to {save('cpu_step', figures | {'rows': rows})}")


if __name__ == "__main__":
    main()
