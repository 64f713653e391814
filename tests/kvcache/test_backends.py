"""Every attention backend against PyTorch and transformers, over random mixed batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attention_cases import Case, cases, draw_data, options, served, truth
from hypothesis import HealthCheck, example, given, settings

from cleave.errors import AttentionError
from cleave.kvcache.server import AttentionServer
from cleave.kvcache.spec import AttentionSpec, RopeSpec
from cleave.kvcache.step import Chunk

BACKENDS = ("reference", "cpu", "onnx")
"""Those of the CPU; test_triton.py has the same for the GPU kernels."""
TOLERANCE = 3e-5

LONG = Case(
    specs=(
        AttentionSpec(9, 3, 64, 0.125, RopeSpec("default", 10_000.0, 64)),
        AttentionSpec(4, 4, 20, 0.3, RopeSpec("default", 100.0, 8), window=130, softcap=5.0),
    ),
    steps=((300, 0, 1), (1, 140, 1), (150, 1, 30), (1, 1, 1)),
    page_size=16,
    seed=7,
)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases())
@example(case=LONG)
def test_a_mixed_batch_is_attention_over_each_whole_sequence(backend: str, case: Case) -> None:
    data = draw_data(case)
    for outs, layers in zip(served(backend, case, data), data, strict=True):
        for spec, out, (q, k, v) in zip(case.specs, outs, layers, strict=True):
            if len(q):
                np.testing.assert_allclose(out, truth(spec, q, k, v), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases())
def test_a_backend_agrees_with_the_reference(backend: str, case: Case) -> None:
    data = draw_data(case)
    for ours, reference in zip(served(backend, case, data), served("reference", case, data), strict=True):
        for out, expected in zip(ours, reference, strict=True):
            np.testing.assert_allclose(out, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 4e-3), ("bfloat16", 3e-2)])
def test_the_reference_takes_half_precision_tensors(dtype: str, tolerance: float) -> None:
    spec = AttentionSpec(4, 2, 16, 0.25, RopeSpec("default", 10_000.0, 16))
    server = AttentionServer(
        [spec], backend="reference", num_pages=4, max_position=64, max_tokens=64, dtype=dtype
    )
    rng = np.random.default_rng(0)
    q, k, v = (
        torch.from_numpy(rng.standard_normal((40, width), dtype=np.float32)).to(getattr(torch, dtype))
        for width in (64, 32, 32)
    )
    server.open(0)
    out = torch.empty_like(q)
    for start in (0, 39):
        rows = slice(start, 39 if start == 0 else 40)
        server.plan([Chunk(0, start, rows.stop - start)])
        server.run(0, q[rows], k[rows], v[rows], out[rows])
        server.commit()
    expected = truth(spec, *(x.float().numpy() for x in (q, k, v)))
    np.testing.assert_allclose(out.float().numpy(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("backend", [name for name in (*BACKENDS, "triton") if name != "reference"])
def test_a_plan_that_fails_leaves_no_step(backend: str) -> None:
    """Not the one before it either, whose rows would be read as those of the new one."""
    if backend == "triton":
        pytest.importorskip("triton")
    spec = AttentionSpec(2, 2, 16, 0.25, None)
    server = AttentionServer(
        [spec], backend=backend, num_pages=2, max_position=32, max_tokens=8, **options(backend, (spec,))
    )
    server.open(0)
    server.plan([Chunk(0, 0, 3)])
    with pytest.raises(AttributeError):
        server._backend.plan(None)  # type: ignore[arg-type]
    with pytest.raises(AttentionError, match="no step is planned"):
        server.run(0, None, None, None, None)
    assert server.graph_key is None
    server.shutdown()
