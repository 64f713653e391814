"""One step ahead on an NVIDIA GPU: the answers of lockstep, to the bit where the engine is deterministic."""

from __future__ import annotations

from collections.abc import Iterator
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
OPTIONS: dict[str, Any] = {"deterministic": True}
PAGES = 12
"""So few that requests preempt each other."""
REQUESTS = 24
KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.0, "stop": ["an", "er"]},
    {"temperature": 1.0, "logprobs": 2},
    {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2},
    {"temperature": 0.0, "prompt_logprobs": 0},
)


class Counted:
    """A model whose launches are counted."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self.launches = 0
        stepper = llm._thread._loop._stepper
        launch = stepper.launch

        def counted(*arguments: Any) -> Any:
            self.launches += 1
            return launch(*arguments)

        stepper.launch = counted  # type: ignore[method-assign]

    def answers(self, kinds: tuple[dict[str, Any], ...]) -> tuple[list[Any], int, int]:
        """What a user sees of the requests, steps that were launched for them, and preemptions."""
        generator = np.random.default_rng(0)
        launches, preemptions = self.launches, self.llm.stats().preemptions
        vocab_size = self.llm.model.tokenizer.vocab_size
        prompts = [
            generator.integers(3, vocab_size, 1 + 5 * index % 70).tolist() for index in range(REQUESTS)
        ]
        params = [
            SamplingParams(
                max_tokens=40 + 7 * index % 60,
                seed=index,
                ignore_eos=index % 3 > 0,
                **kinds[index % len(kinds)],
            )
            for index in range(REQUESTS)
        ]
        told = [
            (answer.token_ids, answer.text, answer.finish_reason, answer.stop_reason, answer.error)
            for answer in self.llm.generate(prompts, params)
        ]
        assert self.llm.wait_until_idle(60)
        self.llm._thread.call(lambda state: state.pages.check()).result()
        assert self.llm.stats().pages_used == 0
        return told, self.launches - launches, self.llm.stats().preemptions - preemptions


@pytest.fixture(scope="module")
def both(demo_artifact: Path) -> Iterator[tuple[Counted, Counted]]:
    """The same model ahead and in lockstep."""
    manifest = Artifact.open(demo_artifact, verify=False).manifest
    options = OPTIONS | {
        "verify": False,
        "max_sequences": 12,
        "max_tokens_per_step": 128,
        "kv_cache_bytes": PAGES * page_bytes(manifest.layer_specs, 16, ITEM_BYTES[manifest.dtype]),
    }
    with (
        LLM(demo_artifact, "inductor", **options) as ahead,
        LLM(demo_artifact, "inductor", ahead=False, **options) as lockstep,
    ):
        yield Counted(ahead), Counted(lockstep)


@pytest.mark.parametrize(
    "kinds", [KINDS[:1], KINDS[:4], KINDS], ids=["greedy", "sampled", "some in lockstep"]
)
def test_answers_are_those_of_lockstep(
    both: tuple[Counted, Counted], kinds: tuple[dict[str, Any], ...]
) -> None:
    ahead, launches, _ = both[0].answers(kinds)
    lockstep, none, preemptions = both[1].answers(kinds)
    assert ahead == lockstep
    assert launches > 30
    assert (none, preemptions > 0) == (0, True)
