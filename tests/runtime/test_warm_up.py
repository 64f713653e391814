"""Which steps are run before the first request."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cleave.kvcache.server import AttentionServer
from cleave.kvcache.spec import AttentionSpec
from cleave.runtime.engines.inductor.graphs import batch_sizes
from cleave.runtime.warm_up import warm_up

SPEC = AttentionSpec(heads=1, kv_heads=1, head_dim=8, scale=1.0)


class Recorder:
    """A device engine that notes its steps, and what it would pad decode steps to."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.batch_sizes = sizes
        self.steps: list[int] = []

    def run(self, token_ids: Any, logit_rows: Any, attention: AttentionServer) -> None:
        self.steps.append(len(token_ids))

    @property
    def captured(self) -> list[int]:
        """The sizes of the decode steps, in their order."""
        return [min(size for size in self.batch_sizes if size >= tokens) for tokens in self.steps[1:]]


def server(num_pages: int, max_tokens: int) -> AttentionServer:
    return AttentionServer(
        (SPEC,), backend="reference", num_pages=num_pages, max_position=64, max_tokens=max_tokens
    )


@pytest.mark.parametrize("most", [1, 2, 3, 8, 9, 31, 32, 33, 47, 48, 50, 90])
@pytest.mark.parametrize("max_sequences", [1, 6, 48, 50])
def test_every_size_that_a_step_can_be_padded_to_is_captured(most: int, max_sequences: int) -> None:
    """Whether it is the pages that are few or the tokens of a step."""
    sizes = batch_sizes(max_sequences)
    reached = {
        min(size for size in sizes if size >= batch) for batch in range(1, min(most, max_sequences) + 1)
    }
    for attention in (server(most, 128), server(128, most)):
        engine = Recorder(sizes)
        warm_up(engine, attention, max_sequences)  # type: ignore[arg-type]
        assert engine.captured == sorted(reached, reverse=True)


@pytest.mark.parametrize(("sizes", "most"), [((2,), 1), ((16, 32, 64), 8)])
def test_no_step_has_more_sequences_than_may_run(sizes: tuple[int, ...], most: int) -> None:
    """A deterministic engine pads one to two, and plans may have been built for more sequences."""
    engine = Recorder(sizes)
    warm_up(engine, server(128, 128), most)  # type: ignore[arg-type]
    assert engine.steps[1:] == [most]


def test_it_leaves_no_trace() -> None:
    attention = server(10, 128)
    free = attention.free_pages
    warm_up(Recorder((1, 2, 4, 8, 16)), attention, 16)  # type: ignore[arg-type]
    assert attention.free_pages == free
    attention.open(-1)
    assert np.asarray(attention.length(-1)) == 0
