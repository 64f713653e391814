"""The device sampler on an NVIDIA GPU, beside the sampler of the CPU and beside the exact distribution."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from device_sampling import (
    BAD_WORDS,
    PROMPT,
    STOPS,
    check_logprobs,
    on_device,
    on_host,
    random_logits,
    state,
    states,
)
from sampling_truth import chi_square_p, edited, probabilities, warped

pytest.importorskip("triton")
from cleave.runtime.sampling.device.row import SampledRow
from cleave.runtime.sampling.device.sampler import DeviceSampler
from cleave.runtime.sampling.sampler import Sampler
from cleave.runtime.sampling.state import SamplingState
from cleave.runtime.sampling_params import SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


STEPS = 5
"""So many that those of `min_tokens` are over."""


def accept(rows: list[SamplingState | None], tokens: list[int]) -> None:
    for one, token in zip(rows, tokens, strict=True):
        if one is not None:
            one.accept(token)


@pytest.mark.parametrize("vocab", [700, 32000, 128256, 151936, 262144])
def test_tokens_and_logprobs_are_those_of_the_cpu(vocab: int) -> None:
    """All of them: only where top-p's edge falls on the rounding of a sum may one differ."""
    rows = states(vocab, 56)
    device, host = DeviceSampler(vocab, "cuda", len(rows)), Sampler()
    different = 0
    for step in range(STEPS):
        logits = random_logits(len(rows), vocab, step)
        given, expected = on_device(device, logits, rows), on_host(host, logits, rows)
        for index, (one, other) in enumerate(zip(given.tokens, expected.tokens, strict=True)):
            if one != other:
                params = rows[index]
                assert params is not None
                assert params.settings[2] < 1.0, f"row {index}: {one} instead of {other}"
                different += 1
                device.forget(index)
        if given.tokens == expected.tokens:
            check_logprobs(given, expected)
        accept(rows, expected.tokens)
    assert different <= 1, f"{different} of {STEPS * len(rows)} tokens are not those of the CPU"


def test_a_row_is_the_same_alone_and_in_any_batch() -> None:
    vocab = 32000
    logits = random_logits(56, vocab, 0)
    together = on_device(DeviceSampler(vocab, "cuda", 64), logits, states(vocab, 56)).tokens
    order = np.random.default_rng(0).permutation(56)
    rows = states(vocab, 56)
    shuffled = on_device(DeviceSampler(vocab, "cuda", 64), logits[order], [rows[index] for index in order])
    assert [together[index] for index in order] == shuffled.tokens
    alone = DeviceSampler(vocab, "cuda", 1)
    for index, one in enumerate(states(vocab, 56)):
        row = torch.tensor(logits[index : index + 1], device="cuda")
        assert alone.sample(row, [SampledRow(index, one, 0)]).wait().tokens == [together[index]]


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever waits for the GPU is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_steps_are_launched_without_waiting_and_without_memory() -> None:
    vocab, steps = 32000, 24
    rows, truth = states(vocab, 28), states(vocab, 28)
    device, host = DeviceSampler(vocab, "cuda", 28), Sampler()
    every = [random_logits(28, vocab, step) for step in range(steps)]
    logits = [torch.tensor(values, device="cuda") for values in every]
    device.warm_up()
    tokens = []
    allocations = 0
    for step in range(steps):
        with no_waiting():
            pending = device.sample(
                logits[step], [SampledRow(index, one, step) for index, one in enumerate(rows)]
            )
        if step == 0:
            allocations = torch.cuda.memory_stats()["allocation.all.allocated"]
        tokens.append(pending.tokens.clone() if step == steps - 1 else pending.wait().tokens)
        accept(rows, tokens[-1]) if step < steps - 1 else None
    assert torch.cuda.memory_stats()["allocation.all.allocated"] <= allocations + 1, "the clone alone"
    for step in range(steps - 1):
        expected = on_host(host, every[step], truth).tokens
        assert sum(one != other for one, other in zip(tokens[step], expected, strict=True)) <= 1
        accept(truth, tokens[step])


def test_four_steps_in_flight() -> None:
    """Nobody waits for a token before the fourth step is launched; the counts are right all the same."""
    vocab = 5000
    params = {"temperature": 0.9, "repetition_penalty": 1.4, "frequency_penalty": 0.6}
    rows = [state(params, vocab, seed) for seed in range(16)]
    truth = [state(params, vocab, seed) for seed in range(16)]
    device, host = DeviceSampler(vocab, "cuda", 16), Sampler()
    every = [random_logits(16, vocab, step) for step in range(4)]
    for values in every:
        values[:, :5] += 12
    pending = [
        device.sample(
            torch.tensor(values, device="cuda"),
            [SampledRow(index, one, step) for index, one in enumerate(rows)],
        )
        for step, values in enumerate(every)
    ]
    for values, one in zip(every, pending, strict=True):
        tokens = one.wait().tokens
        assert tokens == on_host(host, values, truth).tokens
        accept(truth, tokens)


VOCAB = 700
OUTPUT = [5, 9, 9, 9, 699, 11]
LAWS: dict[str, dict[str, Any]] = {
    "plain": {"temperature": 1.0},
    "hot": {"temperature": 3.0},
    "top_k": {"temperature": 1.0, "top_k": 17},
    "top_k_of_most": {"temperature": 1.3, "top_k": 650},
    "top_p": {"temperature": 1.0, "top_p": 0.8},
    "top_p_of_nearly_all": {"temperature": 2.0, "top_p": 0.995},
    "min_p": {"temperature": 1.0, "min_p": 0.07},
    "all_filters": {"temperature": 1.2, "top_k": 60, "top_p": 0.95, "min_p": 0.03},
    "penalties": {
        "temperature": 1.1, "repetition_penalty": 1.7, "presence_penalty": 1.5, "frequency_penalty": -0.8
    },
    "bias": {"temperature": 1.1, "logit_bias": {5: 4.0, 20: -100.0, 650: 6.0}},
    "allowed": {"temperature": 1.1, "allowed_token_ids": [1, 2, 5, 9, 100, 101, 102, 650, 699]},
    "min_tokens": {"temperature": 1.1, "min_tokens": 100000, "logit_bias": {5: 9.0, 300: 5.0}},
    "bad_words": {"temperature": 1.1, "bad_words": "x", "logit_bias": {9: 9.0, 11: 9.0, 13: 5.0}},
}  # fmt: skip


@pytest.mark.parametrize("name", LAWS)
def test_draws_follow_the_exact_distribution(name: str) -> None:
    """10^5 draws of one row: 256 seeds at 400 places each; a quarter where tokens are counted."""
    seeds, places, case = 256, 100 if name == "penalties" else 400, LAWS[name]
    logits = random_logits(1, VOCAB, 1)
    words = BAD_WORDS if "bad_words" in case else []
    exact = edited(logits[0], SamplingParams(**case), PROMPT, OUTPUT, stops=STOPS, bad_words=words)
    expected = probabilities(warped(exact, SamplingParams(**case)))
    rows = [state(case, VOCAB, seed) for seed in range(seeds)]
    for token in OUTPUT:
        accept(rows, [token] * seeds)
    device = DeviceSampler(VOCAB, "cuda", seeds)
    same = torch.tensor(np.tile(logits, (seeds, 1)), device="cuda")
    counts = np.zeros(VOCAB, np.int64)
    for place in range(places):
        for one in rows:
            assert one is not None
            one.generated = len(OUTPUT) + place
        # Anew each time: the tokens so far stay those of OUTPUT.
        for sequence in range(seeds if name == "penalties" else 0):
            device.forget(sequence)
        given = device.sample(
            same, [SampledRow(index, one, len(OUTPUT) + place) for index, one in enumerate(rows)]
        )
        counts += np.bincount(given.wait().tokens, minlength=VOCAB)
    assert not counts[expected == 0].any()
    assert chi_square_p(counts, expected * seeds * places) > 1e-3
