"""The attention backend over FlashInfer: on a GPU the real one, elsewhere one over torch with its rules."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import fake_flashinfer
import numpy as np
import pytest
import torch
from attention_cases import GPU, LONGEST, Case, cases, check_halves, draw_data, served
from decoding import Decoding
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from cleave.errors import AttentionError, MissingPackage
from cleave.kvcache.backend import CacheShape, create_backend
from cleave.kvcache.backends import flashinfer_fit
from cleave.kvcache.server import AttentionServer
from cleave.kvcache.spec import AttentionSpec, RopeSpec
from cleave.kvcache.step import Chunk, StepPlan

pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")
ROPE = RopeSpec("default", 10_000.0, 64)
SPEC = AttentionSpec(4, 1, 64, 0.125, ROPE)
MIXED = Case(
    specs=(AttentionSpec(6, 2, 64, 0.1, ROPE, window=21, softcap=5.0), AttentionSpec(2, 2, 64, 0.125, None)),
    steps=((47, 0, 1), (1, 33, 1), (17, 1, 15), (1, 1, 1)),
    page_size=16,
    seed=7,
)


@pytest.fixture(autouse=True, scope="module")
def flashinfer() -> Iterator[None]:
    """Where there is no GPU FlashInfer is not there either."""
    with pytest.MonkeyPatch.context() as patch:
        if GPU == "cpu":
            forget(patch)
            patch.setitem(sys.modules, "flashinfer", fake_flashinfer)
            for name, module in fake_flashinfer.modules().items():
                patch.setitem(sys.modules, name, module)
        else:
            pytest.importorskip("flashinfer")
        yield
        if GPU == "cpu":
            forget(patch)


def forget(patch: pytest.MonkeyPatch) -> None:
    """What imports it when it is imported itself."""
    for name in ("flashinfer", "flashinfer_chunks"):
        patch.delitem(sys.modules, f"cleave.kvcache.backends.{name}", raising=False)


def fitted(case: Case) -> Case:
    """The same with a head_dim that FlashInfer has."""
    return replace(case, specs=tuple(map(fitted_spec, case.specs)))


def fitted_spec(spec: AttentionSpec) -> AttentionSpec:
    rope = spec.rope and replace(spec.rope, rotary_dim=min(spec.rope.rotary_dim, 64))
    return replace(spec, head_dim=64, rope=rope, scale=min(spec.scale, 0.125))


@pytest.fixture
def way(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of every layer of a step with chunks that is run: whose attention it had."""
    from cleave.kvcache.backends.flashinfer_chunks import FlashInferChunks
    from cleave.kvcache.backends.triton_chunks import TritonChunks

    ways: list[str] = []
    for kind, name in ((FlashInferChunks, "flashinfer"), (TritonChunks, "triton")):

        def told(self: Any, *given: Any, run: Any = kind.run, name: str = name) -> None:
            ways.append(name)
            run(self, *given)

        monkeypatch.setattr(kind, "run", told)
    return ways


# FlashInfer compiles a kernel for every kind of layer and dtype, which takes it half a minute each.
@settings(
    max_examples=4,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit] if GPU == "cuda" else list(Phase),
)
@given(case=cases(LONGEST).map(fitted), dtype=st.sampled_from(["float16", "bfloat16"]))
@example(case=MIXED, dtype="float16")
def test_a_mixed_batch_is_attention_over_each_whole_sequence(case: Case, dtype: str) -> None:
    check_halves(case, dtype, backend="flashinfer", kernels="fa3")


def test_steps_go_either_way_over_the_same_pages(way: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flashinfer_fit, "LEAST_KEYS", 30)
    monkeypatch.setattr(flashinfer_fit, "MOST_SMALL", 20)
    steps = ((47, 0, 1), (1, 23, 10), (31, 1, 1), (17, 1, 1), (1, 1, 1))
    check_halves(Case((SPEC, replace(SPEC, rope=None)), steps, 16, 5), "float16", backend="flashinfer")
    # Both ways when it is made; then 24 keys a row, 10 (33 rows), 64 (31 rows), 88 (17 rows, which are few).
    assert way == ["triton"] * 2 + ["flashinfer"] * 2 + ["triton"] * 4 + ["flashinfer"] * 2 + ["triton"] * 2


def test_by_the_measured_rule_a_part_of_a_long_prompt_is_flashinfers(way: list[str]) -> None:
    steps = ((760, 30), (560, 1), (1, 40), (1, 1))
    check_halves(Case((SPEC,), steps, 16, 3), "float16", backend="flashinfer")
    assert way == ["triton", "flashinfer", "triton", "flashinfer", "triton"]


@pytest.mark.parametrize(("page_size", "num_pages"), [(1, 300), (1, 1), (16, 1)])
def test_it_is_made_with_pages_of_any_size(page_size: int, num_pages: int, way: list[str]) -> None:
    AttentionServer(
        [SPEC],
        backend="flashinfer",
        num_pages=num_pages,
        page_size=page_size,
        max_position=64,
        max_tokens=8,
        device=GPU,
        dtype="float16",
    ).shutdown()
    assert way == (["triton", "flashinfer"] if num_pages * page_size > 1 else [])


@pytest.mark.parametrize(
    ("chunks", "window", "expected"),
    [
        ([(0, 512)], None, False),
        ([(0, 512)] * 16, None, False),
        ([(0, 500), (0, 500), (500, 500), (500, 500)], None, False),
        ([(0, 2046)], None, False),
        ([(0, 2047)], None, True),
        ([(0, 2048)] * 8, None, True),
        ([(0, 8192)], None, True),
        ([(0, 8192)], 4096, True),
        ([(0, 8192)], 1024, False),
        ([(6000, 512)], None, False),
        ([(6000, 513)], None, True),
        ([(6000, 513)] + [(100, 1)] * 240, None, True),
        ([(100, 513)] + [(6000, 1)] * 240, None, False),
        ([(6000, 1)] * 600, None, False),
    ],
)
def test_flashinfer_has_what_it_was_measured_to_be_faster_for(
    chunks: list[tuple[int, int]], window: int | None, expected: bool
) -> None:
    starts, counts = np.array(chunks).T
    offsets = np.concatenate(([0], np.cumsum(counts)))
    positions = np.concatenate([np.arange(start, start + count) for start, count in chunks])
    step = StepPlan(offsets, starts, positions, positions, np.zeros((len(chunks), 1), np.int32))
    specs = (SPEC, replace(SPEC, window=window))
    assert flashinfer_fit.is_faster(step, flashinfer_fit.reach(specs, 1 << 17)) is expected


def test_short_steps_have_the_bits_of_triton() -> None:
    case = replace(MIXED, specs=(SPEC, replace(SPEC, rope=None)))
    data = draw_data(case)
    ours, tritons = (served(name, case, data, dtype="float16") for name in ("flashinfer", "triton"))
    for mine, others in zip(ours, tritons, strict=True):
        for out, other in zip(mine, others, strict=True):
            np.testing.assert_array_equal(out, other)


def test_decode_steps_are_those_of_triton() -> None:
    lengths = (0, 5, 15, 16, 17, 130)
    ours, triton = (Decoding(lengths, SPEC, "float16", backend=name) for name in ("flashinfer", "triton"))
    for sequences, spare in (([1, 5, 3], 0), ([4], 3), ([0, 2, 3, 4, 5], 1)):
        out = ours.step(sequences, spare)
        assert torch.equal(out, triton.step(sequences, spare))
        for decoding in (ours, triton):
            decoding.server.plan([Chunk(sequence, lengths[sequence], 1) for sequence in sequences])
        assert ours.server.graph_key == triton.server.graph_key is not None
        for decoding in (ours, triton):
            decoding.server.rollback()


@pytest.mark.parametrize("counts", [(1, 7, 1, 9, 1), (7, 1, 1), (1, 1, 7), (1, 1, 1)])
def test_flashinfer_has_the_rows_from_the_first_long_chunk_to_the_last(
    counts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cleave.kvcache.backends import flashinfer_chunks

    seen: list[list[int]] = []
    plan = flashinfer_chunks.BatchPrefillWithPagedKVCacheWrapper.plan

    def told(self: Any, rows: torch.Tensor, *given: Any, **options: Any) -> None:
        seen.append(rows.tolist())
        plan(self, rows, *given, **options)

    monkeypatch.setattr(flashinfer_chunks.BatchPrefillWithPagedKVCacheWrapper, "plan", told)
    decoding = Decoding((20,) * 5, SPEC, "float16", {"kernels": "fa3"}, backend="flashinfer")
    seen.clear()
    decoding.server.plan([Chunk(sequence, 20, count) for sequence, count in enumerate(counts)])
    long = [index for index, count in enumerate(counts) if count > 1]
    spans = counts[long[0] : long[-1] + 1] if long else ()
    assert seen == ([np.cumsum([0, *spans]).tolist()] if long else [])


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        (SPEC, {"dtype": "float32"}, "float16, bfloat16"),
        (SPEC, {"deterministic": True}, "take attention 'triton'"),
        (SPEC, {"max_sequences": 9}, "between 1 and max_tokens, 8"),
        (replace(SPEC, head_dim=80), {}, "64, 128, 256: take attention 'triton'"),
        (SPEC, {"kernels": "fa4"}, "no kernels 'fa4'; there are: fa3, fa2"),
    ],
)
def test_what_it_cannot_do_is_said(spec: AttentionSpec, options: dict[str, Any], words: str) -> None:
    shape = CacheShape((spec,), 4, 16, 64, 8)
    with pytest.raises(AttentionError, match=words):
        create_backend("flashinfer", shape, **{"device": GPU} | options)


@pytest.mark.parametrize("capability", [(8, 0), (10, 0)])
def test_another_gpu_than_hopper_is_refused(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cleave.kvcache.backends import flashinfer as module

    monkeypatch.setattr(module, "usable", lambda *_: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA X")
    words = rf"NVIDIA X has .* {capability[0]}\.0; .* are for 9\.0: take attention 'triton'"
    with pytest.raises(AttentionError, match=words):
        create_backend("flashinfer", CacheShape((SPEC,), 4, 16, 64, 8))


def test_what_a_step_may_need_is_compiled_when_the_server_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    from cleave.kvcache.backends.flashinfer_kernels import why_uncompiled
    from cleave.kvcache.backends.triton_kernel import Kernel

    if GPU == "cpu":
        monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
        fake_flashinfer.COMPILED.clear()
        assert why_uncompiled(MIXED.specs, "float16") == "3 of its 3 kernels are not compiled"
    launched: list[tuple[str, Any]] = []
    launch = Kernel.launch

    def told(self: Any, *given: Any) -> None:
        launched.append((self._function.__name__, self._meta.get("QUERIES")))
        launch(self, *given)

    monkeypatch.setattr(Kernel, "launch", told)
    backend = create_backend("flashinfer", CacheShape(MIXED.specs, 4, 16, 64, 8), device=GPU)
    assert why_uncompiled(MIXED.specs, "float16") is None
    assert set(launched) == {("append_kernel", False), ("prefill_kernel", None), ("append_kernel", True)}
    with pytest.raises(AttentionError, match="no step is planned"):
        backend.run(0, *[torch.zeros(2, 64)] * 4)


def test_rows_past_a_step_of_flashinfer_are_zero() -> None:
    decoding = Decoding((20, 30), SPEC, "float16", {"kernels": "fa3"}, backend="flashinfer")
    decoding.server.plan([Chunk(0, 20, 5), Chunk(1, 30, 1)])
    out = decoding.run(decoding.random(9, 1))
    assert out.isfinite().all()
    assert not out[6:].any()
    assert out[:6].any(1).all()


def test_kernels_that_cannot_be_compiled_are_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cleave.kvcache.backends.flashinfer_chunks import FlashInferChunks

    def fail(*_: Any) -> None:
        raise RuntimeError("Ninja build failed")

    monkeypatch.setattr(FlashInferChunks, "plan", fail)
    with pytest.raises(AttentionError, match="Ninja build failed; put nvcc and ninja on the PATH, install"):
        create_backend("flashinfer", CacheShape((SPEC,), 4, 16, 64, 8), device=GPU)


def test_without_flashinfer_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch)
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    with pytest.raises(
        MissingPackage, match="flashinfer attention backend needs flashinfer-python: pip install"
    ):
        create_backend("flashinfer", CacheShape((SPEC,), 4, 16, 64, 8))
