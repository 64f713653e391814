"""The attention kernels on an NVIDIA GPU, at the shapes of real models."""

from __future__ import annotations

import itertools

import pytest
import torch
from attention_cases import Case, check_halves
from decoding import Decoding

from cleave.kvcache.spec import AttentionSpec, RopeSpec
from cleave.kvcache.step import Chunk

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
LLAMA3_ROPE = RopeSpec("llama3", 5e5, 128, factor=8.0, original_max_position=8192)
MODELS = {
    "llama-2-7b": AttentionSpec(32, 32, 128, 128**-0.5, RopeSpec("default", 1e4, 128)),
    "llama-3-8b": AttentionSpec(32, 8, 128, 128**-0.5, LLAMA3_ROPE),
    "gemma-2": AttentionSpec(8, 4, 256, 1 / 16, RopeSpec("default", 1e4, 256), window=200, softcap=50.0),
    "gemma-3": AttentionSpec(8, 4, 256, 1 / 16, RopeSpec("default", 1e4, 256), window=200),
    "mistral": AttentionSpec(32, 8, 128, 128**-0.5, RopeSpec("default", 1e4, 128), window=200),
    "phi-2": AttentionSpec(32, 32, 80, 80**-0.5, RopeSpec("default", 1e4, 32)),
    "phi-3": AttentionSpec(32, 32, 96, 96**-0.5, RopeSpec("default", 1e4, 96)),
    "smollm": AttentionSpec(9, 3, 64, 0.125, None),
}
STEPS = ((300, 0, 1, 64), (1, 700, 1, 65), (129, 1, 30, 1), (1, 1, 1, 1))
LENGTHS = (0, 1, 15, 16, 17, 100, 511, 512, 513, 1000, 1023, 3000)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("model", MODELS)
def test_a_mixed_batch_is_attention_over_each_whole_sequence(model: str, dtype: str) -> None:
    if dtype == "float32" and model != "smollm":
        pytest.skip("float32 is for tests; one model shows that it works")
    check_halves(Case((MODELS[model],), STEPS, page_size=16, seed=3), dtype)


@pytest.mark.parametrize("model", ["llama-2-7b", "llama-3-8b"])
def test_a_replayed_graph_gives_what_launches_give(model: str) -> None:
    """Captured with five rows and one step, replayed for other sequences of other lengths."""
    decoding = Decoding(LENGTHS, MODELS[model], "float16")
    server, fused = decoding.server, torch.empty_like(decoding.random(5, 1))
    out = torch.empty(5, decoding.spec.q_size, dtype=fused.dtype, device=fused.device)
    tensors = [*fused.split(decoding.columns, dim=1), out]
    captured: dict[object, torch.cuda.CUDAGraph] = {}
    for sequences in ([3, 4, 5], [11, 0], [9, 1, 10, 8, 2], [6]):
        expected = decoding.step(sequences, spare=5 - len(sequences))
        server.plan([Chunk(sequence, LENGTHS[sequence], 1) for sequence in sequences])
        fused[:] = decoding.rows(sequences, spare=5 - len(sequences))
        out.fill_(torch.nan)
        if server.graph_key not in captured:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                server.run(0, *tensors)
            captured[server.graph_key] = graph
        captured[server.graph_key].replay()
        assert torch.equal(out, expected)
        server.rollback()
    assert len(captured) == 1


@pytest.mark.parametrize("model", ["llama-2-7b", "llama-3-8b"])
def test_repeated_steps_are_the_same_bits(model: str) -> None:
    """Programs that share a row end in any order; a lost write would show."""
    decoding = Decoding(LENGTHS, MODELS[model], "bfloat16")
    for sequences in ([11], range(len(LENGTHS))):
        first = decoding.step(sequences)
        for _ in range(200):
            assert torch.equal(decoding.step(sequences), first)


@pytest.mark.parametrize("model", ["llama-2-7b", "llama-3-8b"])
def test_with_fixed_splits_a_row_is_the_same_bits_in_any_batch(model: str) -> None:
    decoding = Decoding(LENGTHS, MODELS[model], "float16", {"deterministic": True})
    alone = [decoding.step([sequence])[0] for sequence in range(len(LENGTHS))]
    for order in (range(len(LENGTHS)), [11, 0, 9], [5, 4, 3, 10]):
        together = decoding.step(order, spare=3)
        for row, sequence in enumerate(order):
            assert torch.equal(together[row], alone[sequence])


@pytest.mark.parametrize("model", ["llama-2-7b", "llama-3-8b", "gemma-2", "gemma-3"])
def test_a_prompt_in_chunks_is_the_same_bits_where_that_is_asked_for(model: str) -> None:
    decoding = Decoding((700, 9), MODELS[model], "bfloat16", {"deterministic": True})
    server, fused = decoding.server, decoding.fused[0]
    results = []
    for cuts in ((0, 700), (0, 301, 700), (0, 2, 130, 437, 700)):
        server.close(0)
        server.open(0)
        parts = []
        for start, end in itertools.pairwise(cuts):
            server.plan([Chunk(0, start, end - start)])
            parts.append(decoding.run(fused[start:end]))
            server.commit()
        results.append(torch.cat(parts))
    assert torch.equal(results[1], results[0])
    assert torch.equal(results[2], results[0])
