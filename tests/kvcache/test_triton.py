"""The GPU kernels: in Triton's interpreter where there is no GPU, with the same expectations on one."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from attention_cases import GPU, HALVES, LONGEST, Case, cases, check_halves, draw_data, served
from decoding import Decoding
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cleave.errors import AttentionError, MissingPackage
from cleave.kvcache.backend import create_backend
from cleave.kvcache.server import AttentionServer
from cleave.kvcache.spec import AttentionSpec, RopeSpec
from cleave.kvcache.step import Chunk

pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")
"""Triton's interpreter makes an index of an array of one number."""
ROPE = RopeSpec("default", 10_000.0, 16)
SPEC = AttentionSpec(4, 2, 16, 0.25, ROPE)
SHARED = AttentionSpec(2, 1, 16, 0.25, ROPE)
MIXED = Case(
    specs=(
        AttentionSpec(6, 2, 20, 0.3, RopeSpec("default", 100.0, 8), window=21, softcap=5.0),
        AttentionSpec(3, 3, 80, 0.11, None),
    ),
    steps=((47, 0, 1), (1, 33, 1), (17, 1, 15), (1, 1, 1)),
    page_size=16,
    seed=7,
)


LONG = Case(specs=(SPEC,), steps=((400, 130, 7), (1, 1, 1), (0, 1, 30)), page_size=16, seed=7)
"""Histories that are split otherwise when they are alone."""
DTYPES = st.sampled_from(list(HALVES))


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases(LONGEST), dtype=DTYPES, deterministic=st.booleans())
@example(case=MIXED, dtype="float32", deterministic=False)
def test_a_mixed_batch_is_attention_over_each_whole_sequence(
    case: Case, dtype: str, deterministic: bool
) -> None:
    check_halves(case, dtype, spread(case), deterministic=deterministic)


@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases(LONGEST), dtype=DTYPES)
@example(case=LONG, dtype="float32")
def test_with_fixed_splits_a_sequence_is_the_same_bits_in_any_batch(case: Case, dtype: str) -> None:
    data = draw_data(case)
    options = {"dtype": dtype, "deterministic": True}
    for sequence, outs in enumerate(served("triton", case, data, **options)):
        steps = tuple((step[sequence],) for step in case.steps if step[sequence])
        if steps:
            alone = served("triton", replace(case, steps=steps), [data[sequence]], **options)[0]
            assert all(np.array_equal(*pair) for pair in zip(outs, alone, strict=True))


def spread(case: Case) -> float:
    """How large the scores of standard normal q and k are, from 1 on: their rounding errors are too."""
    return max(1.0, *(spec.scale * spec.head_dim**0.5 for spec in case.specs))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_loses_no_more_than_its_own_rounding(dtype: str) -> None:
    check_halves(MIXED, dtype)


def test_fixed_splits_give_the_same_sums() -> None:
    check_halves(MIXED, "float32", deterministic=True)


BORDERS = (0, 1, 15, 16, 17, 31, 32, 63, 64, 65, 130, 200)


def test_histories_that_end_at_any_place_of_a_page() -> None:
    decoding = Decoding(BORDERS, SPEC)
    out = decoding.step(range(len(BORDERS))).cpu().numpy()
    for sequence in range(len(BORDERS)):
        np.testing.assert_allclose(out[sequence], decoding.truth(sequence), rtol=3e-5, atol=3e-5)


def test_rows_past_the_step_are_zero_and_store_nothing() -> None:
    decoding = Decoding((40, 5, 17), SPEC)
    exact = decoding.step([0, 2])
    padded = decoding.step([0, 2], spare=6)
    assert torch.equal(padded[:2], exact)
    assert not padded[2:].any()
    assert torch.equal(decoding.step([1, 0, 2])[1:], exact)


def test_rows_past_a_mixed_step_are_zero_and_store_nothing() -> None:
    decoding = Decoding((40, 5, 17), SPEC)
    assert decoding.server.takes_padding
    before = decoding.step([2, 0, 1])
    rows = torch.cat((decoding.rows([0]), decoding.random(6, 7)))
    outs = []
    for spare in (0, 9):
        decoding.server.plan([Chunk(0, 40, 1), Chunk(1, 5, 6)])
        outs.append(decoding.run(torch.cat((rows, decoding.random(spare, 99)))))
        decoding.server.rollback()
    assert torch.equal(outs[1][:7], outs[0])
    assert not outs[1][7:].any()
    assert torch.equal(decoding.step([2, 0, 1]), before)


# Hidden scores times this scale round up for some head_dim and down for others.
@pytest.mark.parametrize("head_dim", [5, 8, 64])
@pytest.mark.parametrize("window", [1, 30])
def test_rows_that_see_nothing_of_a_block(head_dim: int, window: int) -> None:
    spec = AttentionSpec(1, 1, head_dim, head_dim**-0.5, None, window=window)
    check_halves(Case((spec,), ((1,), (100,)), page_size=16, seed=0), "float32")


def test_a_long_history_is_split_and_summed() -> None:
    decoding = Decoding((700,), SHARED)
    out = decoding.step([0]).cpu().numpy()
    np.testing.assert_allclose(out[0], decoding.truth(0), rtol=3e-5, atol=3e-5)


def test_with_fixed_splits_a_row_is_the_same_bits_in_any_batch() -> None:
    decoding = Decoding((600, 3, 257), SHARED, "float16", {"deterministic": True})
    alone = [decoding.step([sequence])[0] for sequence in range(3)]
    for order in ([2, 0], [0, 1, 2], [1, 2, 0]):
        together = decoding.step(order)
        for row, sequence in enumerate(order):
            assert torch.equal(together[row], alone[sequence])


@pytest.mark.parametrize("deterministic", [False, True])
def test_decode_steps_have_one_graph_key_and_others_none(deterministic: bool) -> None:
    decoding = Decoding((700, 5, 17), SPEC, options={"deterministic": deterministic})
    assert decoding.server.graph_key is None
    keys = set()
    for sequences in ([0], [1, 2], [0, 1, 2]):
        decoding.server.plan([Chunk(sequence, decoding.lengths[sequence], 1) for sequence in sequences])
        keys.add(decoding.server.graph_key)
        decoding.server.rollback()
    assert len(keys) == 1
    assert None not in keys
    decoding.server.plan([Chunk(1, 5, 2), Chunk(0, 700, 1)])
    assert decoding.server.graph_key is None


def server(**options: Any) -> AttentionServer:
    defaults = {"num_pages": 4, "max_position": 64, "max_tokens": 8, "device": GPU, "dtype": "float32"}
    return AttentionServer([SPEC], backend="triton", **defaults | options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "float64"}, ("float64", "float16")),
        ({"max_sequences": 9}, ("max_sequences", "8")),
        ({"device": "meta"}, ("NVIDIA GPU", "meta")),
    ],
)
def test_options_that_are_not_allowed(options: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(AttentionError) as caught:
        server(**options)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.skipif(GPU == "cuda", reason="there is a GPU")
def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AttentionError, match="needs an NVIDIA GPU"):
        server(device="cuda")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(AttentionError, match="TRITON_INTERPRET=1"):
        server()


def test_without_triton_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = server().shape
    for name in [name for name in sys.modules if name.startswith("cleave.kvcache.backends.triton")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(MissingPackage, match="the triton attention backend needs triton: pip install"):
        create_backend("triton", shape)


def test_a_gpu_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(AttentionError, match=r"Tesla T4 has compute capability 7\.5; .* needs 8\.0"):
        server(device="cuda")


def test_tensors_that_do_not_fit() -> None:
    attention = server()
    attention.open(0)
    attention.plan([Chunk(0, 0, 2)])
    q, k, out = (torch.zeros(2, size, device=GPU) for size in (64, 32, 64))
    for bad in (
        (q[:1], k[:1], k[:1], out[:1]),
        (q, k, k[:1], out),
        (q, k, k.half(), out),
        (q[:, :32], k, k, out),
        (q.t().contiguous().t(), k, k, out),
        (q, k, k, torch.zeros(2, 128, device=GPU)[:, :64]),
    ):
        with pytest.raises(AttentionError, match="it must be"):
            attention.run(0, *bad)
    attention.run(0, q, k, k, out)


def test_too_many_chunks_are_refused_with_the_limit() -> None:
    attention = server(max_sequences=2)
    for sequence in range(3):
        attention.open(sequence)
    with pytest.raises(AttentionError, match="max_sequences allows 2"):
        attention.plan([Chunk(sequence, 0, 1) for sequence in range(3)])
    assert attention.free_pages == 4


def test_no_step_is_planned() -> None:
    attention = server()
    backend = create_backend("triton", attention.shape, device=GPU, dtype="float32")
    with pytest.raises(AttentionError, match="no step is planned"):
        backend.run(0, None, None, None, None)
