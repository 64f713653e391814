"""Logits of large shapes with random weights on an NVIDIA GPU, against transformers in float32."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cleave.export.artifact import Artifact
from cleave.kvcache.server import AttentionServer
from cleave.kvcache.step import Chunk
from cleave.runtime.engines.engine import EngineOptions
from cleave.runtime.engines.inductor.engine import InductorEngine
from cleave.runtime.engines.inductor.weights import as_tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PROMPTS, DECODED = (48, 17, 96), 4
SHAPES = [("llama-2-7b", 32), ("llama-3-8b", 6)]
"""And the layers: the first one whole, in float16; the second one in bfloat16, with grouped queries."""


@pytest.fixture(params=SHAPES, ids=["llama-2-7b", "llama-3-8b"])
def shape(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Artifact, LlamaConfig]]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu_shapes import GPU_SHAPES
    from random_artifact import write_graphs, write_random_weights

    name, layers = request.param
    dtype, shape = GPU_SHAPES[name]
    shape = shape | {"num_hidden_layers": layers}
    config = LlamaConfig(**shape, tie_word_embeddings=False)
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in LlamaForCausalLM(config).parameters())
    free, total = torch.cuda.mem_get_info()
    needed = f"{parameters:,} parameters need 5 bytes each"
    if total < 5 * parameters:
        pytest.skip(f"the GPU has {total >> 30} GiB, and {needed}")
    if free < 5 * parameters:
        pytest.fail(f"only {free >> 30} of {total >> 30} GiB of the GPU are free, and {needed}")
    with tempfile.TemporaryDirectory(dir=place_for(2 * parameters, tmp_path)) as folder:
        write_graphs(dtype, shape, Path(folder))
        write_random_weights(dtype, shape, Path(folder))
        yield Artifact.open(folder, verify=False), config


def place_for(size: int, tmp_path: Path) -> Path:
    """A folder with room for so many bytes: in memory where there is some, since they are read once."""
    for place, needed in ((Path("/dev/shm"), 2 * size), (tmp_path, size + (1 << 30))):
        if place.is_dir() and shutil.disk_usage(place).free > needed:
            return place
    pytest.skip(f"{tmp_path} has no room for {size >> 30} GiB of weights")


def test_logits_are_as_near_to_float32_as_those_of_transformers(shape: tuple[Artifact, LlamaConfig]) -> None:
    """The yardstick is what transformers itself loses with the same weights in the same dtype."""
    artifact, config = shape
    generator = np.random.default_rng(0)
    tokens = [generator.integers(0, config.vocab_size, prompt + DECODED) for prompt in PROMPTS]
    got = logits_of(artifact, tokens)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).eval()
    assert model.dtype == torch.float32
    assert not torch.backends.cuda.matmul.allow_tf32
    for name, weight in model.named_parameters():
        weight.data.copy_(as_tensor(artifact.weight(name)))
    truth = transformers_logits(model, tokens)
    narrow = transformers_logits(model.to(getattr(torch, artifact.manifest.dtype)), tokens)
    for number, _ in enumerate(PROMPTS):
        scale = np.linalg.norm(truth[number])
        lost = np.linalg.norm(narrow[number] - truth[number]) / scale
        error = np.linalg.norm(got[:, number] - truth[number]) / scale
        assert 0 < lost < 0.2
        assert error < 1.3 * lost, (error, lost)


def logits_of(artifact: Artifact, tokens: list[np.ndarray]) -> np.ndarray:
    """Of the last token of every prompt, and of those decoded after it: [steps, sequences, vocab]."""
    # Not out of the engine cache: it compiles what these steps run, a quarter of what there is.
    engine = InductorEngine(artifact, EngineOptions(max_tokens=256, max_sequences=4))
    attention = AttentionServer(
        artifact.manifest.layer_specs,
        backend="triton",
        num_pages=64,
        max_position=256,
        max_tokens=256,
        device=engine.device,
        dtype=engine.dtype,
    )
    steps = []
    for number in range(len(tokens)):
        attention.open(number)
    for step in range(DECODED + 1):
        bounds = [(0, prompt) if step == 0 else (prompt + step - 1, prompt + step) for prompt in PROMPTS]
        attention.plan([Chunk(number, start, end - start) for number, (start, end) in enumerate(bounds)])
        given = np.concatenate([one[start:end] for one, (start, end) in zip(tokens, bounds, strict=True)])
        rows = np.cumsum([end - start for start, end in bounds]) - 1
        steps.append(engine.run(given, rows, attention).copy())
        attention.commit()
    engine.close()
    attention.shutdown()
    torch.cuda.empty_cache()
    return np.stack(steps)


@torch.no_grad()
def transformers_logits(model: LlamaForCausalLM, tokens: list[np.ndarray]) -> list[np.ndarray]:
    """As `logits_of`, one sequence after the other: [sequences][steps, vocab]."""
    return [
        model(torch.from_numpy(one)[None].cuda()).logits[0, prompt - 1 :].float().cpu().numpy()
        for one, prompt in zip(tokens, PROMPTS, strict=True)
    ]
