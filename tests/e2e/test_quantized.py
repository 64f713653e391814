"""Quantised artifacts through the whole system: right answers, and rules 1 and 2 as far as they can hold."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import process
from together import run_together

from cleave import LLM, SamplingParams
from cleave.errors import EngineError
from cleave.export.artifact import Artifact
from cleave.export.check import TOLERANCE, compare
from cleave.runtime.engines.engine import (
    EngineOptions,
    best_engine_kind,
    create_engine,
    engine_builder,
)
from cleave.runtime.engines.integer_products import are_exact
from cleave.runtime.engines.kinds import engine_kinds
from cleave.runtime.engines.processor import processor
from cleave.runtime.model import Model
from cleave.runtime.model_options import ModelOptions

KINDS: dict[str, dict[str, Any]] = {
    "int8": {"quantize": "int8"},
    "int8_all": {"quantize": "int8", "quantize_embedding": True},
    "int4": {"quantize": "int4"},
    "int4_64": {"quantize": "int4", "group_size": 64, "quantize_lm_head": False},
}
OPTIONS = EngineOptions(max_tokens=64)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def demo(kind: str, quantized_artifact: Callable[..., Path]) -> Path:
    return quantized_artifact("demo", **KINDS[kind])


@pytest.fixture(scope="module")
def model(demo: Path) -> Iterator[Model]:
    loaded = Model(demo, ModelOptions(max_tokens_per_step=512))
    yield loaded
    loaded.close()


def test_the_demo_gives_its_known_answers(demo: Path, demo_checkpoint: Path) -> None:
    known = json.loads((demo_checkpoint / "known_answers.json").read_text("utf-8"))
    known = [answer for answer in known if "prompt" in answer]
    with LLM(demo) as llm:
        answers = llm.generate([answer["prompt"] for answer in known], SamplingParams(max_tokens=256))
    assert [answer.text for answer in answers] == [answer["text"] for answer in known]


# A request's logits do not depend on what else is in the batch, bit for bit.


@pytest.fixture
def prompts() -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, length).tolist() for length in [70, 1, *generator.integers(1, 40, 14)]]


def test_logits_are_the_same_alone_and_in_a_batch(model: Model, prompts: list[list[int]]) -> None:
    together = run_together(model, prompts, chunk=1000)
    for prompt, expected in zip(prompts, together, strict=True):
        np.testing.assert_array_equal(run_together(model, [prompt], chunk=1000)[0], expected)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_logits_are_the_same_however_a_prompt_is_cut(
    model: Model, prompts: list[list[int]], chunk: int
) -> None:
    whole = run_together(model, prompts[:3], chunk=1000)
    for got, expected in zip(run_together(model, prompts[:3], chunk=chunk), whole, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_one_thread_or_two_give_the_same_logits(model: Model, prompts: list[list[int]]) -> None:
    expected = run_together(model, prompts, chunk=16)
    loaded = Model(model.folder, ModelOptions(max_tokens_per_step=512, threads=1))
    got = run_together(loaded, prompts, chunk=16)
    loaded.close()
    for one, two in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_quantised_model_does_not_take_threads_from_the_process(demo: Path) -> None:
    """Nothing that is looked at before the first piece may make the one pool of the process, and smaller."""
    code = """
        import sys
        from cleave import LLM, use_one_thread_pool
        from cleave.threads import own_process
        own_process()
        with LLM(sys.argv[1], threads=3, verify=False):
            print(use_one_thread_pool())
    """
    ended = process(["-c", textwrap.dedent(code), demo])
    assert (ended.code, ended.out) == (0, "3\n"), ended.err


# Every kind of model.

FITTING = [
    ("tied", "int4"),
    ("attention_bias", "int8"),
    ("qwen3", "int8_all"),
    *(
        pytest.param(*pair, marks=pytest.mark.slow)
        for pair in [
            ("gqa", "int8_all"),
            ("tied", "int8"),
            ("mlp_bias", "int4"),
            ("head_dim", "int4"),
            ("one_layer", "int8"),
            ("mistral_window", "int8"),
            ("qwen2_mixed_windows", "int4"),
        ]
    ),
]


@pytest.mark.parametrize(("variant", "kind"), FITTING)
def test_every_family_is_what_transformers_makes_of_the_same_weights(
    variant: str, kind: str, checkpoint: Callable[[str], Path], quantized_artifact: Callable[..., Path]
) -> None:
    """Its weights as floats give transformers' logits; integers add what rounding of activations may."""
    folder = quantized_artifact(variant, **KINDS[kind])
    found = compare(checkpoint(variant), folder, "cpu")
    assert found["relative_error"] < TOLERANCE
    assert TOLERANCE < found["integer_operators_relative_error"] < 0.1
    with LLM(folder) as llm:
        (answer,) = llm.generate([[3, 1, 4, 1, 5]], SamplingParams(max_tokens=8, ignore_eos=True))
    assert len(answer.token_ids) == 8


# What the processor may lack.


@pytest.mark.parametrize(("quantize", "is_told"), [("int8", True), ("int4", False)])
def test_int8_on_a_processor_whose_sums_saturate_is_told(
    quantize: str, is_told: bool, quantized_artifact: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cleave.runtime.engines.onnxruntime.are_exact", lambda threads: False)
    folder = quantized_artifact("demo", **KINDS[quantize])
    engine = create_engine("onnxruntime", Artifact.open(folder, verify=False), OPTIONS)
    assert any("saturate" in note for note in engine.notes) == is_told
    engine.close()


def test_the_products_of_this_processor_are_looked_at() -> None:
    vnni = ("avx512_vnni", "avx_vnni", "asimddp")
    if any(name in processor() for name in vnni):
        assert are_exact()


# Other engines.


@pytest.mark.parametrize("engine", [name for name in engine_kinds() if name != "onnxruntime"])
def test_other_engines_refuse_it_and_name_the_one_that_runs_it(engine: str, model: Model) -> None:
    artifact = Artifact.open(model.folder, verify=False)
    with pytest.raises(EngineError, match=r"is quantised.*--engine onnxruntime"):
        create_engine(engine, artifact, OPTIONS)
    with pytest.raises(EngineError, match="is quantised"):
        engine_builder(engine, artifact, OPTIONS)


def test_without_a_choice_the_engine_is_one_that_runs_it(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cleave.runtime.engines.engine.cuda_is_usable", lambda: True)
    assert best_engine_kind(Artifact.open(model.folder, verify=False)) == "onnxruntime"
    assert best_engine_kind() == "inductor"
