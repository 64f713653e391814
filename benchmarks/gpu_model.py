"""An engine over an attention server in lockstep: what the GPU benchmarks time, without a scheduler."""

from __future__ import annotations

import time
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cleave.export.artifact import Artifact
from cleave.kvcache.budget import page_bytes, pages_for
from cleave.kvcache.memory_plan import ITEM_BYTES
from cleave.kvcache.server import AttentionServer
from cleave.kvcache.step import Chunk
from cleave.runtime.bench.gpu_limits import seconds
from cleave.runtime.engine_cache.cache import EngineCache
from cleave.runtime.engines.engine import EngineOptions, create_engine
from cleave.runtime.warm_up import warm_up

PAGE = 16
MAX_TOKENS = 8192
_SHARE = 0.9


class GpuModel:
    """A loaded artifact. Requests run in lockstep: the same prompt length, one token each a step."""

    def __init__(
        self,
        folder: Path,
        cache: Path,
        attention: str,
        batch: int,
        length: int,
        *,
        deterministic: bool = False,
    ) -> None:
        """Load, build what the engine cache in `cache` lacks, and warm up for `batch` requests."""
        self.artifact = artifact = Artifact.open(folder, verify=False)
        self.manifest = artifact.manifest
        options = EngineOptions(max_tokens=MAX_TOKENS, max_sequences=batch, deterministic=deterministic)
        began = time.perf_counter()
        self.engine: Any = create_engine("inductor", artifact, options, cache=EngineCache(cache))
        self.seconds_of_engine = time.perf_counter() - began
        free = self.engine.free_memory()
        one = page_bytes(self.manifest.layer_specs, PAGE, ITEM_BYTES[self.manifest.dtype])
        wanted = batch * pages_for(length, PAGE)
        self.attention = AttentionServer(
            self.manifest.layer_specs,
            backend=attention,
            num_pages=min(wanted, int(free * _SHARE) // one),
            page_size=PAGE,
            max_position=length,
            max_tokens=MAX_TOKENS,
            device=self.engine.device,
            dtype=self.manifest.dtype,
            **({"max_sequences": batch} if attention != "reference" else {}),
            **({"deterministic": True} if deterministic else {}),
        )
        warm_up(self.engine, self.attention, batch)
        torch.cuda.synchronize()
        self.seconds_of_start = time.perf_counter() - began

    def prefill(self, batch: int, prompt: int, most: int = MAX_TOKENS) -> tuple[float, torch.Tensor]:
        """Seconds until the first token of every request is known, and these tokens [batch], on the GPU.

        `most` bounds the tokens of a step.
        """
        generator = np.random.default_rng(0)
        token_ids = generator.integers(0, self.manifest.vocab_size, (batch, prompt))
        together = max(1, most // prompt)
        torch.cuda.synchronize()
        began = time.perf_counter()
        tokens = []
        for first in range(0, batch, together):
            group = range(first, min(batch, first + together))
            for sequence in group:
                self.attention.open(sequence)
            for start in range(0, prompt, most):
                count = min(most, prompt - start)
                self.attention.plan([Chunk(sequence, start, count) for sequence in group])
                given = token_ids[list(group), start : start + count].reshape(-1)
                rows = np.arange(1, len(group) + 1) * count - 1
                logits = self.engine.launch(given, rows, self.attention).logits
                self.attention.commit()
            tokens.append(logits.argmax(-1))
        joined = torch.cat(tokens)
        torch.cuda.synchronize()
        return time.perf_counter() - began, joined

    def decode(self, tokens: torch.Tensor, position: int, steps: int) -> float:
        """Seconds a step, of `steps` decode steps of every request, each sampling greedily on the GPU."""
        rows = np.arange(len(tokens))
        torch.cuda.synchronize()
        began = time.perf_counter()
        for step in range(steps):
            self.attention.plan([Chunk(int(sequence), position + step, 1) for sequence in rows])
            tokens = self.engine.launch(tokens, rows, self.attention).logits.argmax(-1)
            self.attention.commit()
        torch.cuda.synchronize()
        return (time.perf_counter() - began) / steps

    def one_decode_step(self, tokens: torch.Tensor, position: int) -> None:
        """A decode step of every request that leaves no trace."""
        rows = np.arange(len(tokens))
        self.attention.plan([Chunk(int(sequence), position, 1) for sequence in rows])
        try:
            self.engine.launch(tokens, rows, self.attention)
        finally:
            self.attention.rollback()
        torch.cuda.synchronize()

    def forget(self, batch: int) -> None:
        """Close the requests."""
        for sequence in range(batch):
            self.attention.close(sequence)

    def batchful(self, batch: int, repeats: int = 20) -> float:
        """Seconds of a decode step whose attention is a copy of q: the engine alone, on the GPU's clock."""
        rows = np.arange(batch)
        token_ids = np.zeros(batch, np.int64)
        stub = _Copy()
        self.engine.launch(token_ids, rows, stub)
        return min(seconds(lambda: self.engine.launch(token_ids, rows, stub)) for _ in range(repeats))


class _Copy:
    """Stands in for attention where its time is not to count."""

    graph_key: Hashable = "copy"

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        """See `cleave.runtime.engines.engine.Attention`."""
        out.copy_(q)
