"""The attention backend over FlashInfer: on a GPU the real one, elsewhere one over torch with its rules."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import fake_flashinfer
import numpy as np
import pytest
import torch
from attention_cases import GPU, LONGEST, Case, cases, check_halves
from decoding import Decoding
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from cleave.errors import AttentionError, MissingPackage
from cleave.kvcache.backend import CacheShape, create_backend
from cleave.kvcache.spec import AttentionSpec, RopeSpec
from cleave.kvcache.step import Chunk

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
        else:
            pytest.importorskip("flashinfer")
        yield
        if GPU == "cpu":
            forget(patch)


def forget(patch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("cleave.kvcache.backends.flashinfer")]:
        patch.delitem(sys.modules, name)


def fitted(case: Case) -> Case:
    """The same with a head_dim that FlashInfer has."""
    return replace(case, specs=tuple(map(fitted_spec, case.specs)))


def fitted_spec(spec: AttentionSpec) -> AttentionSpec:
    rope = spec.rope and replace(spec.rope, rotary_dim=min(spec.rope.rotary_dim, 64))
    return replace(spec, head_dim=64, rope=rope, scale=min(spec.scale, 0.125))


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
    check_halves(case, dtype, backend="flashinfer")


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
    decoding = Decoding((20,) * 5, SPEC, "float16", backend="flashinfer")
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
    ],
)
def test_what_it_cannot_do_is_said(spec: AttentionSpec, options: dict[str, Any], words: str) -> None:
    shape = CacheShape((spec,), 4, 16, 64, 8)
    with pytest.raises(AttentionError, match=words):
        create_backend("flashinfer", shape, **{"device": GPU} | options)


def test_without_flashinfer_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch)
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    with pytest.raises(
        MissingPackage, match="flashinfer attention backend needs flashinfer-python: pip install"
    ):
        create_backend("flashinfer", CacheShape((SPEC,), 4, 16, 64, 8))
