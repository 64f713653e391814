"""The device sampler in Triton's interpreter, beside the sampler of the CPU on the same logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from device_sampling import GPU, check_logprobs, kinds, on_device, on_host, random_logits, state, states

from cleave.errors import EngineError, RequestError
from cleave.runtime.sampling.sampler import Sampler
from cleave.runtime.sampling.state import SamplingState

pytest.importorskip("triton")
from cleave.runtime.sampling.device.row import SampledRow
from cleave.runtime.sampling.device.sampler import DeviceSampler

pytestmark = [
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning"),
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


def accept(rows: list[SamplingState | None], tokens: list[int]) -> None:
    for one, token in zip(rows, tokens, strict=True):
        if one is not None:
            one.accept(token)


@pytest.mark.parametrize("vocab", [VOCAB, 4097])
def test_tokens_and_logprobs_are_those_of_the_cpu(vocab: int) -> None:
    """Whatever requests stand side by side, and as their answers grow."""
    rows = states(vocab, len(kinds(vocab)))
    device, host = DeviceSampler(vocab, GPU, len(rows)), Sampler(1)
    for step in range(4 if vocab == VOCAB else 1):
        logits = random_logits(len(rows), vocab, step)
        given, expected = on_device(device, logits, rows), on_host(host, logits, rows)
        assert given.tokens == expected.tokens
        check_logprobs(given, expected)
        accept(rows, expected.tokens)


def test_one_step_ahead_of_the_host_is_the_same() -> None:
    """The device counts its own tokens: the host's states lag behind by one."""
    rows, behind = states(VOCAB, 12), states(VOCAB, 12)
    device, host = DeviceSampler(VOCAB, GPU, len(rows)), Sampler(1)
    last: list[int] = []
    for step in range(3):
        logits = random_logits(len(rows), VOCAB, 10 + step)
        given = on_device(device, logits, behind, step)
        expected = on_host(host, logits, rows)
        assert given.tokens == expected.tokens
        accept(behind, last or [0] * 12) if last else None
        accept(rows, expected.tokens)
        last = expected.tokens
