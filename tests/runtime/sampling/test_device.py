"""The device sampler in Triton's interpreter, beside the sampler of the CPU on the same logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from device_sampling import (
    GPU,
    STOPS,
    check_logprobs,
    kinds,
    on_device,
    on_host,
    random_logits,
    state,
    states,
)

from cleave.errors import EngineError, RequestError
from cleave.runtime.sampling.sampler import Sampler
from cleave.runtime.sampling.state import SamplingState
from cleave.runtime.sampling_params import SamplingDefaults, SamplingParams

pytest.importorskip("triton")
from cleave.runtime.sampling.device.row import SampledRow
from cleave.runtime.sampling.device.sampler import DeviceSampler

pytestmark = [
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:(overflow|invalid value|All-NaN slice) encountered:RuntimeWarning"),
]
"""Triton's interpreter makes an index of an array of one number, and numpy speaks of numbers that wrap."""
VOCAB = 700
"""Two whole blocks and a part of one."""


@pytest.fixture(autouse=True)
def _fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """a * b + c rounded once, as a GPU does; the interpreter of Triton 3.6 rounds twice."""
    if GPU == "cpu":
        from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

        def fma(_: Any, x: Any, y: Any, z: Any) -> Any:
            wide = x.data.astype(np.float64) * y.data + z.data
            return TensorHandle(wide.astype(z.data.dtype), z.dtype.scalar)

        monkeypatch.setattr(InterpreterBuilder, "create_fma", fma)


@pytest.mark.parametrize(("vocab", "steps"), [(VOCAB, 3), (4097, 1)])
def test_tokens_and_logprobs_are_those_of_the_cpu(vocab: int, steps: int) -> None:
    """Whatever requests stand side by side, and as their answers grow."""
    rows = states(vocab, len(kinds(vocab)))
    device, host = DeviceSampler(vocab, GPU, len(rows)), Sampler(1)
    for step in range(steps):
        logits = random_logits(len(rows), vocab, step)
        given, expected = on_device(device, logits, rows), on_host(host, logits, rows)
        assert given.tokens == expected.tokens
        check_logprobs(given, expected)
        accept(rows, expected.tokens)


def test_logprobs_of_a_stop_that_may_not_come_yet_are_those_of_the_engine() -> None:
    """Up to the last place before `min_tokens`, and behind it: the stop is the likeliest everywhere."""
    rows = [state({"temperature": 1.0, "min_tokens": 2, "logprobs": 5}, VOCAB, 0)]
    device, host = DeviceSampler(VOCAB, GPU, 1), Sampler(1)
    for step in range(4):
        logits = random_logits(1, VOCAB, step)
        logits[:, STOPS[0]] = 20.0
        given, expected = on_device(device, logits, rows), on_host(host, logits, rows)
        check_logprobs(given, expected)
        (logprobs,) = given.logprobs
        assert logprobs is not None
        assert logprobs.top_tokens[0] == STOPS[0]
        accept(rows, [9])


COUNTED = {"temperature": 0.8, "repetition_penalty": 1.5, "frequency_penalty": 0.7, "presence_penalty": 0.3}


def counted(count: int) -> list[SamplingState | None]:
    """States with penalties that are large enough to change what is drawn."""
    return [state(COUNTED, VOCAB, seed) for seed in range(count)]


def peaked(rows: int, seed: int) -> np.ndarray:
    """Few likely tokens, so that the answer repeats itself."""
    logits = np.random.default_rng(seed).standard_normal((rows, VOCAB)).astype(np.float32)
    logits[:, :4] += 9.0
    return logits


def test_one_step_ahead_of_the_host_is_the_same() -> None:
    """The device counts its own tokens: the states that it is given lack the last one."""
    ahead, rows = counted(3), counted(3)
    device, host = DeviceSampler(VOCAB, GPU, 3), Sampler(1)
    tokens: list[list[int]] = []
    for step in range(6):
        expected = on_host(host, peaked(3, step), rows)
        assert on_device(device, peaked(3, step), ahead, step).tokens == expected.tokens
        accept(rows, expected.tokens)
        if tokens:
            accept(ahead, tokens[-1])
        tokens.append(expected.tokens)
    assert all(len(set(answer)) < 6 for answer in zip(*tokens, strict=True))


def test_a_token_that_is_thrown_away_is_not_counted() -> None:
    """As where a step failed behind the draw, or the sequence was preempted: its place comes again."""
    rows = counted(2)
    device, host = DeviceSampler(VOCAB, GPU, 2), Sampler(1)
    for step in range(3):
        on_device(device, peaked(2, 50 + step), rows)
        expected = on_host(host, peaked(2, step), rows)
        assert on_device(device, peaked(2, step), rows).tokens == expected.tokens
        accept(rows, expected.tokens)


def test_more_sequences_than_slots_take_turns() -> None:
    """A sequence that comes back has its counts made anew; one that ended leaves its slot."""
    rows = counted(5)
    device, host = DeviceSampler(VOCAB, GPU, 2), Sampler(1)
    device.forget(99)
    for turn, pair in enumerate([(0, 1), (1, 2), (3, 4), (0, 2), (2, 0), (1, 2)]):
        some = [rows[index] for index in pair]
        expected = on_host(host, peaked(2, turn), some)
        given = device.sample(
            torch.tensor(peaked(2, turn), device=GPU),
            [SampledRow(index, one, one.generated) for index, one in zip(pair, some, strict=True) if one],
        )
        assert given.wait().tokens == expected.tokens
        accept(some, expected.tokens)
        if turn == 1:
            device.forget(1)


def test_counts_that_nobody_has_are_an_error() -> None:
    device = DeviceSampler(VOCAB, GPU, 1)
    with pytest.raises(RuntimeError, match="position 4, and the host has 0"):
        on_device(device, peaked(1, 0), counted(1), 4)


def accept(rows: list[SamplingState | None], tokens: list[int]) -> None:
    for one, token in zip(rows, tokens, strict=True):
        if one is not None:
            one.accept(token)


# Logits that are hard to cut.


def hard_rows() -> np.ndarray:
    """[rows, VOCAB] all equal; two values; nearly all minus infinity; huge; tiny steps about an edge."""
    rows = np.zeros((5, VOCAB), np.float32)
    rows[0] = 3.25
    rows[1, ::2] = 1.0
    rows[2] = -np.inf
    rows[2, [13, 300, 699]] = [1.0, 2.0, 2.0]
    rows[3] = np.linspace(-3e38, 3e38, VOCAB, dtype=np.float32)
    rows[4] = np.float32(10) + np.arange(VOCAB, dtype=np.float32) % 40 * np.float32(2**-20)
    return rows


FILTERS: list[dict[str, Any]] = [
    {"top_k": 2}, {"top_k": 351}, {"top_p": 0.3}, {"top_p": 0.999}, {"top_k": 500, "top_p": 0.5}
]  # fmt: skip


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_hard_rows_are_cut_where_the_cpu_cuts_them(filters: dict[str, Any]) -> None:
    rows = [state({"temperature": 1.0} | filters, VOCAB, seed) for seed in range(5)]
    device, host = DeviceSampler(VOCAB, GPU, 5), Sampler(1)
    given = on_device(device, hard_rows(), rows)
    assert given.tokens == on_host(host, hard_rows(), rows).tokens


def test_top_k_of_more_tokens_than_there_are_leaves_top_p_alone() -> None:
    """Beside no row that asks for top-p without top-k, and behind a step that did."""
    device, host = DeviceSampler(VOCAB, GPU, 1), Sampler(1)
    for top_k, logits in (
        (0, -peaked(1, 0)),
        (VOCAB, peaked(1, 0)),
        (10 * VOCAB, random_logits(1, VOCAB, 0)),
    ):
        rows = [state({"temperature": 1.0, "top_k": top_k, "top_p": 0.5}, VOCAB, 3)]
        assert on_device(device, logits, rows).tokens == on_host(host, logits, rows).tokens
        assert device._buffers.cuts[0].item() == exact_cut(logits[0], {"temperature": 1.0, "top_p": 0.5})


def exact_cut(row: np.ndarray, params: dict[str, Any]) -> float:
    """The smallest value that stays, from a sorted copy in float64."""
    values = np.sort(row.astype(np.float64))[::-1]
    edge = values[min(params["top_k"], VOCAB) - 1] if "top_k" in params else values[-1]
    if "top_p" in params:
        kept = values[values >= edge]
        shares = np.exp((kept - kept[0]) / params["temperature"])
        sums = np.cumsum(shares)
        edge = kept[np.searchsorted(sums, params["top_p"] * sums[-1])]
    return float(edge)


def test_the_cuts_are_those_of_a_sort() -> None:
    cases: list[dict[str, Any]] = [
        {"temperature": temperature} | filters for temperature in (0.5, 1.5) for filters in FILTERS
    ]
    rows = [state(case, VOCAB, seed) for seed, case in enumerate(cases)]
    device = DeviceSampler(VOCAB, GPU, len(rows))
    for seed in (0, 2):
        logits = random_logits(len(rows), VOCAB, seed)
        on_device(device, logits, rows)
        cuts = device._buffers.cuts[: len(rows)].tolist()
        assert cuts == [exact_cut(row, case) for row, case in zip(logits, cases, strict=True)]


# Rows without a token.


def test_a_row_that_fails_says_so_and_leaves_the_others_alone() -> None:
    cases: list[dict[str, Any] | None] = [
        None,
        {"temperature": 1.0},
        {"temperature": 1.0, "top_p": 0.5},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.0, "allowed_token_ids": [4, 8]},
        {"temperature": 1.0, "allowed_token_ids": [4]},
        None,
    ]
    rows = [state(case, VOCAB, seed) for seed, case in enumerate(cases)]
    logits = peaked(len(rows), 0)
    logits[0, 600] = np.nan
    logits[1, 0] = np.inf
    logits[2, 699] = np.nan
    logits[3] = -np.inf
    logits[4, 650] = np.nan
    logits[5, 4] = -np.inf
    device, host = DeviceSampler(VOCAB, GPU, len(rows)), Sampler(1)
    given = on_device(device, logits, rows).tokens
    assert given[:5] == [-1] * 5
    assert given[5] == -2
    assert given[6:] == on_host(host, logits[6:], rows[6:]).tokens


def test_failures_raise_what_the_cpu_raises() -> None:
    device = DeviceSampler(VOCAB, GPU, 3)
    logits = torch.tensor(peaked(3, 0), device=GPU)
    only = state({"temperature": 1.0, "allowed_token_ids": [4]}, VOCAB, 0)
    logits[1, 4] = -torch.inf
    rows = [SampledRow(0, None, 0), SampledRow(1, only, 0), SampledRow(2, None, 7)]
    pending = device.sample(logits, rows)
    assert pending.tokens[1].item() == 0, "the next step can run"
    with pytest.raises(RequestError, match="no token is left"):
        pending.result()
    logits[2, 9] = torch.nan
    with pytest.raises(EngineError, match=r"rows \[2\] are not finite"):
        device.sample(logits, rows).result()


def test_what_needs_the_host_is_not_taken() -> None:
    device = DeviceSampler(VOCAB, GPU, 1)
    assert device.takes(None)
    assert device.takes(state({"temperature": 1.0, "bad_words": "x", "logprobs": 20}, VOCAB, 0))
    assert not device.takes(
        state({"temperature": 1.0, "logit_bias": dict.fromkeys(range(1025), 1.0)}, 2000, 0)
    )


class Grammar:
    """Allows three tokens, others after each step."""

    is_complete = False

    def __init__(self) -> None:
        self.allowed = [5, 300, 699]

    def mask(self) -> np.ndarray:
        flags = np.zeros((VOCAB + 31) // 32 * 32, bool)
        flags[self.allowed] = True
        return np.packbits(flags, bitorder="little").view(np.uint32)

    def accept(self, token: int) -> None:
        self.allowed = [token - 1, token - 2, token - 3]


def moving() -> list[SamplingState | None]:
    """A grammar, a complete one that may stop before min_tokens, and bad words of two tokens."""
    params = SamplingParams(temperature=3.0, seed=1, min_tokens=9).resolved(SamplingDefaults())
    whole = Grammar()
    whole.is_complete = True
    words = [[0, 1], [1, 0], [2, 2], [3]]
    options = {"stop_token_ids": [5, 300]}
    return [
        SamplingState(params, [1], VOCAB, constraint=Grammar(), **options),
        SamplingState(params, [1], VOCAB, constraint=whole, **options),
        SamplingState(params, [1], VOCAB, bad_words=words, **options),
        SamplingState(params, [2], VOCAB, bad_words=words, **options),
    ]


def test_what_depends_on_the_last_token_is_taken_in_lockstep_alone() -> None:
    rows, truth = moving(), moving()
    device, host = DeviceSampler(VOCAB, GPU, 4), Sampler(1)
    assert not any(map(device.takes, rows))
    assert all(device.takes(one, in_lockstep=True) for one in rows)
    for step in range(4):
        expected = on_host(host, peaked(4, step), truth)
        assert on_device(device, peaked(4, step), rows).tokens == expected.tokens
        accept(rows, expected.tokens)
        accept(truth, expected.tokens)
    with pytest.raises(RuntimeError, match="position 5, and the host has 4"):
        on_device(device, peaked(4, 0), rows, 5)
