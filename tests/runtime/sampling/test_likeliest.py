"""Greedy decoding where the logits are: as on the host, whatever they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cleave.errors import EngineError
from cleave.runtime.sampling.likeliest import likeliest
from cleave.runtime.sampling.sampler import Sampler


def test_the_tokens_are_those_of_the_host_also_among_equals() -> None:
    generator = np.random.default_rng(0)
    logits = generator.integers(-3, 4, (50, 700)).astype(np.float32)
    assert likeliest(torch.from_numpy(logits)) == Sampler().sample(logits.copy(), [None] * 50).tokens


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_numbers(bad: float) -> None:
    logits = torch.zeros(4, 9)
    logits[2, 5] = bad
    with pytest.raises(EngineError, match=r"rows \[2\] are not finite"):
        likeliest(logits)
