"""Greedy decoding where the logits are: as on the host, whatever they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cleave.errors import EngineError
from cleave.runtime.engines.inductor.likeliest import LikeliestSearch
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


@pytest.fixture(scope="module")
def search() -> LikeliestSearch:
    """On a GPU where there is one, else in Triton's interpreter; one for all tests, as for all steps."""
    return LikeliestSearch(9, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


@pytest.mark.parametrize(
    ("rows", "vocab", "programs"),
    [(1, 5000, 1), (1, 5000, 3), (1, 5000, 500), (2, 1024, 6), (7, 2049, 6), (7, 2049, 500), (9, 300, 500)],
)
def test_the_search_finds_what_torch_finds(
    search: LikeliestSearch, rows: int, vocab: int, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row has one program where those are few or it is one block, and else one for some of its blocks."""
    monkeypatch.setattr(search, "_programs", programs)
    device = search._arrived.device
    generator = torch.Generator().manual_seed(rows * vocab)
    logits = torch.randint(-40, 40, (rows, vocab + 3), generator=generator).float()
    logits[0, vocab - 1] = 100
    logits[rows - 1, vocab // 2 :: 1024] = float("nan")
    logits[rows // 2, : vocab // 3] = float("inf")
    given = logits.to(device)[:, :vocab]
    best, tokens = torch.empty(rows, device=device), torch.empty(rows, dtype=torch.int64, device=device)
    search(given, best, tokens)
    wanted, _ = torch.max(given.cpu(), dim=-1)
    torch.testing.assert_close(best.cpu(), wanted, rtol=0, atol=0, equal_nan=True)
    for row, token in enumerate(tokens.tolist()):
        found = given[row].cpu()
        first = found.isnan() if wanted[row].isnan() else found == wanted[row]
        assert token == int(first.nonzero()[0])
    assert not search._arrived.any()


def test_the_search_gives_a_token_where_nothing_can_come_next(search: LikeliestSearch) -> None:
    logits = torch.full((2, 3000), float("-inf"), device=search._arrived.device)
    best, tokens = torch.empty_like(logits[:, 0]), torch.empty_like(logits[:, 0], dtype=torch.int64)
    search(logits, best, tokens)
    assert tokens.tolist() == [0, 0]
