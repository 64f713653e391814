"""The engine `inductor` on the CPU: compiled for real, over the reference attention backend."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import cleave
from torch._inductor import CompiledArtifact
from torch._inductor import config as inductor_config
from torch._inductor.async_compile import AsyncCompile

from cleave import LLM, SamplingParams
from cleave.errors import EngineError
from cleave.export.artifact import Artifact
from cleave.kvcache.server import AttentionServer
from cleave.kvcache.step import Chunk
from cleave.runtime.compare.trace import to_numpy
from cleave.runtime.engines.engine import Engine, EngineOptions, create_engine
from cleave.runtime.engines.inductor import compiler
from cleave.runtime.engines.inductor import engine as engine_module
from cleave.runtime.engines.inductor import functions as functions_module
from cleave.runtime.engines.inductor.choose import Linear
from cleave.runtime.engines.inductor.engine import InductorEngine
from cleave.runtime.engines.inductor.small_launch import Blocks

pytestmark = pytest.mark.slow
"""A C++ compiler takes some seconds for every function."""

STEPS = ([(0, 20)], [(0, 1), (1, 9)], [(0, 1), (1, 1)], [(0, 1)], [(0, 2), (1, 30)])
"""Of each step the chunks, as sequence and number of tokens."""


def options(cache: Path | None = None) -> EngineOptions:
    return EngineOptions(max_tokens=64, max_sequences=4, threads=1, device="cpu", cache=cache)


def server_of(artifact: Artifact) -> AttentionServer:
    server = AttentionServer(
        artifact.manifest.layer_specs, backend="reference", num_pages=16, max_position=128, max_tokens=64
    )
    server.open(0)
    server.open(1)
    return server


def run_steps(engine: Engine, artifact: Artifact) -> list[np.ndarray]:
    server = server_of(artifact)
    generator = np.random.default_rng(0)
    results = []
    for step in STEPS:
        server.plan([Chunk(sequence, server.length(sequence), count) for sequence, count in step])
        counts = [count for _, count in step]
        token_ids = generator.integers(0, artifact.manifest.vocab_size, sum(counts))
        results.append(engine.run(token_ids, np.cumsum(counts) - 1, server).copy())
        server.commit()
    return results


@pytest.fixture(scope="module")
def demo(demo_artifact: Path) -> Artifact:
    return Artifact.open(demo_artifact, verify=False)


@pytest.fixture(scope="module")
def built(demo: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything compiled for the demo artifact."""
    folder = tmp_path_factory.mktemp("built")
    InductorEngine.build(demo, options(), folder)
    return folder


@pytest.fixture
def engine(demo: Artifact, built: Path) -> Iterator[InductorEngine]:
    made = InductorEngine(demo, options(built))
    yield made
    made.close()


def test_answers_are_those_of_the_onnxruntime_engine(demo_artifact: Path, demo_checkpoint: Path) -> None:
    known = json.loads((demo_checkpoint / "known_answers.json").read_text("utf-8"))
    prompts = [answer["prompt"] for answer in known if "prompt" in answer][:8]
    params = SamplingParams(max_tokens=24, ignore_eos=True)
    answers = []
    for kind, device in (("onnxruntime", None), ("inductor", "cpu")):
        with LLM(demo_artifact, kind, device=device, verify=False, max_model_len=128) as llm:
            assert llm.model.engine.kind == kind
            answers.append([completion.token_ids for completion in llm.generate(prompts, params)])
    assert answers[1] == answers[0]


def test_what_was_built_is_not_compiled_again(engine: InductorEngine, demo: Artifact) -> None:
    fresh = InductorEngine(demo, options())
    expected = run_steps(fresh, demo)
    assert fresh.compilations == 6  # three programs, for one row and for any number
    for got, wanted in zip(run_steps(engine, demo), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert engine.compilations == 0


def test_a_damaged_file_is_compiled_again(demo: Artifact, built: Path, tmp_path: Path) -> None:
    for file in built.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "middle-any.bin").write_bytes(b"no such thing")
    engine = InductorEngine(demo, options(tmp_path))
    run_steps(engine, demo)
    assert engine.compilations == 1


def test_what_was_built_for_a_gpu_is_loaded_without_compile_workers(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, answers = CompiledArtifact.load, []

    def load_kernels(**given: Any) -> Any:
        # What Inductor writes for a GPU asks so for each of its kernels.
        answers.append(AsyncCompile.use_process_pool())
        return load(**given)

    def start() -> Any:
        raise RuntimeError("a pool of compile workers was started")

    monkeypatch.setattr(CompiledArtifact, "load", load_kernels)
    monkeypatch.setattr(AsyncCompile, "process_pool", start)
    monkeypatch.setattr(AsyncCompile, "_ready_future", None)
    with inductor_config.patch(compile_threads=4):
        file = built / compiler.file_name("middle", None)
        assert compiler._load(file, torch.device("cuda")) is not None
        assert inductor_config.compile_threads == 4
    assert answers == [False]


def test_the_logits_are_those_of_the_onnxruntime_engine(engine: InductorEngine, demo: Artifact) -> None:
    other = create_engine("onnxruntime", demo, options())
    for got, wanted in zip(run_steps(engine, demo), run_steps(other, demo), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    other.close()


@pytest.mark.parametrize(("variant", "functions"), [("one_layer", 2), ("two_layers", 3), ("gqa", 3)])
def test_layers_share_one_compiled_function(
    artifact: Callable[[str], Path], variant: str, functions: int
) -> None:
    opened = Artifact.open(artifact(variant))
    engine = InductorEngine(opened, options())
    server = server_of(opened)
    server.plan([Chunk(0, 0, 5)])
    engine.run(np.arange(5), np.array([4]), server)
    assert server.runs == opened.manifest.num_layers
    assert engine.compilations == functions


def test_the_command_takes_the_attention_that_this_engine_can_hand_over_to(
    artifact: Callable[[str], Path],
) -> None:
    """Also without a GPU, where other engines have the backend `cpu`."""
    given = ["--model", artifact("one_layer"), "--engine", "inductor", "--device", "cpu"]
    ended = cleave("run", *given, "--input", "a", "--max_new_tokens", 3, "--ignore_eos", "--json")
    assert ended.code == 0, ended.err
    assert len(json.loads(ended.out)["token_ids"]) == 3


def test_token_ids_may_be_on_the_device_already(engine: InductorEngine, demo: Artifact) -> None:
    token_ids = np.array([5, 77, 2, 1000, 31])
    results = []
    for given in (token_ids, torch.from_numpy(token_ids)):
        server = server_of(demo)
        server.plan([Chunk(0, 0, 5)])
        logits = engine.launch(given, np.array([1, 4]), server).logits
        assert isinstance(logits, torch.Tensor)
        assert logits.shape == (2, demo.manifest.vocab_size)
        results.append(logits.numpy().copy())
    np.testing.assert_array_equal(*results)


class _Residuals:
    def __init__(self) -> None:
        self.seen: list[tuple[int, np.ndarray]] = []

    def residual(self, layer: int, residual: Any) -> None:
        self.seen.append((layer, to_numpy(residual).copy()))


def test_an_observer_sees_the_residuals_that_onnx_runtime_shows(
    engine: InductorEngine, demo: Artifact
) -> None:
    seen = []
    for made in (engine, create_engine("onnxruntime", demo, options())):
        observer = _Residuals()
        plain = run_steps(made, demo)
        made.observe(observer)
        for observed, wanted in zip(run_steps(made, demo), plain, strict=True):
            np.testing.assert_allclose(observed, wanted, rtol=1e-5, atol=1e-5)
        made.observe(None)
        run_steps(made, demo)
        seen.append(observer.seen)
    assert [layer for layer, _ in seen[0]] == list(range(-1, demo.manifest.num_layers)) * len(STEPS)
    for (layer, got), (expected_layer, wanted) in zip(*seen, strict=True):
        assert layer == expected_layer
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_a_step_that_does_not_fit_is_refused(engine: InductorEngine, demo: Artifact) -> None:
    server = server_of(demo)
    with pytest.raises(EngineError, match="70 tokens and 2 logit rows; the engine was built for 64"):
        engine.run(np.zeros(70, np.int64), np.array([0]), server)
    with pytest.raises(EngineError, match="3 logit rows were asked of a step of 2 tokens"):
        engine.run(np.zeros(2, np.int64), np.array([0, 1, 1]), server)


def test_narrow_weights_are_widened_with_a_note(engine: InductorEngine, demo: Artifact) -> None:
    assert demo.manifest.dtype == "float16"
    assert engine.dtype == "float32"
    assert engine.notes == ("float16 weights are widened to float32: the CPU computes in float32",)


def test_with_fixed_rows_the_logits_are_those_of_the_onnxruntime_engine(
    artifact: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One function for all steps, also of one token. Only a GPU keeps what the option promises."""
    monkeypatch.setattr(engine_module, "check_deterministic", lambda device, dtype: None)
    opened = Artifact.open(artifact("gqa"))
    engine = InductorEngine(opened, replace(options(), deterministic=True))
    other = create_engine("onnxruntime", opened, options())
    for got, wanted in zip(run_steps(engine, opened), run_steps(other, opened), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    assert engine.compilations == 3
    engine.close()
    other.close()


@pytest.mark.parametrize("splits", [0, 2])
def test_with_own_kernels_the_logits_are_those_of_the_onnxruntime_engine(
    artifact: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, splits: int
) -> None:
    """As for few rows on a GPU: all linear layers in Triton, here in its interpreter."""
    monkeypatch.setattr(functions_module, "SMALL", {"cpu": (1, 2)})
    opened = Artifact.open(artifact("gqa"))
    engine = InductorEngine(opened, options())

    def choose(layer: Linear) -> Blocks:
        return Blocks(32, 32, 4, 2, splits if layer.norm_after else 0)

    monkeypatch.setattr(engine._functions, "chooser", choose)
    other = create_engine("onnxruntime", opened, options())
    for got, wanted in zip(run_steps(engine, opened), run_steps(other, opened), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    programs = [engine._functions._program_for(1, rows).module.code for rows in (1, 2)]
    assert ["split_linear" in code for code in programs] == [False, splits > 0]
    assert not any("torch._C._nn.linear" in code for code in programs)
    assert engine.compilations == 3  # those for any number of rows: in the others nothing can be joined
    engine.close()
    other.close()
