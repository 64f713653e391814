"""Decode steps of the GPU kernels over sequences that have a history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from attention_cases import GPU, truth

from cleave.kvcache.server import AttentionServer
from cleave.kvcache.spec import AttentionSpec
from cleave.kvcache.step import Chunk


@dataclass
class Decoding:
    """A server whose sequences have a history, and decode steps over any of them."""

    lengths: Sequence[int]
    spec: AttentionSpec
    dtype: str = "float32"
    options: dict[str, Any] = field(default_factory=dict)
    backend: str = "triton"

    def __post_init__(self) -> None:
        self.server = AttentionServer(
            [self.spec],
            backend=self.backend,
            num_pages=sum(-(-(length + 1) // 16) for length in self.lengths),
            max_position=4096,
            max_tokens=max(*self.lengths, len(self.lengths)),
            device=GPU,
            dtype=self.dtype,
            **self.options,
        )
        self.columns = [self.spec.q_size, self.spec.kv_size, self.spec.kv_size]
        self.fused = [self.random(length + 1, seed) for seed, length in enumerate(self.lengths)]
        for sequence, length in enumerate(self.lengths):
            self.server.open(sequence)
            if length:
                self.server.plan([Chunk(sequence, 0, length)])
                self.run(self.fused[sequence][:length])
                self.server.commit()

    def random(self, rows: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        tensor = torch.randn(rows, sum(self.columns), generator=generator)
        return tensor.to(GPU, getattr(torch, self.dtype))

    def run(self, fused: torch.Tensor) -> torch.Tensor:
        out = torch.full((len(fused), self.spec.q_size), torch.nan, dtype=fused.dtype, device=fused.device)
        self.server.run(0, *fused.split(self.columns, dim=1), out)
        return out

    def rows(self, sequences: Sequence[int], spare: int = 0) -> torch.Tensor:
        """q, k and v of the next token of these sequences, and `spare` rows that are not of the step."""
        rows = [self.fused[sequence][self.lengths[sequence] :] for sequence in sequences]
        return torch.cat((*rows, self.random(spare, 99)))

    def step(self, sequences: Sequence[int], spare: int = 0) -> torch.Tensor:
        """Attention of a decode step of `rows(...)`, which leaves the histories as they are."""
        self.server.plan([Chunk(sequence, self.lengths[sequence], 1) for sequence in sequences])
        out = self.run(self.rows(sequences, spare))
        self.server.rollback()
        return out

    def truth(self, sequence: int) -> np.ndarray:
        parts = self.fused[sequence].float().cpu().split(self.columns, dim=1)
        return truth(self.spec, *(part.numpy() for part in parts))[-1]
