"""The numbers of a step: known token ids, and those that an earlier step leaves on the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cleave.errors import EngineError
from cleave.runtime.engines.inductor.inputs import StepInputs
from cleave.runtime.engines.inductor.outputs import StepOutputs, first_rows

MOST = 12


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_token_id_comes_from_where_it_is(data: st.DataObject) -> None:
    inputs = StepInputs(MOST, torch.device("cpu"))
    for _ in range(3):
        sampled = np.array(data.draw(st.lists(st.integers(0, 2**31), min_size=1, max_size=MOST)), np.int64)
        in_place = data.draw(st.booleans())
        if in_place:
            inputs.sampled[: len(sampled)] = torch.from_numpy(sampled)
        given_ids = st.integers(-len(sampled), 2**31)
        token_ids = np.array(data.draw(st.lists(given_ids, min_size=1, max_size=MOST)), np.int64)
        tokens = data.draw(st.integers(len(token_ids), MOST))
        rows = np.array(data.draw(st.lists(st.integers(0, MOST), min_size=1, max_size=MOST)), np.int64)
        padded = data.draw(st.integers(len(rows), MOST))
        before = inputs.sampled[: len(sampled)] if in_place else torch.from_numpy(sampled)
        numbers = inputs.send(token_ids, rows, tokens, padded, before)
        expected = [sampled[-1 - token] if token < 0 else token for token in token_ids.tolist()]
        assert numbers.token_ids().tolist() == expected + [0] * (tokens - len(token_ids))
        assert numbers.logit_rows.tolist() == rows.tolist() + [0] * (padded - len(rows))


def test_token_ids_on_the_device_are_taken_from_there() -> None:
    inputs = StepInputs(MOST, torch.device("cpu"))
    numbers = inputs.send(torch.tensor([5, 6, 7]), np.array([2]), 4, 2)
    assert numbers.token_ids().tolist() == [5, 6, 7, 0]
    with pytest.raises(EngineError, match="13 tokens and 1 logit rows"):
        inputs.send(np.arange(13), np.array([0]), 13, 1)


def test_the_likeliest_tokens_lie_where_the_next_step_looks_for_them() -> None:
    inputs = StepInputs(MOST, torch.device("cpu"))
    outputs = StepOutputs(inputs.sampled)
    logits = torch.tensor([[0.0, 3.0, 3.0], [float("nan"), 0.0, 0.0], [9.0, 0.0, 0.0]])
    given_rows = first_rows(outputs.choose(logits), 2)
    assert given_rows.likeliest.tolist() == [1, 0]
    assert torch.isnan(given_rows.best[1])
    numbers = inputs.send(np.array([-3, 8, -1]), np.array([0]), 3, 1, given_rows.likeliest)
    assert numbers.token_ids().tolist() == [0, 8, 1]
