"""The engine inductor on an NVIDIA GPU: against transformers, against the CPU, and against itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from cleave import LLM, SamplingParams
from cleave.export.artifact import Artifact
from cleave.kvcache.server import AttentionServer
from cleave.kvcache.step import Chunk
from cleave.runtime.engines.engine import EngineOptions
from cleave.runtime.engines.inductor.engine import InductorEngine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
PROMPTS = (24, 17, 40)
DECODED = 6


class Loaded:
    """An engine over the attention backend triton, and random tokens that it reads."""

    def __init__(self, artifact: Artifact) -> None:
        specs = artifact.manifest.layer_specs
        # Not out of the engine cache: it compiles what these steps run, a quarter of what there is.
        self.engine = InductorEngine(artifact, EngineOptions(max_tokens=128, max_sequences=8))
        self.attention = AttentionServer(
            specs,
            backend="triton",
            num_pages=64,
            max_position=128,
            max_tokens=128,
            device=self.engine.device,
            dtype=self.engine.dtype,
        )
        generator = np.random.default_rng(0)
        vocab = artifact.manifest.vocab_size
        self.tokens = [generator.integers(0, vocab, prompt + DECODED) for prompt in PROMPTS]

    def logits(self, attention: Any = None) -> list[np.ndarray]:
        """All prompts in one step, then decode steps: [steps, sequences, vocab]."""
        for sequence in range(len(PROMPTS)):
            self.attention.open(sequence)
        steps = [self._step([(0, prompt) for prompt in PROMPTS], attention)]
        for step in range(DECODED):
            steps.append(self._step([(prompt + step, 1) for prompt in PROMPTS], attention))
        for sequence in range(len(PROMPTS)):
            self.attention.close(sequence)
        return steps

    def _step(self, chunks: list[tuple[int, int]], attention: Any) -> np.ndarray:
        self.attention.plan([Chunk(number, start, count) for number, (start, count) in enumerate(chunks)])
        given = [
            tokens[start : start + count] for tokens, (start, count) in zip(self.tokens, chunks, strict=True)
        ]
        rows = np.cumsum([count for _, count in chunks]) - 1
        logits = self.engine.run(np.concatenate(given), rows, attention or self.attention).copy()
        self.attention.commit()
        return logits

    def close(self) -> None:
        self.engine.close()
        self.attention.shutdown()


@pytest.fixture(scope="module")
def loaded(demo_in: Callable[[str], Path]) -> Iterator[Callable[[str], Loaded]]:
    """The demo checkpoint in a dtype."""
    made: dict[str, Loaded] = {}

    def get(dtype: str) -> Loaded:
        if dtype not in made:
            made[dtype] = Loaded(Artifact.open(demo_in(dtype), verify=False))
        return made[dtype]

    yield get
    for one in made.values():
        one.close()


class Ungraphed:
    """The attention server without its graph key, so that steps are launched one by one."""

    def __init__(self, attention: AttentionServer) -> None:
        self._attention = attention

    def run(self, *arguments: Any) -> None:
        self._attention.run(*arguments)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float16", 5e-3), ("bfloat16", 4e-2)])
def test_logits_are_those_of_transformers_in_float32(
    loaded: Callable[[str], Loaded], demo_checkpoint: Path, dtype: str, tolerance: float
) -> None:
    cut = loaded(dtype)
    model = AutoModelForCausalLM.from_pretrained(demo_checkpoint, dtype=torch.float32)
    steps = np.stack(cut.logits())
    for number, (tokens, prompt) in enumerate(zip(cut.tokens, PROMPTS, strict=True)):
        with torch.no_grad():
            truth = model(torch.from_numpy(tokens)[None]).logits[0, prompt - 1 :].numpy()
        got = steps[:, number]
        assert np.linalg.norm(got - truth) / np.linalg.norm(truth) < tolerance


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_replayed_graph_gives_what_its_launches_give(
    loaded: Callable[[str], Loaded], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = loaded(dtype)
    cut.logits()  # captures: a first step of each kind is launched
    first, replayed = cut.logits(), cut.logits()
    for one, other in zip(first, replayed, strict=True):
        np.testing.assert_array_equal(one, other)
    pieces = cut.logits(Ungraphed(cut.attention))
    monkeypatch.setattr(cut.engine, "_layer_graphs", None)
    launched = cut.logits(Ungraphed(cut.attention))
    # Steps are padded, here to 4 and to 96 rows: the functions differ, and with them the roundings.
    tolerance = 3e-3 if dtype == "float16" else 2e-2
    for given in (replayed, pieces):
        for one, other in zip(given, launched, strict=True):
            assert np.linalg.norm(one - other) / np.linalg.norm(other) < tolerance


def test_the_demo_answers_as_on_the_cpu(demo_artifact: Path, demo_checkpoint: Path) -> None:
    known = json.loads((demo_checkpoint / "known_answers.json").read_text("utf-8"))
    known = [answer for answer in known if "prompt" in answer]
    with LLM(demo_artifact) as llm:
        assert llm.model.engine.kind == "inductor"
        assert llm.model.engine.dtype == "float16"
        answers = llm.generate([answer["prompt"] for answer in known], SamplingParams(max_tokens=256))
    assert [answer.text for answer in answers] == [answer["text"] for answer in known]
