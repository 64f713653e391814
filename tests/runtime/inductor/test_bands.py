"""Captured steps of more than 32 rows: which share own kernels, and that these give the same logits."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_pool import FakePool
from hypothesis import given
from hypothesis import strategies as st
from stand_in_attention import Decodes, HandsQOn

from cleave.export.artifact import Artifact
from cleave.runtime.engines.engine import EngineOptions
from cleave.runtime.engines.inductor import functions as functions_module
from cleave.runtime.engines.inductor import layer_graphs
from cleave.runtime.engines.inductor.choose import Chooser, Linear
from cleave.runtime.engines.inductor.engine import InductorEngine
from cleave.runtime.engines.inductor.functions import Functions
from cleave.runtime.engines.inductor.graphs import DecodeGraphs, batch_sizes
from cleave.runtime.engines.inductor.layer_graphs import LayerGraphs
from cleave.runtime.engines.inductor.small_launch import Blocks

CPU = torch.device("cpu")


def own(layer: Linear) -> Blocks | None:
    """Gate and up, and what a norm adds up, by own kernels."""
    if layer.norm_after:
        return Blocks(32, 32, 4, 2, 2)
    return Blocks(32, 32, 4, 2) if layer.swiglu else None


def functions_of(folder: Path, chooser: Callable[[Linear], Blocks | None]) -> Functions:
    """As a GPU would have them."""
    functions: Any = Functions(Artifact.open(folder, verify=False), CPU)
    functions.small, functions.bands = functions_module.SMALL["cuda"], functions_module.BANDS
    functions.chooser = chooser
    return functions  # type: ignore[no-any-return]


@given(tokens=st.integers(1, 300))
def test_which_band_serves_a_step(demo_artifact: Path, tokens: int) -> None:
    functions = functions_of(demo_artifact, own)
    alone = tokens if tokens in (1, 2, 4, 8, 16, 32) else None
    band = 64 if 33 <= tokens <= 64 else 128 if 65 <= tokens <= 128 else None
    assert functions.rows_for(tokens) == alone
    assert functions.band_for(tokens) == (alone or band)


@pytest.mark.parametrize("deterministic", [False, True])
def test_without_own_kernels_there_are_no_bands(demo_artifact: Path, deterministic: bool) -> None:
    functions = Functions(Artifact.open(demo_artifact, verify=False), CPU, deterministic=deterministic)
    assert functions.bands == ()
    assert {functions.band_for(tokens) for tokens in range(33, 200)} == {None}


def test_a_band_is_run_as_it_is_or_by_the_function_for_any_number(
    demo_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Functions, "_make", as_it_is(Functions._make))
    by_library = functions_of(demo_artifact, lambda layer: None)
    by_both = functions_of(demo_artifact, lambda layer: None if layer.swiglu else own(layer))
    by_own = functions_of(demo_artifact, own)
    for band in functions_module.BANDS:
        for functions in (by_library, by_both):
            assert functions.get(1, band) == functions.get(1, None)
        assert by_own.get(1, band) != by_own.get(1, None)
        # Of the last piece it would have to join the last sum to the choice of rows.
        last = len(by_own.pieces) - 1
        assert by_own.get(last, band) == by_own.get(last, None)
    assert by_own.compilations == 0


def as_it_is(make: Callable[..., Any]) -> Callable[..., Any]:
    """`make`, but that the function for any number of rows is not compiled."""

    def made(functions: Functions, index: int, rows: int | None, keep: Path | None = None) -> Any:
        if rows is None:
            return functions._program_for(index, None).module.forward
        return make(functions, index, rows, keep)

    return made


def test_what_is_built_has_what_was_chosen_for_the_bands(
    demo_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[Linear] = []

    def choose(chooser: Chooser, layer: Linear) -> Blocks | None:
        timed.append(layer)
        return own(layer)

    monkeypatch.setattr(Chooser, "_choose", choose)
    monkeypatch.setattr(Chooser, "compile", lambda chooser, layers: None)
    monkeypatch.setattr(Functions, "_make", lambda functions, *given: None)
    functions_of(demo_artifact, Chooser(torch.float16, CPU)).compile_all(tmp_path)
    assert {layer.rows for layer in timed} == {1, 2, 4, 8, 16, 32, 64, 128}
    timed.clear()
    kept = Chooser(torch.float16, CPU, tmp_path / "chosen.json")
    functions = functions_of(demo_artifact, kept)
    for band in functions.bands:
        for index in (0, 1, len(functions.pieces) - 1):
            functions._program_for(index, band)
    assert timed == []


class Launched(DecodeGraphs):
    """Launches what would be captured."""

    def run(self, size: int, key: Hashable, step: Callable[[], Any]) -> Any:
        return step()


@pytest.fixture
def engine(artifact: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> InductorEngine:
    """With the bands of a GPU. Nothing is compiled: own kernels run in Triton's interpreter."""
    monkeypatch.setattr(Functions, "_make", as_it_is(Functions._make))
    monkeypatch.setattr(layer_graphs, "_borrowed", lambda tensor: tensor)
    options = EngineOptions(max_tokens=128, max_sequences=100, threads=1, device="cpu")
    made: Any = InductorEngine(Artifact.open(artifact("gqa")), options)
    made._functions.bands, made._functions.chooser = functions_module.BANDS, own
    return made  # type: ignore[no-any-return]


@pytest.mark.parametrize("tokens", [33, 40, 50, 64, 65, 100])
def test_a_decode_step_of_a_band_gives_the_logits_of_any_number(engine: InductorEngine, tokens: int) -> None:
    engine._graphs = Launched(batch_sizes(100), CPU, FakePool())  # type: ignore[arg-type]
    token_ids, rows = np.random.default_rng(tokens).integers(0, 96, tokens), np.arange(tokens)
    wanted = engine.run(token_ids, rows, HandsQOn()).copy()
    got = engine.run(token_ids, rows, Decodes())
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    band = 64 if tokens <= 64 else 128
    assert {rows for _, rows in engine._functions._compiled} == {None, band}


@pytest.mark.parametrize(("tokens", "band"), [(40, 64), (127, 128)])
def test_a_mixed_step_of_a_band_gives_the_logits_of_any_number(
    engine: InductorEngine, tokens: int, band: int
) -> None:
    """Its last piece, which computes only the rows that are asked for, is that for any number."""
    token_ids, rows = np.random.default_rng(tokens).integers(0, 96, tokens), np.array([3, tokens - 1])
    wanted = engine.run(token_ids, rows, HandsQOn()).copy()
    pool: Any = FakePool()
    engine._layer_graphs = LayerGraphs((band,), pool)
    for _ in range(2):  # launched and captured behind it, then replayed
        got = engine.run(token_ids, rows, HandsQOn())
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    assert sum(graph.replays for graph in pool.graphs) == len(engine._functions.pieces) - 1
    found = [one for one in engine._functions._compiled if one[1] is not None]
    assert found == [("first", band), ("middle", band)]
