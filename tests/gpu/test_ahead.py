"""One step ahead on an NVIDIA GPU: the answers of lockstep, to the bit where the engine is deterministic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cleave import LLM, SamplingParams
from cleave.export.artifact import Artifact
from cleave.kvcache.budget import page_bytes
from cleave.kvcache.memory_plan import ITEM_BYTES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
PAGES = 12
"""So few that requests preempt each other."""
KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.0, "stop": ["an", "er"]},
    {"temperature": 1.0, "logprobs": 2},
    {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2},
    {"temperature": 0.0, "prompt_logprobs": 0},
)


def answers(folder: Path, kinds: tuple[dict[str, Any], ...], *, ahead: bool) -> tuple[list[Any], int, int]:
    """What a user sees of 24 requests, steps that were launched, and preemptions."""
    artifact = Artifact.open(folder, verify=False)
    cache = PAGES * page_bytes(artifact.manifest.layer_specs, 16, ITEM_BYTES[artifact.manifest.dtype])
    generator = np.random.default_rng(0)
    with LLM(
        folder,
        "inductor",
        deterministic=True,
        verify=False,
        ahead=ahead,
        max_sequences=12,
        max_tokens_per_step=128,
        kv_cache_bytes=cache,
    ) as llm:
        launches = 0
        launch = llm._thread._loop._stepper.launch

        def counted(*arguments: Any) -> Any:
            nonlocal launches
            launches += 1
            return launch(*arguments)

        llm._thread._loop._stepper.launch = counted  # type: ignore[method-assign]
        vocab_size = llm.model.tokenizer.vocab_size
        prompts = [generator.integers(3, vocab_size, 1 + 5 * index % 70).tolist() for index in range(24)]
        params = [
            SamplingParams(
                max_tokens=40 + 7 * index % 60,
                seed=index,
                ignore_eos=index % 3 > 0,
                **kinds[index % len(kinds)],
            )
            for index in range(24)
        ]
        told = [
            (answer.token_ids, answer.text, answer.finish_reason, answer.stop_reason, answer.error)
            for answer in llm.generate(prompts, params)
        ]
        llm.model.attention.check()
        assert llm.stats().pages_used == 0
        return told, launches, llm.stats().preemptions


@pytest.mark.parametrize(
    "kinds", [KINDS[:1], KINDS[:4], KINDS], ids=["greedy", "sampled", "some in lockstep"]
)
def test_answers_are_those_of_lockstep(demo_artifact: Path, kinds: tuple[dict[str, Any], ...]) -> None:
    ahead, launches, preemptions = answers(demo_artifact, kinds, ahead=True)
    lockstep, none, _ = answers(demo_artifact, kinds, ahead=False)
    assert ahead == lockstep
    assert launches > 30
    assert (none, preemptions > 0) == (0, True)
