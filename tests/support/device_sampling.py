"""Requests of all kinds for the device sampler, and what the sampler of the CPU gives for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cleave.runtime.sampling.device.row import SampledRow
from cleave.runtime.sampling.device.sampler import DeviceSampler
from cleave.runtime.sampling.sampler import Sampled, Sampler
from cleave.runtime.sampling.state import SamplingState
from cleave.runtime.sampling_params import SamplingDefaults, SamplingParams

GPU = "cuda" if torch.cuda.is_available() else "cpu"
"""Where the kernels run; on the CPU in Triton's interpreter (see conftest.py)."""
PROMPT = [1, 2, 3, 3, 40]
STOPS = [5, 6]
BAD_WORDS = [[9], [11]]


def kinds(vocab: int) -> list[dict[str, Any] | None]:
    """Parameters that each go another way through the kernels; None is a greedy row."""
    return [
        None,
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 20},
        {"temperature": 0.9, "top_p": 0.9},
        {"temperature": 1.2, "top_p": 0.8, "top_k": 40, "min_p": 0.01},
        {"temperature": 1.0, "min_p": 0.05, "logprobs": 5},
        {
            "temperature": 0.8,
            "top_p": 0.95,
            "repetition_penalty": 1.3,
            "frequency_penalty": 0.5,
            "presence_penalty": 0.2,
        },
        {"temperature": 0.0, "logit_bias": {3: 5.0, 7: -100.0}, "repetition_penalty": 1.1, "logprobs": 20},
        {"temperature": 1.5, "allowed_token_ids": list(range(0, vocab, 3)), "min_tokens": 2},
        {"temperature": 1.0, "top_k": vocab - 10},
        {"temperature": 2.0, "top_p": 0.999, "min_tokens": 3, "logit_bias": {5: 20.0, 8: 9.0}},
        {"temperature": 0.6, "bad_words": "x", "logit_bias": {9: 30.0, 12: 8.0}, "frequency_penalty": -1.0},
        {"temperature": 50.0, "top_k": 3},
        {"temperature": 0.01, "top_p": 0.5},
        {"temperature": 1.0, "min_tokens": 2, "logprobs": 5},
    ]


def state(params: dict[str, Any] | None, vocab: int, seed: int) -> SamplingState | None:
    """The state of a request at the begin of its answer."""
    if params is None:
        return None
    return SamplingState(
        SamplingParams(seed=seed, **params).resolved(SamplingDefaults()),
        PROMPT,
        vocab,
        stop_token_ids=STOPS,
        bad_words=BAD_WORDS if "bad_words" in params else (),
        stream=seed % 3,
    )


def states(vocab: int, count: int) -> list[SamplingState | None]:
    """States of all kinds in turn."""
    every = kinds(vocab)
    return [state(every[index % len(every)], vocab, index) for index in range(count)]


def random_logits(rows: int, vocab: int, seed: int) -> np.ndarray:
    """Wide and flat ones in turn; with some seeds in steps of an eighth, so that many are equal."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((rows, vocab)) * (1 + (seed + np.arange(rows))[:, None] % 4)
    return (np.round(values * 8) / 8 if seed % 3 == 2 else values).astype(np.float32)


def on_device(
    sampler: DeviceSampler,
    logits: np.ndarray,
    states: Sequence[SamplingState | None],
    position: int | None = None,
) -> Sampled:
    """What the device samples for rows of the sequences 0, 1, ...; positions are those of the states."""
    rows = [
        SampledRow(index, one, position if position is not None else one.generated if one else 0)
        for index, one in enumerate(states)
    ]
    return sampler.sample(torch.tensor(logits, device=GPU), rows).wait()


def on_host(sampler: Sampler, logits: np.ndarray, states: Sequence[SamplingState | None]) -> Sampled:
    """What the CPU samples for the same."""
    return sampler.sample(logits.copy(), states)


def check_logprobs(given: Sampled, expected: Sampled) -> None:
    """All logprobs are those of the CPU."""
    for one, other in zip(given.logprobs, expected.logprobs, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert (one.token, one.rank) == (other.token, other.rank)
            assert abs(one.logprob - other.logprob) < 1e-9
            np.testing.assert_array_equal(one.top_tokens, other.top_tokens)
            np.testing.assert_allclose(one.top_logprobs, other.top_logprobs, rtol=1e-6)
