"""Logits of prompts that advance together, below scheduler and sampler."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cleave.kvcache.step import Chunk
from cleave.runtime.model import Model

Logits = npt.NDArray[np.float32]


def run_together(model: Model, prompts: list[list[int]], chunk: int) -> list[Logits]:
    """Logits of every token of every prompt, all prompts advancing by `chunk` tokens a step."""
    server = model.attention
    logits: list[list[Logits]] = [[] for _ in prompts]
    for sequence in range(len(prompts)):
        server.open(sequence)
    for start in range(0, max(map(len, prompts)), chunk):
        step = [
            Chunk(sequence, start, min(chunk, len(prompt) - start))
            for sequence, prompt in enumerate(prompts)
            if start < len(prompt)
        ]
        tokens = np.array([token for part in step for token in prompts[part.sequence][start : start + chunk]])
        server.plan(step)
        results = model.engine.run(tokens, np.arange(len(tokens)), server).copy()
        server.commit()
        for part, rows in zip(
            step, np.split(results, np.cumsum([part.count for part in step])[:-1]), strict=True
        ):
            logits[part.sequence].append(rows)
    for sequence in range(len(prompts)):
        server.close(sequence)
    return [np.concatenate(parts) for parts in logits]
