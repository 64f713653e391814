"""A batch in lockstep: the steps it takes, and that its tokens are those of the LLM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cleave import LLM, SamplingParams
from cleave.errors import BenchError
from cleave.export.artifact import Artifact
from cleave.kvcache.step import Chunk
from cleave.runtime.bench.fit import Memory, kv_bytes_for
from cleave.runtime.bench.latency import LatencyRequest, measure
from cleave.runtime.bench.lockstep import Lockstep, decode_steps, ending_rows, prefill_steps
from cleave.runtime.model import Model
from cleave.runtime.model_options import ModelOptions

GIB = 1 << 30


def test_a_prefill_fills_every_step() -> None:
    steps = prefill_steps(batch=3, prompt=4, budget=5)
    assert steps == [
        [Chunk(0, 0, 4), Chunk(1, 0, 1)],
        [Chunk(1, 1, 3), Chunk(2, 0, 2)],
        [Chunk(2, 2, 2)],
    ]
    assert [ending_rows(step, 4) for step in steps] == [[3], [2], [1]]


def test_a_prompt_longer_than_a_step_runs_in_chunks() -> None:
    steps = prefill_steps(batch=1, prompt=5, budget=2)
    assert steps == [[Chunk(0, 0, 2)], [Chunk(0, 2, 2)], [Chunk(0, 4, 1)]]
    assert [ending_rows(step, 5) for step in steps] == [[], [], [0]]


def test_decoding_goes_on_after_the_prompt() -> None:
    assert decode_steps(batch=2, prompt=4, count=2) == [
        [Chunk(0, 4, 1), Chunk(1, 4, 1)],
        [Chunk(0, 5, 1), Chunk(1, 5, 1)],
    ]


@pytest.mark.parametrize("budget", [7, 64])
def test_it_generates_what_the_llm_generates(budget: int, artifact: Callable[[str], Path]) -> None:
    prompts = np.random.default_rng(0).integers(0, 256, (4, 10))
    with LLM(artifact("gqa")) as llm:
        expected = llm.generate(prompts.tolist(), SamplingParams(max_tokens=6, ignore_eos=True))
    model = Model(artifact("gqa"), ModelOptions(max_tokens_per_step=budget))
    lockstep = Lockstep(model, prompts)
    lockstep.prefill()
    assert lockstep._next.tolist() == [answer.token_ids[0] for answer in expected]
    lockstep.decode(5)
    assert lockstep._next.tolist() == [answer.token_ids[5] for answer in expected]
    lockstep.close()
    assert model.attention.free_pages == model.attention.num_pages
    model.close()


def test_latency_measures_every_batch_in_both_phases(artifact: Callable[[str], Path]) -> None:
    request = LatencyRequest(artifact("gqa"), [1, 3], prompt=8, output=4, repetitions=2)
    done = []
    measurement = measure(request, lambda count, total: done.append((count, total)))
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert [(phase.name, phase.batch, phase.tokens) for phase in measurement.phases] == [
        ("prefill", 1, 8),
        ("decode", 1, 3),
        ("prefill", 3, 24),
        ("decode", 3, 9),
    ]
    assert all(len(phase.runs) == 2 for phase in measurement.phases)
    assert all(len(run.seconds) == (1 if phase.name == "prefill" else 3)
               for phase in measurement.phases for run in phase.runs)  # fmt: skip
    assert len(measurement.limits) == 2


def test_what_does_not_fit_the_memory_is_said_with_what_would(demo_artifact: Path) -> None:
    opened = Artifact.open(demo_artifact, verify=False)
    page = 16 * sum(2 * spec.kv_size for spec in opened.manifest.layer_specs) * 4
    weights = sum(tensor.nbytes for tensor in opened.tensors.values()) * 2
    free = weights + 100 * page
    assert kv_bytes_for(opened, 10, 100, 61, Memory(free)) == 100 * page
    with pytest.raises(BenchError) as caught:
        kv_bytes_for(opened, 11, 100, 61, Memory(free))
    message = str(caught.value)
    assert "batch 11 with prompt 100 and output 61 needs" in message
    assert (
        "batch 10 at this length, or 145 tokens a request, prompt and output together, at batch 11" in message
    )
    assert kv_bytes_for(opened, 11, 100, 45, Memory(free)) == 99 * page
    with pytest.raises(BenchError, match="not even one such request would fit"):
        kv_bytes_for(opened, 1, 100, 61, Memory(weights))


def test_what_does_not_fit_the_context_is_said_with_what_would(artifact: Callable[[str], Path]) -> None:
    opened = Artifact.open(artifact("gqa"))
    with pytest.raises(BenchError, match="with this prompt an output of up to 12 would fit"):
        kv_bytes_for(opened, 1, 500, 13)
    with pytest.raises(BenchError, match="up to 511 would"):
        kv_bytes_for(opened, 1, 512, 13)
