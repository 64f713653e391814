"""Greedy decoding where the logits are: as on the host, whatever they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cleave.errors import EngineError
from cleave.runtime.engines.inductor.outputs import StepOutputs
from cleave.runtime.logit_rows import LogitRows
from cleave.runtime.pending import LikeliestTokens, Pending
from cleave.runtime.sampling.sampler import Sampler
from cleave.runtime.sequence import Sequence
from cleave.runtime.step import ScheduledChunk


def chosen(logits: np.ndarray) -> Pending:
    """As a step of an engine leaves them and the runtime takes them."""
    rows = len(logits)
    output = StepOutputs(torch.zeros(rows, dtype=torch.int64)).choose(torch.from_numpy(logits))
    group = tuple(ScheduledChunk(Sequence(name, (1,), 4, frozenset()), 0, 1, True) for name in range(rows))
    return LikeliestTokens("cpu", rows).choose(output, LogitRows(group))


def test_the_tokens_are_those_of_the_host_also_among_equals() -> None:
    generator = np.random.default_rng(0)
    logits = generator.integers(-3, 4, (50, 700)).astype(np.float32)
    assert chosen(logits).result().tokens == Sampler().sample(logits.copy(), [None] * 50).tokens


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_numbers(bad: float) -> None:
    logits = np.zeros((4, 9), np.float32)
    logits[2, 5] = bad
    with pytest.raises(EngineError, match=r"rows \[2\] are not finite"):
        chosen(logits).result()
