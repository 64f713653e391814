"""Memory of the engine inductor: nothing is allocated while it serves, and what is too large says so."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from cleave import LLM, SamplingParams
from cleave.errors import EngineError
from cleave.kvcache.step import Chunk
from cleave.runtime.engines.engine import device_engine
from cleave.runtime.model import Model
from cleave.runtime.model_options import ModelOptions

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def test_a_decode_step_allocates_nothing(demo_artifact: Path) -> None:
    """Not even out of what torch keeps; before, each size was run once, as it is when a model is loaded."""
    options = ModelOptions(engine="inductor", verify=False, max_sequences=8)
    with closing(Model(demo_artifact, options)) as model:
        engine, attention = device_engine(model.engine), model.attention
        assert engine is not None
        for sequence in range(8):
            attention.open(sequence)
        for sequences in (range(8), range(3), range(1)):
            before = torch.cuda.memory_stats()
            for _ in range(40):
                attention.plan([Chunk(sequence, attention.length(sequence), 1) for sequence in sequences])
                rows = np.arange(len(sequences))
                engine.launch(rows, rows, attention)
                attention.commit()
            after = torch.cuda.memory_stats()
            for count in ("allocation.all.allocated", "num_device_alloc", "reserved_bytes.all.current"):
                assert after[count] == before[count], count


def test_serving_takes_no_memory_from_the_device(demo_artifact: Path) -> None:
    with LLM(demo_artifact, "inductor", verify=False, max_sequences=16, prefix_cache=False) as llm:
        prompts = [[3 + length % 50] * length for length in range(1, 60)]
        llm.generate(prompts, SamplingParams(max_tokens=20, ignore_eos=True))
        torch.cuda.synchronize()
        before = torch.cuda.memory_stats()
        # The same steps: all prompts are queued before the first of them.
        llm.generate(prompts, SamplingParams(max_tokens=20, ignore_eos=True))
        torch.cuda.synchronize()
        after = torch.cuda.memory_stats()
    assert after["num_device_alloc"] == before["num_device_alloc"]
    assert after["allocated_bytes.all.current"] <= before["allocated_bytes.all.current"]


def held() -> int:
    """Bytes of the device that tensors of this process hold."""
    gc.collect()
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()  # torch keeps one for each stream that products ran on
    return torch.cuda.memory_allocated()


def test_a_closed_model_leaves_nothing_on_the_device(demo_artifact: Path) -> None:
    before = held()
    llm = LLM(demo_artifact, "inductor", verify=False, max_sequences=8)
    for temperature in (0.0, 1.0):
        params = SamplingParams(temperature=temperature, max_tokens=8, ignore_eos=True)
        llm.generate([[3, 5, 8]] * 5, params)
    weights = (demo_artifact / "weights.safetensors").stat().st_size
    assert held() > before + weights
    llm.close()
    assert held() == before


@pytest.fixture
def room() -> Iterator[None]:
    """What other tests have left is given back before, and limits are lifted behind."""
    gc.collect()
    torch.cuda.empty_cache()
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def limit_to(more: int) -> None:
    """Let this process have `more` bytes beyond what it holds."""
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + more) / total)


@pytest.mark.usefixtures("room")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (2 << 20, r"cuda:0 is full after .* of weights; take a GPU with more memory"),
        (120 << 20, r"cuda:0 has no room for a step of 65536 tokens beside .*; lower max_tokens_per_step"),
    ],
    ids=["weights", "step"],
)
def test_a_device_that_is_too_small_says_what_to_lower(demo_artifact: Path, more: int, message: str) -> None:
    options = ModelOptions(engine="inductor", verify=False, max_tokens_per_step=65536, max_sequences=512)
    Model(demo_artifact, ModelOptions(engine="inductor", verify=False, max_sequences=1)).close()  # built
    gc.collect()
    torch.cuda.empty_cache()
    limit_to(more)
    with pytest.raises(EngineError, match=message):
        Model(demo_artifact, options)
