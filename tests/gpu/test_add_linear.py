"""The residual that is added in place, on an NVIDIA GPU: no copy of it, and the same logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from cleave.export.artifact import Artifact
from cleave.runtime.engines.engine import EngineOptions
from cleave.runtime.engines.inductor import functions
from cleave.runtime.engines.inductor.engine import InductorEngine
from cleave.runtime.engines.inductor.program import Program

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


class HandsQOn:
    """Attention of a kernel, and no copy of memory: q is not contiguous."""

    graph_key = "q"

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        torch.mul(q, 1, out=out)


class Ungraphed:
    run = HandsQOn.run


def copies(engine: InductorEngine, tokens: int, attention: Any) -> tuple[int, torch.Tensor]:
    """How often a step copies memory on the device, and its logits."""
    ids, rows = np.arange(tokens), np.arange(min(tokens, 64))
    for _ in range(3):
        engine.launch(ids, rows, attention)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        logits = engine.launch(ids, rows, attention).logits.clone()
        torch.cuda.synchronize()
    found = sum("Memcpy DtoD" in event.name for event in seen.events())
    return found - 1, logits  # the clone is one


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 3e-3), ("bfloat16", 2e-2)])
def test_no_step_of_many_rows_copies_the_residual(
    demo_in: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, dtype: str, tolerance: float
) -> None:
    artifact = Artifact.open(demo_in(dtype), verify=False)
    options = EngineOptions(max_tokens=512, max_sequences=64)
    engine = InductorEngine(artifact, options)
    found = {tokens: copies(engine, tokens, Ungraphed()) for tokens in (64, 300)}
    with monkeypatch.context() as patch:
        patch.setattr(functions, "add_in_place", _unchanged)
        plain = InductorEngine(artifact, options)
        for tokens, (count, logits) in found.items():
            before, wanted = copies(plain, tokens, Ungraphed())
            middle = artifact.manifest.num_layers - 1
            assert before - count >= 2 * middle
            assert (logits - wanted).norm() / wanted.norm() < tolerance
    replayed = copies(engine, 64, HandsQOn())[1]
    torch.testing.assert_close(replayed, found[64][1], rtol=0, atol=0)
    assert found[64][0] == found[300][0] == 0
    engine.close()
    plain.close()


def _unchanged(program: Program, *_: Any) -> Program:
    return program
