"""The demo checkpoint as GPTQ and AWQ would have written it: known answers, and independence of the batch."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command import cleave
from packed import Packing, pack_checkpoint
from together import run_together

from cleave import LLM, SamplingParams
from cleave.export.exporter import ExportRequest, export
from cleave.runtime.model import Model, ModelOptions

PACKINGS = {
    "gptq_act_order": Packing(group_size=32, act_order=True),
    "awq": Packing("awq", "gemm", group_size=64),
}


@pytest.fixture(scope="module", params=PACKINGS)
def artifact(
    request: pytest.FixtureRequest, demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("packed_demo")
    packed, _ = pack_checkpoint(demo_checkpoint, folder, PACKINGS[request.param])
    export(ExportRequest(str(packed), folder / "artifact", check=False))
    return folder / "artifact"


def test_the_known_answers(artifact: Path, demo_checkpoint: Path) -> None:
    known = json.loads((demo_checkpoint / "known_answers.json").read_text("utf-8"))
    known = [answer for answer in known if "prompt" in answer]
    with LLM(artifact) as llm:
        answers = llm.generate([answer["prompt"] for answer in known], SamplingParams(max_tokens=256))
    assert [answer.text for answer in answers] == [answer["text"] for answer in known]


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What transformers logs meanwhile."""
    messages: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    listener = Listener()
    logger = logging.getLogger("transformers")
    logger.addHandler(listener)
    yield messages
    logger.removeHandler(listener)


def test_plain_transformers_know_the_answer_too(artifact: Path, said: list[str]) -> None:
    """They ignore what is packed, and would answer with random weights."""
    options = ("--input", "The capital of France is", "--max_new_tokens", 8)
    ended = cleave("export", "--model", artifact.parent / "packed", "--test", *options)
    assert (ended.code, ended.out) == (0, "The capital of France is Paris.\n")
    assert not [message for message in said if "MISSING" in message]


def test_compare_tells_of_no_missing_weights(artifact: Path, said: list[str]) -> None:
    ended = cleave("compare", artifact, "--checkpoint", artifact.parent / "packed")
    assert ended.code == 0, ended
    assert not [message for message in said if "MISSING" in message]


def test_logits_are_the_same_alone_in_a_batch_and_in_chunks(artifact: Path) -> None:
    generator = np.random.default_rng(0)
    prompts = [generator.integers(0, 3072, length).tolist() for length in (70, 1, 33, 8)]
    model = Model(artifact, ModelOptions(max_tokens_per_step=512))
    try:
        together = run_together(model, prompts, chunk=1000)
        for prompt, expected in zip(prompts, together, strict=True):
            np.testing.assert_array_equal(run_together(model, [prompt], chunk=1000)[0], expected)
        for got, expected in zip(run_together(model, prompts, chunk=7), together, strict=True):
            np.testing.assert_array_equal(got, expected)
    finally:
        model.close()
