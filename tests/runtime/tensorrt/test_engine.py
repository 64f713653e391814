"""The engine over a fake TensorRT, which keeps the plugin's part real. Nothing here ran in TensorRT."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from alive import NewTensors
from fake_tensorrt import Library

from cleave.errors import AttentionError, CacheError, EngineError, MissingPackage
from cleave.export.artifact import Artifact
from cleave.kvcache.server import AttentionServer
from cleave.kvcache.step import Chunk
from cleave.runtime.engine_cache.cache import EngineCache
from cleave.runtime.engines import kinds
from cleave.runtime.engines.engine import EngineOptions, create_engine
from cleave.runtime.engines.tensorrt import builder as builder_module
from cleave.runtime.engines.tensorrt import engine as engine_module
from cleave.runtime.engines.tensorrt import library
from cleave.runtime.engines.tensorrt.builder import TensorRtBuilder
from cleave.runtime.engines.tensorrt_rtx.plan import DESCRIPTION, EngineDescription

STEPS = ([(0, 9), (1, 1)], [(1, 6), (0, 1)], [(0, 1), (1, 1)], [(0, 1)], [(1, 2), (2, 5)])


class NoGraphs:
    """Runs a step where a graph of it would be replayed."""

    def __init__(self, sizes: tuple[int, ...], device: torch.device) -> None:
        pass

    def run(self, size: int, key: object, step: Callable[[], Any]) -> Any:
        return step()

    def clear(self) -> None:
        pass


class Machine:
    """What the fake's machine has."""

    name, capability = "Fake GPU", "8.9"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    for module in (builder_module, engine_module):
        monkeypatch.setattr(module, "check_device", lambda name, kind: torch.device("cpu"))
        monkeypatch.setattr(module, "compute_capability", lambda device: made.capability)
    monkeypatch.setattr(builder_module, "_device_name", lambda device: made.name)
    monkeypatch.setattr(engine_module, "DecodeGraphs", NoGraphs)
    monkeypatch.setattr(kinds, "_installed", lambda package: True)
    return made


@pytest.fixture
def fake(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Library:
    made = Library()
    monkeypatch.setattr(library, "load", lambda: made)
    monkeypatch.setenv("CLEAVE_CACHE", str(tmp_path / "cache"))
    return made


@pytest.fixture
def opened(artifact: Callable[[str], Path]) -> Artifact:
    return Artifact.open(artifact("gqa"))


def options(**changes: Any) -> EngineOptions:
    return EngineOptions(**({"max_tokens": 32, "max_sequences": 4, "threads": 1} | changes))


class Attention:
    """The reference server; of decode steps it has a key, and it takes padded ones."""

    def __init__(self, artifact: Artifact) -> None:
        self.server = AttentionServer(
            artifact.manifest.layer_specs, backend="reference", num_pages=16, max_position=64, max_tokens=32
        )
        for sequence in range(3):
            self.server.open(sequence)
        self.graph_key: str | None = None
        self.fails = False

    def plan(self, step: list[tuple[int, int]]) -> None:
        self.graph_key = "decode" if all(count == 1 for _, count in step) else None
        self._tokens = sum(count for _, count in step)
        self.server.plan([Chunk(sequence, self.server.length(sequence), count) for sequence, count in step])

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        if self.fails and layer == 1:
            raise AttentionError("no pages are free")
        out[self._tokens :] = 0
        self.server.run(layer, *(tensor[: self._tokens] for tensor in (q, k, v, out)))


def run_steps(engine: Any, artifact: Artifact) -> list[np.ndarray]:
    attention = Attention(artifact)
    generator = np.random.default_rng(0)
    results = []
    for step in STEPS:
        tokens = sum(count for _, count in step)
        attention.plan(step)
        results.append(engine.run(generator.integers(0, 250, tokens), np.arange(tokens), attention).copy())
        attention.server.commit()
    return results


def test_logits_are_those_of_the_onnxruntime_engine(fake: Library, opened: Artifact) -> None:
    engine = create_engine("tensorrt", opened, options())
    expected = create_engine("onnxruntime", opened, options(device=None))
    for got, wanted in zip(run_steps(engine, opened), run_steps(expected, opened), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    assert engine.batch_sizes == (1, 2, 4)
    engine.close()


def test_a_closed_engine_holds_no_tensors(fake: Library, opened: Artifact) -> None:
    since = NewTensors()
    engine = create_engine("tensorrt", opened, options())
    run_steps(engine, opened)
    assert since.note() > 0
    engine.close()
    assert since.left() == []


def test_it_is_built_once_and_found_again(fake: Library, opened: Artifact, tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines")
    create_engine("tensorrt", opened, options(), cache=cache).close()
    create_engine("tensorrt", opened, options(), cache=cache, allow_build=False).close()
    create_engine("tensorrt", opened, options(max_tokens=16), cache=cache, allow_build=False).close()
    assert fake.builds == 1


def test_an_engine_of_another_gpu_is_built_again_or_refused_with_the_reason(
    fake: Library, machine: Machine, opened: Artifact, tmp_path: Path
) -> None:
    cache = EngineCache(tmp_path / "engines")
    create_engine("tensorrt", opened, options(), cache=cache).close()
    machine.name, machine.capability = "Other GPU", "9.0"
    with pytest.raises(CacheError, match=r"Fake GPU -> Other GPU.*8\.9 -> 9\.0"):
        create_engine("tensorrt", opened, options(), cache=cache, allow_build=False)
    create_engine("tensorrt", opened, options(), cache=cache).close()
    assert fake.builds == 2


def test_what_the_attention_server_raises_is_raised_by_the_step(fake: Library, opened: Artifact) -> None:
    engine = create_engine("tensorrt", opened, options())
    attention = Attention(opened)
    attention.plan([(0, 3)])
    attention.fails = True
    with pytest.raises(AttentionError, match="no pages are free") as raised:
        engine.run(np.arange(3), np.array([2]), attention)
    assert isinstance(raised.value.__cause__, EngineError)
    attention.fails = False
    assert np.isfinite(engine.run(np.arange(3), np.array([2]), attention)).all()


def test_two_engines_do_not_mix(fake: Library, opened: Artifact) -> None:
    """Each plugin calls the server of the engine that it was made for, whoever runs in between."""
    engines = [create_engine("tensorrt", opened, options()) for _ in range(2)]
    servers = [Attention(opened) for _ in range(2)]
    for number in (0, 1, 0):
        servers[number].plan([(number, 2)])
        engines[number].run(np.arange(2), np.array([1]), servers[number])
        servers[number].server.commit()
    assert [server.server.runs for server in servers] == [6, 3]
    assert run_steps(engines[0], opened)[0].shape == (10, opened.manifest.vocab_size)


def test_every_row_of_a_prefill_may_be_asked_for_and_no_step_may_be_larger(
    fake: Library, opened: Artifact
) -> None:
    engine = create_engine("tensorrt", opened, options())
    attention = Attention(opened)
    attention.plan([(0, 32)])
    assert len(engine.run(np.zeros(32, np.int64), np.arange(32), attention)) == 32
    with pytest.raises(EngineError, match=r"33 tokens fits no profile .* prefill 1 to 32; build"):
        engine.run(np.zeros(33, np.int64), np.array([0]), attention)


# What it is built of.


def test_timings_are_kept_beside_the_cache_and_damaged_ones_are_left(
    fake: Library, opened: Artifact, tmp_path: Path
) -> None:
    for number in range(3):
        if number == 2:
            (timings,) = (tmp_path / "cache").glob("timing-*")
            timings.write_bytes(b"damaged")
        folder = tmp_path / str(number)
        folder.mkdir()
        TensorRtBuilder(opened, options()).build(folder, None)
    assert fake.timings == [b"", b"measured", b""]


def test_the_key_has_all_that_a_plan_depends_on(
    fake: Library, machine: Machine, artifact: Callable[[str], Path], opened: Artifact
) -> None:
    key = TensorRtBuilder(opened, options()).key
    assert TensorRtBuilder(opened, options(max_tokens=64)).key.differing(key) == ("max_tokens",)
    tied = TensorRtBuilder(Artifact.open(artifact("mha")), options()).key
    assert {"graph", "weights"} <= set(tied.differing(key))
    machine.name = "Other GPU"
    assert TensorRtBuilder(opened, options()).key.differing(key) == ("device",)
    assert TensorRtBuilder(opened, options()).serves(key) is False
    assert key.fields["plugin_version"] == 1


@pytest.mark.parametrize("raised", [KeyboardInterrupt, OSError])
def test_what_progress_raises_ends_a_build(
    fake: Library, opened: Artifact, tmp_path: Path, raised: type[BaseException]
) -> None:
    def progress(name: str, done: int, total: int) -> None:
        raise raised

    with pytest.raises(raised):
        TensorRtBuilder(opened, options()).build(tmp_path, progress)
    assert not (tmp_path / DESCRIPTION).exists()


def test_a_build_says_what_a_plugin_refuses(
    fake: Library, opened: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cleave.runtime.engines.tensorrt import build as build_module

    monkeypatch.setattr(build_module, "with_fields", lambda graph, specs: graph)
    with pytest.raises(EngineError, match="has no heads, kv_heads, head_dim"):
        TensorRtBuilder(opened, options()).build(tmp_path, None)


# Refusals.


def test_a_plan_that_is_damaged_is_refused(fake: Library, opened: Artifact, tmp_path: Path) -> None:
    TensorRtBuilder(opened, options()).build(tmp_path, None)
    assert EngineDescription.read(tmp_path).pieces[0].name == "whole"
    (tmp_path / "whole.plan").write_bytes(b"no plan")
    words = r"TensorRT 10\.9\.0\.fake cannot load whole\.plan: the magic tag does not match; build the engine"
    with pytest.raises(EngineError, match=words):
        create_engine("tensorrt", opened, options(cache=tmp_path))


def test_another_compute_capability_cannot_be_built_for(fake: Library, opened: Artifact) -> None:
    with pytest.raises(EngineError, match=r"has compute capability 8\.9; leave compute_capability away"):
        TensorRtBuilder(opened, options(compute_capability="9.0"))


@pytest.mark.parametrize("version", ["10.8.0.43", "8.6.1", "12.0.0"])
def test_other_versions_are_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        __version__ = version

    monkeypatch.setattr(library.importlib, "import_module", lambda name: Other)
    with pytest.raises(EngineError, match=f"TensorRT {re.escape(version)} is installed; .* 10.9 or newer"):
        library.load()


def test_without_the_package_the_error_says_what_to_install(
    opened: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds, "_installed", lambda package: package != "tensorrt")
    with pytest.raises(MissingPackage, match=r"the engine tensorrt needs tensorrt: pip install"):
        create_engine("tensorrt", opened, options())


def test_it_cannot_be_observed_and_says_what_can(fake: Library, opened: Artifact) -> None:
    engine = create_engine("tensorrt", opened, options())
    engine.observe(None)
    with pytest.raises(EngineError, match="observe the engine onnxruntime or inductor"):
        engine.observe(object())  # type: ignore[arg-type]
