"""The engine over a fake TensorRT for RTX, which computes by ONNX Runtime and keeps the real one's rules.

Nothing here ran on an RTX card.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from alive import NewTensors
from fake_graphs import FakeGraphs
from fake_tensorrt_plans import write_plans
from fake_tensorrt_rtx import Library

from cleave import LLM, SamplingParams
from cleave.errors import EngineError
from cleave.export.artifact import Artifact
from cleave.export.exporter import ExportRequest, export
from cleave.kvcache.server import AttentionServer
from cleave.kvcache.step import Chunk
from cleave.runtime.engines.engine import EngineOptions, create_engine
from cleave.runtime.engines.tensorrt_rtx import builder as builder_module
from cleave.runtime.engines.tensorrt_rtx import device, library
from cleave.runtime.engines.tensorrt_rtx import engine as engine_module
from cleave.runtime.engines.tensorrt_rtx.builder import TensorRtRtxBuilder
from cleave.runtime.engines.tensorrt_rtx.engine import TensorRtRtxEngine
from cleave.runtime.engines.tensorrt_rtx.plan import DESCRIPTION, EngineDescription
from cleave.runtime.engines.tensorrt_rtx.profiles import Profiles

LIMITS = Profiles(max_sequences=6, max_tokens=64)
STEPS = (
    [(0, 20)],
    [(0, 1), (1, 9)],
    [(0, 1), (1, 1)],
    [(0, 1)],
    [(0, 1), (1, 1), (2, 1)],
    [(0, 2), (1, 30)],
    [(0, 1), (1, 1)],
    [(0, 1), (1, 1), (2, 1)],
)
"""Of each step the chunks, as sequence and number of tokens."""


class Attention:
    """The reference server, as a GPU's would be seen: it pads decode steps, and can be captured."""

    def __init__(self, artifact: Artifact, fake: Library, *, has_key: bool = True) -> None:
        self.server = AttentionServer(
            artifact.manifest.layer_specs, backend="reference", num_pages=32, max_position=128, max_tokens=64
        )
        for sequence in range(3):
            self.server.open(sequence)
        self._fake, self._has_key = fake, has_key
        self._step: list[tuple[int, int]] = []

    @property
    def graph_key(self) -> Hashable | None:
        """Equal for decode steps of any size."""
        is_decode = all(count == 1 for _, count in self._step)
        return "decode" if is_decode and self._has_key else None

    def plan(self, step: list[tuple[int, int]]) -> None:
        self._step = step
        self.server.plan([Chunk(sequence, self.server.length(sequence), count) for sequence, count in step])

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        def work() -> None:
            tokens = sum(count for _, count in self._step)
            self.server.run(layer, q[:tokens], k[:tokens], v[:tokens], out[:tokens])
            out[tokens:] = 0

        if self._fake.state.recorded is None:
            work()
        else:
            self._fake.state.recorded.append(work)


@pytest.fixture(scope="module")
def demo(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The demo in float32: what ONNX Runtime computes in either engine."""
    folder = tmp_path_factory.mktemp("float32")
    export(ExportRequest(str(demo_checkpoint), folder, dtype="float32", check=False))
    return Artifact.open(folder)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()
    monkeypatch.setattr(library, "load", lambda: made)
    monkeypatch.setattr(engine_module, "check_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr(engine_module, "compute_capability", lambda device: "8.9")
    monkeypatch.setattr(engine_module, "DecodeGraphs", lambda sizes, device: FakeGraphs(made.state, sizes))
    return made


@pytest.fixture
def folder(tmp_path: Path, demo: Artifact) -> Path:
    write_plans(demo, LIMITS, tmp_path)
    return tmp_path


def options(folder: Path | None, **changes: Any) -> EngineOptions:
    given: dict[str, Any] = {"max_tokens": 64, "max_sequences": 6, "threads": 1, "cache": folder}
    return EngineOptions(**(given | changes))


@pytest.fixture
def engine(demo: Artifact, fake: Library, folder: Path) -> Iterator[TensorRtRtxEngine]:
    made = TensorRtRtxEngine(demo, options(folder))
    yield made
    made.close()


def run_steps(engine: Any, artifact: Artifact, attention: Attention) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    results = []
    for step in STEPS:
        attention.plan(step)
        counts = [count for _, count in step]
        token_ids = generator.integers(0, artifact.manifest.vocab_size, sum(counts))
        results.append(engine.run(token_ids, np.cumsum(counts) - 1, attention).copy())
        attention.server.commit()
    return results


class Plain:
    """The reference server as it is, for the engine that the others are compared with."""

    def __init__(self, attention: Attention) -> None:
        self.attention = attention

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        tensors = [torch.from_numpy(array) for array in (q, k, v, out)]
        self.attention.server.run(layer, *tensors)


def expected_steps(demo: Artifact, fake: Library) -> list[np.ndarray]:
    attention = Attention(demo, fake)
    other = create_engine("onnxruntime", demo, options(None))
    plain = Plain(attention)
    plain.plan, plain.server = attention.plan, attention.server  # type: ignore[attr-defined]
    results = run_steps(other, demo, plain)  # type: ignore[arg-type]
    other.close()
    return results


@pytest.mark.parametrize("has_key", [True, False])
def test_the_logits_are_those_of_the_onnxruntime_engine(
    engine: TensorRtRtxEngine, demo: Artifact, fake: Library, has_key: bool
) -> None:
    got = run_steps(engine, demo, Attention(demo, fake, has_key=has_key))
    for logits, wanted in zip(got, expected_steps(demo, fake), strict=True):
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4)
    layers = demo.manifest.num_layers
    tokens = [tokens for name, _, tokens in fake.state.runs if name == "last"]
    if has_key:
        # The first decode step of a bucket runs once, and is captured; then each is one replay.
        assert tokens == [20, 10, 2, 1, 4, 32, 2, 4]
        assert engine._graphs.captures == [(2, "decode"), (1, "decode"), (4, "decode")]
        assert engine._graphs.replays == 2
    else:
        assert tokens == [sum(count for _, count in step) for step in STEPS]
    assert len(fake.state.runs) == len(tokens) * (layers + 1)
    assert {profile for _, profile, size in fake.state.runs if size > 6} == {len(LIMITS.buckets)}


def test_a_closed_engine_holds_no_tensors(demo: Artifact, fake: Library, folder: Path) -> None:
    attention = Attention(demo, fake)
    since = NewTensors()
    engine = TensorRtRtxEngine(demo, options(folder))
    run_steps(engine, demo, attention)
    assert since.note() > demo.tensors[demo.manifest.embedding].nbytes
    fake.state.runs.clear()
    engine.close()
    assert since.left() == []


def test_tokens_are_those_of_the_onnxruntime_engine(
    demo: Artifact, demo_checkpoint: Path, fake: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = json.loads((demo_checkpoint / "known_answers.json").read_text("utf-8"))
    prompts = [answer["prompt"] for answer in known if "prompt" in answer][:4]
    params = SamplingParams(max_tokens=16, ignore_eos=True)
    limits = {"max_tokens_per_step": 64, "max_sequences": 4}

    def build(self: TensorRtRtxBuilder, folder: Path, progress: object) -> None:
        write_plans(demo, Profiles(4, 64), folder)

    monkeypatch.setattr(TensorRtRtxBuilder, "build", build)
    monkeypatch.setattr(device, "check_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr(device, "compute_capability", lambda device: "8.9")
    monkeypatch.setattr(builder_module, "load", lambda: fake)
    monkeypatch.setenv("CLEAVE_CACHE", str(tmp_path))
    answers = []
    for kind in ("onnxruntime", "tensorrt_rtx"):
        with LLM(demo.folder, kind, verify=False, max_model_len=128, **limits) as llm:
            assert llm.model.engine.kind == kind
            answers.append([completion.token_ids for completion in llm.generate(prompts, params)])
    assert answers[1] == answers[0]
    assert fake.state.runs


@pytest.mark.parametrize("variant", ["one_layer", "two_layers", "tied"])
def test_models_of_few_layers_and_tied_ones_run(
    variant: str, artifact: Callable[[str], Path], fake: Library, tmp_path: Path
) -> None:
    opened = Artifact.open(artifact(variant))
    write_plans(opened, LIMITS, tmp_path)
    engine = TensorRtRtxEngine(opened, options(tmp_path))
    got = run_steps(engine, opened, Attention(opened, fake))
    for logits, wanted in zip(got, expected_steps(opened, fake), strict=True):
        np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4)
    stored = {piece for layer in engine._addresses for piece in layer}
    assert "attention" in stored
    weights = sum(opened.weight(name).nbytes for name in opened.tensors)
    assert engine._weights.nbytes == weights  # a tied lm_head is the embedding itself
    engine.close()


def test_a_context_is_made_for_each_profile_that_is_used_and_no_more(
    engine: TensorRtRtxEngine, demo: Artifact, fake: Library
) -> None:
    attention = Attention(demo, fake)
    run_steps(engine, demo, attention)
    used = {(name, profile) for name, profile, _ in fake.state.runs}
    assert fake.state.contexts == len(used) == 3 * 4  # three plans; prefill and the buckets 1, 2 and 4
    run_steps(engine, demo, attention)
    assert fake.state.contexts == len(used)


def test_steps_that_cannot_be_captured_are_launched_piece_by_piece(
    engine: TensorRtRtxEngine, demo: Artifact, fake: Library, caplog: pytest.LogCaptureFixture
) -> None:
    fake.state.is_capturable = False
    got = run_steps(engine, demo, Attention(demo, fake))
    for logits, wanted in zip(got, expected_steps(demo, fake), strict=True):
        np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4)
    assert engine._graphs.captures == []
    assert "decode steps of 2 tokens cannot be captured" in caplog.text


def test_more_logit_rows_than_sequences_come_in_parts(
    engine: TensorRtRtxEngine, demo: Artifact, fake: Library
) -> None:
    attention = Attention(demo, fake)
    token_ids = np.arange(20) + 5
    attention.plan([(0, 20)])
    every = engine.run(token_ids, np.arange(20), attention).copy()
    attention.server.rollback()
    attention.plan([(0, 20)])
    some = engine.run(token_ids, np.array([19, 0, 7]), attention)
    assert every.shape == (20, demo.manifest.vocab_size)
    np.testing.assert_allclose(every[[19, 0, 7]], some, rtol=1e-5, atol=1e-5)
    assert [name for name, _, _ in fake.state.runs].count("last") == 4 + 1


def test_token_ids_may_be_on_the_device_already(
    engine: TensorRtRtxEngine, demo: Artifact, fake: Library
) -> None:
    results = []
    for given in (np.array([5, 77, 2]), torch.tensor([5, 77, 2])):
        attention = Attention(demo, fake)
        attention.plan([(0, 3)])
        results.append(engine.launch(given, np.array([2]), attention).logits.clone())
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


@pytest.mark.parametrize("is_capturable", [True, False])
def test_the_first_step_of_a_bucket_reads_the_tokens_of_the_step_before(
    engine: TensorRtRtxEngine, demo: Artifact, fake: Library, is_capturable: bool
) -> None:
    """They lie where the step leaves its own: run twice, it would read what it has sampled itself."""
    fake.state.is_capturable = is_capturable
    answers: list[list[int]] = []
    for knows_tokens in (True, False):
        attention = Attention(demo, fake)
        attention.plan([(0, 3)])
        output = engine.launch(np.array([5, 77, 2]), np.array([2]), attention)
        attention.server.commit()
        tokens = [int(output.likeliest[0])]
        if not knows_tokens:
            engine._capturable.clear()
            engine._graphs.clear()
        for _ in range(4):
            attention.plan([(0, 1)])
            token_ids = np.array([tokens[-1] if knows_tokens else -1])
            output = engine.launch(token_ids, np.array([0]), attention, output.likeliest)
            attention.server.commit()
            tokens.append(int(output.likeliest[0]))
        answers.append(tokens)
    assert len(set(answers[0])) > 2
    assert answers[1] == answers[0]


def test_everything_is_given_back_in_order(demo: Artifact, fake: Library, folder: Path) -> None:
    engine = TensorRtRtxEngine(demo, options(folder))
    run_steps(engine, demo, Attention(demo, fake))
    gc.collect()
    assert len(fake.state.alive) == 1 + 3 + 3 * 4
    engine.close()
    gc.collect()
    assert len(fake.state.alive) == 0
    assert engine._weights.nbytes == 0


def test_two_engines_live_in_one_process(demo: Artifact, fake: Library, folder: Path) -> None:
    engines = [TensorRtRtxEngine(demo, options(folder)) for _ in range(2)]
    expected = run_steps(engines[0], demo, Attention(demo, fake))
    engines[0].close()
    for got, wanted in zip(run_steps(engines[1], demo, Attention(demo, fake)), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    engines[1].close()


# Refusals.


def test_a_step_that_fits_no_profile_is_refused(
    engine: TensorRtRtxEngine, demo: Artifact, fake: Library
) -> None:
    with pytest.raises(
        EngineError, match=r"a step of 70 tokens fits no profile .* prefill 1 to 64; build with"
    ):
        engine.run(np.zeros(70, np.int64), np.array([0]), Attention(demo, fake))
    with pytest.raises(EngineError, match="3 logit rows were asked of a step of 2 tokens"):
        engine.run(np.zeros(2, np.int64), np.array([0, 1, 1]), Attention(demo, fake))


def test_plans_for_another_gpu_are_refused(demo: Artifact, fake: Library, tmp_path: Path) -> None:
    write_plans(demo, LIMITS, tmp_path, ("8.6", "12.0"))
    with pytest.raises(EngineError, match=r"built for compute capability 8\.6, 12\.0, and this GPU has 8\.9"):
        TensorRtRtxEngine(demo, options(tmp_path))


@pytest.mark.parametrize("capability", ["9.0", "10.0", "7.0"])
def test_a_gpu_that_tensorrt_for_rtx_leaves_out_is_told_what_to_use(
    demo: Artifact, fake: Library, folder: Path, monkeypatch: pytest.MonkeyPatch, capability: str
) -> None:
    monkeypatch.setattr(engine_module, "compute_capability", lambda device: capability)
    with pytest.raises(
        EngineError, match=rf"compute capability {capability}; use the engine kind `inductor`"
    ):
        TensorRtRtxEngine(demo, options(folder))


def test_plans_for_smaller_steps_are_refused(demo: Artifact, fake: Library, folder: Path) -> None:
    with pytest.raises(
        EngineError, match="up to 64 tokens, and 512 are asked for; build it with --max_tokens"
    ):
        TensorRtRtxEngine(demo, options(folder, max_tokens=512))


def test_a_damaged_plan_is_refused_with_what_the_library_says(
    demo: Artifact, fake: Library, folder: Path
) -> None:
    (folder / "middle.plan").write_bytes(b"no plan")
    with pytest.raises(
        EngineError, match=r"cannot load middle\.plan: malformed engine; build the engine again"
    ):
        TensorRtRtxEngine(demo, options(folder))


def test_a_plan_that_is_not_the_one_described_is_refused(demo: Artifact, fake: Library, folder: Path) -> None:
    (folder / "middle.plan").write_bytes((folder / "first.plan").read_bytes())
    with pytest.raises(EngineError, match=r"middle\.plan is not the plan .* attention, .* differ"):
        TensorRtRtxEngine(demo, options(folder))


def test_plans_of_another_model_are_refused(
    artifact: Callable[[str], Path], demo: Artifact, fake: Library, folder: Path
) -> None:
    with pytest.raises(EngineError, match="another model"):
        TensorRtRtxEngine(Artifact.open(artifact("gqa")), options(folder))
    assert EngineDescription.read(folder).pieces
    assert (folder / DESCRIPTION).exists()


def test_it_cannot_be_observed_and_says_what_can(engine: TensorRtRtxEngine) -> None:
    engine.observe(None)
    with pytest.raises(EngineError, match="observe the engine onnxruntime or inductor"):
        engine.observe(object())  # type: ignore[arg-type]
