"""The option `deterministic`: who keeps it, and what the others say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cleave import LLM, SamplingParams
from cleave.errors import AttentionError, EngineError
from cleave.export.artifact import Artifact
from cleave.runtime.engines.engine import EngineOptions, create_engine, engine_builder
from cleave.runtime.engines.inductor.device import check_deterministic
from cleave.runtime.engines.inductor.graphs import batch_sizes

PROMPT = [3, 5, 8, 13, 21, 34]
OTHERS = [[2] * 40, [7, 9], list(range(3, 60))]
PARAMS = SamplingParams(max_tokens=12, ignore_eos=True, logprobs=3)


def test_on_a_cpu_it_is_taken_and_free(artifact: Callable[[str], Path]) -> None:
    """The same answer, logprobs included, alone and among others, with the option and without."""
    answers = []
    for options in ({}, {"deterministic": True}):
        with LLM(artifact("two_layers"), "onnxruntime", threads=1, **options) as llm:
            assert llm.model.attention_backend == "cpu"
            (alone,) = llm.generate([PROMPT], PARAMS)
            together = llm.generate([*OTHERS, PROMPT], PARAMS)[-1]
            answers += [(one.token_ids, one.logprobs) for one in (alone, together)]
    assert answers == [answers[0]] * 4


@pytest.mark.parametrize("kind", ["tensorrt", "tensorrt_rtx"])
def test_an_engine_that_cannot_promise_it_refuses(artifact: Callable[[str], Path], kind: str) -> None:
    opened = Artifact.open(artifact("one_layer"))
    options = EngineOptions(max_tokens=16, deterministic=True)
    message = f"the engine {kind} picks its kernels .*; take engine onnxruntime or inductor, or leave"
    for make in (create_engine, engine_builder):
        with pytest.raises(EngineError, match=message):
            make(kind, opened, options)


def test_the_inductor_engine_refuses_on_a_cpu(artifact: Callable[[str], Path]) -> None:
    with pytest.raises(EngineError, match="deterministic on a GPU only; on the CPU take engine onnxruntime"):
        LLM(artifact("one_layer"), "inductor", device="cpu", deterministic=True)


def test_the_inductor_engine_refuses_float32() -> None:
    with pytest.raises(EngineError, match="in float16 and bfloat16, and the artifact is float32; export"):
        check_deterministic(torch.device("cuda:0"), "float32")
    check_deterministic(torch.device("cuda:0"), "bfloat16")


@pytest.mark.parametrize("backend", ["onnx", "reference"])
def test_a_backend_that_cannot_promise_it_refuses(artifact: Callable[[str], Path], backend: str) -> None:
    message = f"attention '{backend}' gives a row other bits in other batches.*; take attention cpu, or leave"
    with pytest.raises(AttentionError, match=message):
        LLM(artifact("one_layer"), "onnxruntime", attention=backend, deterministic=True)


@pytest.mark.parametrize(
    ("most", "sizes"),
    [(1, (2,)), (2, (2,)), (3, (2, 3)), (20, (2, 4, 8, 16, 20)), (40, (2, 4, 8, 16, 32, 40))],
)
def test_steps_of_one_token_are_padded(most: int, sizes: tuple[int, ...]) -> None:
    assert batch_sizes(most, least=2) == sizes
