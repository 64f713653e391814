"""Rule 2: what else is in the batch, and how a prompt is cut into chunks, changes not one bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from together import run_together

from cleave.runtime.model import Model
from cleave.runtime.model_options import ModelOptions


@pytest.fixture(scope="module", params=["demo", "qwen2_mixed_windows", "qwen3"])
def model(
    request: pytest.FixtureRequest, demo_artifact: Path, artifact: Callable[[str], Path]
) -> Iterator[Model]:
    folder = demo_artifact if request.param == "demo" else artifact(request.param)
    loaded = Model(folder, ModelOptions(max_tokens_per_step=2048))
    yield loaded
    loaded.close()


@pytest.fixture
def prompts(model: Model) -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, length).tolist() for length in [130, *generator.integers(1, 60, 31)]]


def test_logits_are_the_same_alone_and_in_a_batch_of_32(model: Model, prompts: list[list[int]]) -> None:
    together = run_together(model, prompts, chunk=1000)
    for prompt, expected in zip(prompts, together, strict=True):
        np.testing.assert_array_equal(run_together(model, [prompt], chunk=1000)[0], expected)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_logits_are_the_same_however_a_prompt_is_cut(
    model: Model, prompts: list[list[int]], chunk: int
) -> None:
    whole = run_together(model, prompts[:4], chunk=1000)
    for got, expected in zip(run_together(model, prompts[:4], chunk=chunk), whole, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_one_thread_or_two_give_the_same_logits(model: Model, prompts: list[list[int]]) -> None:
    results = []
    for threads in (1, 2):
        loaded = Model(model.folder, ModelOptions(max_tokens_per_step=2048, threads=threads))
        results.append(run_together(loaded, prompts, chunk=64))
        loaded.close()
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)
