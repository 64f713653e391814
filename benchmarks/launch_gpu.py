"""What the host needs to launch a step of 32 layers on a GPU, and how long the step takes.

The layers are narrow, so that the GPU waits for the host and not the other way round, and as many as those
of a large model. Steps have decoding requests and prompts; each is launched kernel by kernel and, where it
has few enough rows, with its pieces replayed. Both must choose about the same tokens: products of other
numbers of rows round otherwise.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from gpu_shapes import ENGINES
from needs import require_gpu
from random_artifact import write_graphs, write_random_weights
from record import save
from rich.console import Console
from rows import rows_table

from cleave.export.artifact import Artifact
from cleave.export.manifest import MANIFEST
from cleave.kvcache.server import AttentionServer
from cleave.kvcache.step import Chunk
from cleave.runtime.engine_cache.cache import EngineCache
from cleave.runtime.engines.engine import EngineOptions, create_engine
from cleave.runtime.engines.inductor.engine import InductorEngine

LAYERS = 32
CONFIG: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "vocab_size": 8192,
    "max_position_embeddings": 4096,
}
STEPS = ((60, 1, 64), (100, 2, 190), (0, 1, 100), (60, 4, 300), (0, 4, 512))
"""Decoding requests, prompts, and tokens of each prompt."""
HISTORY = 9
REPEATS = 25
MOST_TOKENS, MOST_SEQUENCES, PAGES = 2048, 128, 2400
LEAST_EQUAL = 0.9
"""Of the tokens chosen."""


@dataclass(slots=True)
class Bench:
    """An engine and its attention server."""

    engine: InductorEngine
    attention: AttentionServer

    def open(self, decoding: int, prompts: int, length: int) -> list[Chunk]:
        """The chunks of a step, of requests that are open and have a history where they decode."""
        for sequence in range(decoding + prompts):
            self.attention.open(sequence)
        if decoding:
            step = [Chunk(sequence, 0, HISTORY) for sequence in range(decoding)]
            self.attention.plan(step)
            self.launch(step)
            self.attention.commit()
        decoded = [Chunk(sequence, HISTORY, 1) for sequence in range(decoding)]
        return decoded + [Chunk(decoding + number, 0, length) for number in range(prompts)]

    def launch(self, step: list[Chunk]) -> Any:
        """Launch a planned step."""
        ends = np.cumsum([chunk.count for chunk in step])
        return self.engine.launch(np.arange(ends[-1]) * 7 % CONFIG["vocab_size"], ends - 1, self.attention)

    def measure(self, step: list[Chunk], *, replayed: bool) -> tuple[dict[str, Any], torch.Tensor]:
        """Milliseconds of a step, and the tokens that it chooses."""
        graphs = self.engine._layer_graphs
        if not replayed:
            self.engine._layer_graphs = None
        host, whole = [], []
        try:
            for _ in range(REPEATS):
                self.attention.plan(step)
                torch.cuda.synchronize()
                began = time.perf_counter()
                output = self.launch(step)
                host.append(time.perf_counter() - began)
                torch.cuda.synchronize()
                whole.append(time.perf_counter() - began)
                tokens = output.likeliest.clone()
                self.attention.rollback()
        finally:
            self.engine._layer_graphs = graphs
        return {"launch_ms": 1e3 * median(host), "step_ms": 1e3 * median(whole)}, tokens


def load(folder: Path) -> Bench:
    """The engine, out of an engine cache, with its graphs captured."""
    if not (folder / MANIFEST).is_file():
        write_graphs("bfloat16", CONFIG, folder)
        write_random_weights("bfloat16", CONFIG, folder)
    artifact = Artifact.open(folder, verify=False)
    options = EngineOptions(max_tokens=MOST_TOKENS, max_sequences=MOST_SEQUENCES)
    engine = create_engine("inductor", artifact, options, cache=EngineCache(folder / ENGINES))
    if not isinstance(engine, InductorEngine):
        raise TypeError(f"the engine inductor is a {type(engine).__name__}")
    engine.free_memory()  # its first large step captures
    attention = AttentionServer(
        artifact.manifest.layer_specs,
        backend="triton",
        num_pages=PAGES,
        max_position=MOST_TOKENS,
        max_tokens=MOST_TOKENS,
        device=engine.device,
        dtype=engine.dtype,
        max_sequences=MOST_SEQUENCES,
    )
    return Bench(engine, attention)


def measure(bench: Bench) -> list[dict[str, Any]]:
    """A row for each step and way to launch it. Raises RuntimeError where the ways choose other tokens."""
    rows = []
    for decoding, prompts, length in STEPS:
        step = bench.open(decoding, prompts, length)
        shape = {"decoding": decoding, "prompts": prompts, "tokens": sum(chunk.count for chunk in step)}
        launched, expected = bench.measure(step, replayed=False)
        rows.append({**shape, "pieces": "launched", **launched})
        if bench.engine._layer_graphs.size_for(shape["tokens"]) is not None:
            replayed, chosen = bench.measure(step, replayed=True)
            rows.append({**shape, "pieces": "replayed", **replayed})
            equal = float((chosen == expected).float().mean())
            if equal < LEAST_EQUAL:
                raise RuntimeError(f"replayed pieces choose only {equal:.0%} of the same tokens in {shape}")
        for chunk in step:
            bench.attention.close(chunk.sequence)
    return rows


def main() -> None:
    """Measure; write results/launch_gpu_h200.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "cleave-shapes")
    parser.add_argument("--suffix", default="h200", help="of the result's name")
    given = parser.parse_args()
    require_gpu()
    bench = load(given.folder / "narrow")
    measure(bench)  # what a first step of its size has to load
    figures = {"gpu": torch.cuda.get_device_name(), "layers": LAYERS, "steps": measure(bench)}
    console = Console(width=120)
    shown = [
        {name: round(value, 2) if isinstance(value, float) else value for name, value in row.items()}
        for row in figures["steps"]
    ]
    console.print(rows_table("the host's part of a step", shown))
    console.print(f"written to {save(f'launch_gpu_{given.suffix}', figures)}", soft_wrap=True)


if __name__ == "__main__":
    main()
