"""The engine `onnxruntime` with pieces that `cleave build` saved: the same bits, and only where asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import cleave, contents
from damage import copy_of, edit_json

from cleave.export.artifact import Artifact
from cleave.runtime.engine_cache.cache import EngineCache
from cleave.runtime.engines import onnxruntime
from cleave.runtime.engines.builder import get_engine
from cleave.runtime.engines.engine import EngineOptions, create_engine, engine_builder
from cleave.runtime.engines.onnxruntime_builder import OnnxRuntimeBuilder

OPTIONS = EngineOptions(max_tokens=64, threads=2)


class Echo:
    """An attention server that gives back part of the queries."""

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        out[:] = q * (layer + 1)


def logits(engine: Any, tokens: int) -> bytes:
    ids = np.random.default_rng(tokens).integers(0, 32, tokens)
    return bytes(engine.run(ids, np.arange(tokens), Echo()).tobytes())


def refuse_to_pack(*_: object, **__: object) -> None:
    raise AssertionError("a piece was made of the artifact")


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


def save(artifact: Artifact, cache: EngineCache) -> None:
    with get_engine(OnnxRuntimeBuilder(artifact, OPTIONS), cache, label="saved") as built:
        assert built.was_built


@pytest.mark.parametrize("variant", ["gqa", "one_layer", "tied", "demo", "int8"])
def test_saved_pieces_compute_the_same_bits_for_every_number_of_rows(
    artifact: Callable[[str], Path],
    quantized_artifact: Callable[..., Path],
    demo_artifact: Path,
    cache: EngineCache,
    variant: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if variant == "int8":
        folder = quantized_artifact("gqa", quantize=variant)
    else:
        folder = demo_artifact if variant == "demo" else artifact(variant)
    opened = Artifact.open(folder)
    packed = create_engine("onnxruntime", opened, OPTIONS, cache=cache)
    expected = [logits(packed, tokens) for tokens in (1, 2, 7, 64)]
    save(opened, cache)
    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "make_session", refuse_to_pack)
        saved = create_engine("onnxruntime", opened, OPTIONS, cache=cache)
    assert [logits(saved, tokens) for tokens in (1, 2, 7, 64)] == expected
    packed.close()
    saved.close()


def test_int4_has_nothing_to_build(quantized_artifact: Callable[..., Path]) -> None:
    """What ONNX Runtime saves of MatMulNBits gives other values when it is loaded."""
    folder = quantized_artifact("gqa", quantize="int4")
    assert engine_builder("onnxruntime", Artifact.open(folder), OPTIONS) is None
    ended = cleave("build", folder, "--engine", "onnxruntime")
    assert ended.code == 2
    assert "no build step" in ended.err


def test_packed_weights_are_what_is_saved(artifact: Callable[[str], Path], cache: EngineCache) -> None:
    save(Artifact.open(artifact("gqa")), cache)
    (entry,) = cache.entries()
    graphs = [onnx.load(path, load_external_data=False) for path in entry.folder.glob("*.onnx")]
    packed = [
        tensor.name
        for graph in graphs
        for tensor in graph.graph.initializer
        if any(place.key.startswith("prepacked") for place in tensor.external_data)
    ]
    matrices = [
        tensor.name for graph in graphs for tensor in graph.graph.initializer if len(tensor.dims) == 2
    ]
    assert packed
    assert set(packed) == set(matrices)


def test_a_first_use_builds_nothing(artifact: Callable[[str], Path], cache: EngineCache) -> None:
    create_engine("onnxruntime", Artifact.open(artifact("gqa")), OPTIONS, cache=cache).close()
    create_engine(
        "onnxruntime", Artifact.open(artifact("gqa")), OPTIONS, cache=cache, allow_build=False
    ).close()
    assert contents(cache.directory) is None


def test_damaged_pieces_are_not_used(artifact: Callable[[str], Path], cache: EngineCache) -> None:
    opened = Artifact.open(artifact("gqa"))
    expected = logits(create_engine("onnxruntime", opened, OPTIONS, cache=cache), 3)
    save(opened, cache)
    (entry,) = cache.entries()
    weights = entry.folder / "001.bin"
    weights.write_bytes(b"\1" * weights.stat().st_size)
    assert "001.bin has another SHA-256" in cache.why(OnnxRuntimeBuilder(opened, OPTIONS).key)
    assert logits(create_engine("onnxruntime", opened, OPTIONS, cache=cache), 3) == expected


def test_other_weights_are_another_engine(
    artifact: Callable[[str], Path], cache: EngineCache, tmp_path: Path
) -> None:
    save(Artifact.open(artifact("gqa")), cache)
    other = copy_of(artifact("gqa"), tmp_path / "other")

    def change(manifest: dict[str, Any]) -> None:
        manifest["files"]["weights.safetensors"]["sha256"] = "0" * 64

    edit_json(other / "manifest.json", change)
    opened = Artifact.open(other, verify=False)
    assert cache.why(OnnxRuntimeBuilder(opened, OPTIONS).key).startswith("weights ")
    moved = copy_of(artifact("gqa"), tmp_path / "moved")
    assert cache.why(OnnxRuntimeBuilder(Artifact.open(moved), OPTIONS).key) == "cached", "not its place"


def test_an_engine_keeps_its_pieces_from_eviction(
    artifact: Callable[[str], Path], cache: EngineCache
) -> None:
    opened = Artifact.open(artifact("gqa"))
    save(opened, cache)
    engine = create_engine("onnxruntime", opened, OPTIONS, cache=cache)
    assert cache.gc(0) == (0, [])
    del engine
    assert len(cache.gc(0)[1]) == 1


def test_cleave_build_saves_and_cleave_run_uses_it(
    artifact: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLEAVE_CACHE", str(tmp_path / "cache"))
    command = ("run", "--model", artifact("gqa"), "--engine", "onnxruntime", "--no_build", "--json")
    expected = cleave(*command)
    assert expected.code == 0, expected
    ended = cleave("build", artifact("gqa"), "--engine", "onnxruntime")
    assert ended.code == 0, ended
    assert "any number of rows" in ended.out
    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "make_session", refuse_to_pack)
        assert cleave(*command).out == expected.out
    assert "cached" in cleave("engines", "why", artifact("gqa"), "--engine", "onnxruntime").out
