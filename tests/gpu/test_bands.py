"""Captured steps of more than 32 rows on an NVIDIA GPU: own kernels against the library's products."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from stand_in_attention import Decodes, HandsQOn

from cleave.export.artifact import Artifact
from cleave.runtime.engines.engine import EngineOptions
from cleave.runtime.engines.inductor.engine import InductorEngine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.usefixtures("few_functions"),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 3e-3), ("bfloat16", 2e-2)])
def test_steps_of_a_band_give_the_logits_of_the_library(
    demo_in: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, dtype: str, tolerance: float
) -> None:
    """Decode steps as a whole, and the pieces of mixed ones."""
    engine = InductorEngine(
        Artifact.open(demo_in(dtype), verify=False), EngineOptions(max_tokens=160, max_sequences=128)
    )
    monkeypatch.setattr(engine._functions, "bands", (64, 128))
    vocab, graphs = len(engine._embedding), engine._layer_graphs
    for tokens in (33, 40, 64, 65, 100, 128):
        ids = np.random.default_rng(tokens).integers(0, vocab, tokens)
        for rows, attention in ((np.arange(tokens), Decodes()), (np.array([0, tokens - 1]), HandsQOn())):
            engine._layer_graphs = None
            wanted = engine.run(ids, rows, HandsQOn()).copy()
            engine._layer_graphs = graphs
            for _ in range(2):  # captured, then replayed
                got = engine.run(ids, rows, attention)
                assert np.linalg.norm(got - wanted) / np.linalg.norm(wanted) < tolerance
    made = engine._functions._compiled
    assert None not in [made.get(("middle", band)) for band in (64, 128)]
    assert made["middle", None] not in [made["middle", band] for band in (64, 128)]
    engine.close()
