"""Steps whose pieces are replayed: the same logits, and the attention server is called as ever."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_pool import FakePool
from hypothesis import given
from hypothesis import strategies as st

from cleave.export.artifact import Artifact
from cleave.kvcache.server import AttentionServer
from cleave.kvcache.step import Chunk
from cleave.runtime.engines.engine import EngineOptions
from cleave.runtime.engines.inductor import layer_graphs
from cleave.runtime.engines.inductor.engine import InductorEngine
from cleave.runtime.engines.inductor.layer_graphs import LayerGraphs, layer_sizes

SIZES = (8, 16, 32)
STEPS = (
    [(0, 20)],
    [(0, 1), (1, 9)],
    [(0, 1), (1, 1)],
    [(0, 3), (1, 13), (2, 16)],
    [(0, 1), (2, 40)],
    [(1, 7)],
)
"""Of each step the chunks, as sequence and number of tokens; the first and the fifth are replayed nowhere."""
REPLAYED = (False, True, True, True, False, True)


class Watched:
    """An attention server, and the rows and layers that it is called with."""

    def __init__(self, artifact: Artifact, *, takes_padding: bool = False) -> None:
        self.server = AttentionServer(
            artifact.manifest.layer_specs, backend="reference", num_pages=32, max_position=128, max_tokens=64
        )
        for sequence in range(3):
            self.server.open(sequence)
        self.takes_padding = takes_padding
        self.tokens = 0
        self.calls: list[tuple[int, int]] = []

    def run(self, layer: int, *tensors: torch.Tensor) -> None:
        self.calls.append((layer, len(tensors[0])))
        assert {len(tensor) for tensor in tensors} == {len(tensors[0])}
        *_, out = tensors
        self.server.run(layer, *(tensor[: self.tokens] for tensor in tensors))
        out[self.tokens :] = 0


@pytest.fixture
def demo(demo_artifact: Path) -> Artifact:
    return Artifact.open(demo_artifact, verify=False)


@pytest.fixture
def make(demo: Artifact) -> Callable[[], InductorEngine]:
    """Engines of one function for any number of rows."""

    def engine() -> InductorEngine:
        made = InductorEngine(demo, EngineOptions(max_tokens=64, max_sequences=4, threads=1, device="cpu"))
        made._functions.small = ()
        run_as_it_is(made)
        return made

    return engine


def run_as_it_is(engine: InductorEngine) -> None:
    """Let an engine run its programs without compiling them."""
    functions = engine._functions
    for index in (0, 1, len(functions.pieces) - 1):
        forward = functions._program_for(index, None).module.forward
        functions._compiled[functions._role(index), None] = forward


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> FakePool:
    monkeypatch.setattr(layer_graphs, "_borrowed", lambda tensor: tensor)
    return FakePool()


def replayed(engine: InductorEngine, pool: Any) -> InductorEngine:
    engine._layer_graphs = LayerGraphs(SIZES, pool)
    return engine


def run_steps(engine: InductorEngine, watched: Watched, artifact: Artifact) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    results, server = [], watched.server
    for step in STEPS:
        server.plan([Chunk(sequence, server.length(sequence), count) for sequence, count in step])
        counts = [count for _, count in step]
        watched.tokens = sum(counts)
        token_ids = generator.integers(0, artifact.manifest.vocab_size, sum(counts))
        results.append(engine.run(token_ids, np.cumsum(counts) - 1, watched).copy())
        server.commit()
    return results


@pytest.mark.parametrize("takes_padding", [False, True])
def test_replayed_pieces_give_what_their_launches_give(
    demo: Artifact, make: Callable[[], InductorEngine], pool: FakePool, takes_padding: bool
) -> None:
    launched, watched = Watched(demo), Watched(demo, takes_padding=takes_padding)
    expected = run_steps(make(), launched, demo)
    found = run_steps(replayed(make(), pool), watched, demo)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    layers = demo.manifest.num_layers
    rows = [sum(count for _, count in step) for step in STEPS]
    if takes_padding:
        rows = [
            min(size for size in SIZES if size >= count) if is_replayed else count
            for count, is_replayed in zip(rows, REPLAYED, strict=True)
        ]
    assert watched.calls == [(layer, count) for count in rows for layer in range(layers)]
    assert len(pool.graphs) == layers * len(SIZES)
    assert sum(graph.replays for graph in pool.graphs) == layers * sum(REPLAYED)


def test_a_first_step_that_has_a_function_of_its_own_is_captured_behind_too(
    demo: Artifact, make: Callable[[], InductorEngine], pool: FakePool
) -> None:
    engine = replayed(make(), pool)
    functions = engine._functions
    functions.small = (20,)
    functions._compiled |= {(role, 20): function for (role, _), function in functions._compiled.items()}
    run_steps(engine, Watched(demo), demo)
    layers = demo.manifest.num_layers
    assert len(pool.graphs) == layers * len(SIZES)
    assert sum(graph.replays for graph in pool.graphs) == layers * sum(REPLAYED)


def test_where_there_is_no_room_for_graphs_steps_are_launched(
    demo: Artifact,
    make: Callable[[], InductorEngine],
    pool: FakePool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    capture = pool.capture

    def full(work: Any) -> Any:
        if len(pool.graphs) == 7:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return capture(work)

    monkeypatch.setattr(pool, "capture", full)
    expected = run_steps(make(), Watched(demo), demo)
    engine = replayed(make(), pool)
    found = run_steps(engine, Watched(demo), demo)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert engine._layer_graphs is None
    assert [record.message for record in caplog.records if "no room" in record.message] == [
        "cpu has no room for graphs of small prefill steps; they are launched"
    ]


def test_an_observed_step_is_not_replayed(
    demo: Artifact, make: Callable[[], InductorEngine], pool: FakePool
) -> None:
    engine, watched = replayed(make(), pool), Watched(demo)
    run_steps(engine, watched, demo)
    before = [graph.replays for graph in pool.graphs]
    seen = []

    class Residuals:
        def residual(self, layer: int, residual: Any) -> None:
            seen.append(layer)

    engine.observe(Residuals())
    run_as_it_is(engine)
    watched.server.plan([Chunk(0, watched.server.length(0), 5)])
    watched.tokens = 5
    engine.run(np.arange(5), np.arange(5), watched)
    assert seen == list(range(-1, demo.manifest.num_layers))
    assert [graph.replays for graph in pool.graphs] == before


@given(max_tokens=st.integers(1, 5000), tokens=st.integers(1, 600))
def test_a_step_is_padded_by_less_than_a_size_apart(max_tokens: int, tokens: int) -> None:
    graphs: Any = LayerGraphs(layer_sizes(max_tokens), FakePool())  # type: ignore[arg-type]
    assert graphs.size_for(tokens) is None  # nothing is captured
    graphs._captured = dict.fromkeys(graphs.sizes)
    size = graphs.size_for(tokens)
    assert all(one <= max_tokens for one in graphs.sizes)
    if size is not None:
        assert tokens <= size < max(tokens, 33) + 32
    else:
        assert tokens > 512 or tokens > max_tokens - 32 or max_tokens < 64
