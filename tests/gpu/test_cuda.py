"""What runs on an NVIDIA GPU: the check of an export, and the reference attention backend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cleave.export.exporter import ExportRequest, export
from cleave.kvcache.server import AttentionServer
from cleave.kvcache.spec import AttentionSpec, RopeSpec
from cleave.kvcache.step import Chunk
from cleave.plugins.torch_operator import bound

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
STEPS = ((0, 40), (40, 1), (41, 7))


def test_the_check_of_an_export_runs_on_the_gpu(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    manifest = export(ExportRequest(str(checkpoint("gqa")), tmp_path / "artifact", device="cuda"))
    assert manifest.check["device"] == "cuda"
    # TF32 is off by default in torch, so the tolerance of float32 holds on the GPU too.
    assert manifest.check["relative_error"] < 1e-5


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 4e-3), ("bfloat16", 3e-2)])
def test_the_reference_backend_gives_on_the_gpu_what_it_gives_on_the_cpu(
    dtype: str, tolerance: float
) -> None:
    spec = AttentionSpec(8, 2, 64, 0.125, RopeSpec("llama3", 5e5, 64, factor=8.0, original_max_position=64))
    generator = np.random.default_rng(0)
    rows = STEPS[-1][0] + STEPS[-1][1]
    tensors = [
        torch.from_numpy(generator.standard_normal((rows, width), dtype=np.float32)).to(getattr(torch, dtype))
        for width in (spec.q_size, spec.kv_size, spec.kv_size)
    ]
    results = {}
    for device in ("cpu", "cuda"):
        server = AttentionServer(
            [spec],
            backend="reference",
            num_pages=8,
            max_position=128,
            max_tokens=64,
            device=device,
            dtype=dtype,
        )
        server.open(0)
        outs = []
        for start, count in STEPS:
            q, k, v = (tensor[start : start + count].to(device) for tensor in tensors)
            server.plan([Chunk(0, start, count)])
            with bound(server):
                outs.append(torch.ops.cleave.CleaveAttention(q, k, v, 0))
            server.commit()
        results[device] = torch.cat(outs).float().cpu()
        server.shutdown()
    torch.testing.assert_close(results["cuda"], results["cpu"], rtol=tolerance, atol=tolerance)
