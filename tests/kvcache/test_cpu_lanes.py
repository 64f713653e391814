"""The exponential and the hyperbolic tangent of the CPU kernels against float64."""

from __future__ import annotations

import numba
import numpy as np

from cleave.kvcache.backends.cpu_tiles import row_softcap, row_softmax


@numba.njit("void(float32[::1], float32)")
def capped(scores: np.ndarray, cap: np.float32) -> None:
    row_softcap(scores, 0, len(scores) // 16, cap)


@numba.njit("void(float32[::1], float32[::1], float32[::1], int64, int64)")
def weigh(scores: np.ndarray, state: np.ndarray, decay: np.ndarray, low: int, high: int) -> None:
    row_softmax(scores, 0, len(scores) // 16, low, high, state, 0, decay, 0)


def errors_in_ulps(values: np.ndarray, exact: np.ndarray) -> np.ndarray:
    return np.abs(values - exact) / np.spacing(np.abs(exact).astype(np.float32))


def weights_of(scores: np.ndarray, low: int = 0, high: int = 1 << 30) -> tuple[np.ndarray, ...]:
    weights, state, decay = scores.copy(), np.zeros(32, np.float32), np.zeros(1, np.float32)
    state[:16] = -3e38
    weigh(weights, state, decay, low, high)
    return weights, state, decay


def test_exp2_is_within_one_and_a_half_ulp() -> None:
    scores = -np.linspace(0, 126, 160_000, dtype=np.float32)
    weights, _, _ = weights_of(scores)
    assert errors_in_ulps(weights.astype(np.float64), np.exp2(scores.astype(np.float64))).max() < 1.5


def test_exp2_of_whole_numbers_is_exact_and_of_far_less_is_zero() -> None:
    scores = np.array([0, -1, -2, -126, -140, -1e30, -np.inf, 0] * 2, np.float32)
    weights, _, _ = weights_of(scores)
    assert weights[:8].tolist() == [1, 0.5, 0.25, 2.0**-126, 0, 0, 0, 1]


def test_keys_outside_the_range_weigh_nothing_whatever_stands_there() -> None:
    scores = np.full(64, np.nan, np.float32)
    scores[5:40] = 1.5
    weights, state, _ = weights_of(scores, 5, 40)
    assert weights.tolist() == [0] * 5 + [1] * 35 + [0] * 24
    assert state[:16].tolist() == [1.5] * 16
    assert state[16:].sum() == 35


def test_a_block_without_visible_keys_changes_nothing() -> None:
    weights, state, decay = weights_of(np.full(16, np.nan, np.float32), 16, 16)
    assert not weights.any()
    assert not state[16:].any()
    assert decay == 1


def test_tanh_is_within_three_ulp() -> None:
    scores = np.concatenate([
        np.linspace(-12, 12, 160_000, dtype=np.float32),
        np.float32(2.0) ** np.linspace(-100, 3, 1600, dtype=np.float32),
    ])  # fmt: skip
    values = scores.copy()
    capped(values, np.float32(1.0))
    assert errors_in_ulps(values.astype(np.float64), np.tanh(scores.astype(np.float64))).max() < 3
