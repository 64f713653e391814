"""Each processor, and all of them together, against those of transformers, on logits with many ties."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_truth import edited, warped

from cleave.runtime.sampling import kernel
from cleave.runtime.sampling.blocks import BLOCK, BOUNDS
from cleave.runtime.sampling.philox import uniform
from cleave.runtime.sampling.sampler import Sampler
from cleave.runtime.sampling.state import SamplingState
from cleave.runtime.sampling_params import SamplingDefaults, SamplingParams

least_kept, scan = kernel._least_kept, kernel._scan


@numba.njit("float32(float32[::1], float32, int64, float64, float64)")
def cutoff(row: Any, scale: Any, top_k: Any, top_p: Any, min_p: Any) -> Any:
    blocks = (len(row) + BLOCK - 1) // BLOCK
    tail, peaks = np.empty(BLOCK, np.float32), np.empty(blocks, np.float32)
    limits, sums = np.empty(BOUNDS, np.float32), np.empty(BOUNDS, np.float32)
    buffer = np.empty((blocks + 2) * BLOCK, np.float32)
    top = scan(row, tail, peaks)
    return least_kept(row, tail, peaks, top, scale, top_k, top_p, min_p, limits, sums, buffer)


def logits(seed: int, vocab: int, kind: str) -> np.ndarray:
    """Multiples of 1/8, so that there are ties, and so that no quotient makes or breaks one."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(vocab) * {"flat": 0.5, "usual": 2.0, "peaked": 4.0, "masked": 2.0}[kind]
    if kind == "peaked":
        values[rng.choice(vocab, max(1, vocab // 500))] += 20
    values = np.round(values * 8) / 8
    if kind == "masked":
        values[rng.random(vocab) < 0.7] = -np.inf
        values[rng.integers(vocab)] = 1.0
    return values.astype(np.float32)


rows = st.builds(
    logits,
    st.integers(0, 2**32),
    st.one_of(st.integers(1, 600), st.sampled_from([256, 257, 512, 4096, 20000, 40000])),
    st.sampled_from(["flat", "usual", "peaked", "masked"]),
)
filters = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.25, 0.5, 1.0, 1.0, 2.0]),
        "top_k": st.one_of(st.just(0), st.integers(1, 60), st.integers(1, 50000)),
        "top_p": st.one_of(st.just(1.0), st.floats(0.001, 0.999)),
        "min_p": st.one_of(st.just(0.0), st.floats(0.0001, 1.0)),
    }
)


@settings(max_examples=400, deadline=None)
@given(row=rows, case=filters)
def test_the_tokens_that_are_kept_are_those_of_transformers(row: np.ndarray, case: dict[str, Any]) -> None:
    """But for two things: transformers drops some of the equal tokens at the edge of top-p, which of them
    is its sort's choice; and sums of float32 in another order differ in the last bits.
    """
    params = SamplingParams(**case)
    scale = np.float32(np.log2(np.e) / case["temperature"])
    low = cutoff(row, scale, case["top_k"], case["top_p"], case["min_p"])
    ours = np.isfinite(row) & (row >= low)
    theirs = np.isfinite(warped(torch.tensor(row)[None], params)[0].numpy())
    if np.array_equal(ours, theirs):
        return
    assert not (theirs & ~ours & (row > low)).any()
    least = row[theirs].min()
    if least == low:
        assert not (theirs & ~ours).any()
        assert (row[ours & ~theirs] == low).all()
        return
    # The edge is another value: the mass above it must be what was asked for but for rounding.
    scaled = row.astype(np.float64) / case["temperature"]
    left = np.isfinite(row)
    if 0 < case["top_k"] < len(row):
        left &= row >= np.sort(row)[-case["top_k"]]
    weights = np.where(left, np.exp(scaled - scaled.max()), 0.0)
    edges = [weights[row > max(low, least)].sum() / weights.sum() - case["top_p"]]
    edges.append(np.exp((max(low, least) - row.max()) / case["temperature"]) - case["min_p"])
    edges.append(np.exp((min(low, least) - row.max()) / case["temperature"]) - case["min_p"])
    edges.append(weights[row > min(low, least)].sum() / weights.sum() - case["top_p"])
    assert min(map(abs, edges)) < 2e-5


tokens = st.integers(0, 299)
edits = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.floats(0.3, 3.0),
        "presence_penalty": st.floats(-2, 2),
        "frequency_penalty": st.floats(-2, 2),
        "logit_bias": st.dictionaries(tokens, st.floats(-100, 100), max_size=8),
        "allowed_token_ids": st.lists(tokens, min_size=1, max_size=100),
        "min_tokens": st.integers(0, 12),
    },
)
words = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), max_size=6)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    case=edits,
    prompt=st.lists(st.one_of(tokens, st.integers(0, 9)), min_size=1, max_size=40),
    output=st.lists(st.one_of(tokens, st.integers(0, 9)), max_size=80),
    bad_words=words,
    stops=st.lists(tokens, min_size=1, max_size=3),
)
def test_what_is_done_before_the_temperature_is_what_transformers_does(
    seed: int, case: dict[str, Any], prompt: list[int], output: list[int], bad_words: Any, stops: list[int]
) -> None:
    row = logits(seed, 300, "usual")
    params = SamplingParams(**case)
    expected = edited(row, params, prompt, output, bad_words=bad_words, stops=stops)[0].numpy()
    state = SamplingState(
        params.resolved(SamplingDefaults(temperature=1.0)),
        prompt,
        300,
        stop_token_ids=stops,
        bad_words=bad_words,
    )
    for token in output:
        state.accept(token)
    assert state.edits or np.array_equal(row, expected)
    state.edit(row)
    np.testing.assert_allclose(row, expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(key=st.integers(0, 2**64 - 1), stream=st.integers(0, 2**64 - 1), counter=st.integers(1, 2**64 - 1))
def test_the_random_numbers_are_those_of_numpys_philox(key: int, stream: int, counter: int) -> None:
    bits = np.random.Philox(key=np.array([key, stream], np.uint64), counter=counter - 1)
    generator = np.random.Generator(bits)
    assert uniform(np.uint64(key), np.uint64(stream), np.uint64(counter)) == generator.random()


@settings(max_examples=150, deadline=None)
@given(row=rows, temperature=st.sampled_from([0.3, 1.0, 2.0]), seed=st.integers(0, 2**64 - 1))
def test_a_draw_is_the_inverse_of_the_running_sum(row: np.ndarray, temperature: float, seed: int) -> None:
    params = SamplingParams(temperature=temperature, seed=seed).resolved(SamplingDefaults())
    state = SamplingState(params, [1], len(row))
    state.generated = 5
    (token,) = Sampler().sample(row[None].copy(), [state]).tokens
    random = uniform(np.uint64(seed), np.uint64(0), np.uint64(5))
    weights = np.exp((row.astype(np.float64) - row.max()) / temperature)
    sums = np.cumsum(weights) / weights.sum()
    assert sums[token] > random - 1e-5
    assert sums[token] - weights[token] / weights.sum() < random + 1e-5
    assert np.isfinite(row[token])


@pytest.mark.parametrize("value", [-np.inf, -1e30, 0.0, 3e38])
@pytest.mark.parametrize("vocab", [1, 255, 256, 5000, 70000])
@pytest.mark.parametrize("case", [{}, {"top_k": 3}, {"top_k": 2000}, {"top_p": 0.9}, {"min_p": 0.5}])
def test_extreme_rows_end(value: float, vocab: int, case: dict[str, Any]) -> None:
    row = np.full(vocab, value, np.float32)
    row[vocab // 2] = 7.0 if value < 0 else value
    params = SamplingParams(temperature=1.0, seed=1, **case).resolved(SamplingDefaults())
    sampled = Sampler().sample(row[None], [SamplingState(params, [1], vocab)])
    assert 0 <= sampled.tokens[0] < vocab
    if value < 0:
        assert sampled.tokens == [vocab // 2]
