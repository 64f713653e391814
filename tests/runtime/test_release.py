"""What was closed holds no tensors, though somebody still holds what was closed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alive import NewTensors
from device_sampling import GPU, kinds, states

from cleave import LLM, SamplingParams
from cleave.errors import AttentionError
from cleave.kvcache.server import AttentionServer
from cleave.kvcache.spec import AttentionSpec
from cleave.kvcache.step import Chunk
from cleave.runtime.device_tokens import SampledTokens
from cleave.runtime.pending import LikeliestTokens

SPEC = AttentionSpec(heads=2, kv_heads=1, head_dim=16, scale=0.25)


@pytest.mark.slow
def test_an_llm_of_the_engine_inductor(artifact: Callable[[str], Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {"device": "cpu", "verify": False, "max_sequences": 4, "cache": tmp_path}
    LLM(
        artifact("one_layer"), "inductor", **options
    ).close()  # compiles, which leaves tensors of the compiler's own
    since = NewTensors()
    llm = LLM(artifact("one_layer"), "inductor", **options)
    llm.generate([[3, 5, 8]] * 3, SamplingParams(max_tokens=4, ignore_eos=True), progress=False)
    weights = llm.model.folder / "weights.safetensors"
    assert since.note() > weights.stat().st_size
    llm.close()
    assert since.left() == []
    llm.close()


def test_the_device_sampler_and_the_likeliest_tokens() -> None:
    pytest.importorskip("triton")
    from cleave.runtime.sampling.device.row import SampledRow
    from cleave.runtime.sampling.device.sampler import DeviceSampler

    vocab, count = 700, len(kinds(700))
    since = NewTensors()
    sampler = DeviceSampler(vocab, GPU, count)
    tokens = SampledTokens(LikeliestTokens(GPU, count), sampler)
    rows = [SampledRow(index, one, 0) for index, one in enumerate(states(vocab, count))]
    sampler._planned(rows)  # sends all that the kernels read
    assert since.note() > 12 * vocab * count
    tokens.close()
    assert since.left() == []
    tokens.close()


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_an_attention_server(backend: str) -> None:
    if backend == "triton":
        pytest.importorskip("triton")
    since = NewTensors()
    server = AttentionServer(
        [SPEC], backend=backend, num_pages=4, max_position=64, max_tokens=16, device=GPU, dtype="float32"
    )
    server.open(1)
    server.plan([Chunk(1, 0, 3)])
    server.rollback()
    assert since.note() >= 4 * 16 * 2 * 16 * 4
    server.shutdown()
    assert since.left() == []
    with pytest.raises(AttentionError, match="the attention server was shut down; make another one"):
        server.plan([Chunk(1, 0, 3)])
    assert server.graph_key is None
    server.shutdown()
