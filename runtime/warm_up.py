"""Warming up: what a GPU engine compiles and captures is done before the first request."""

from __future__ import annotations

import numpy as np

from cleave.errors import OutOfPages
from cleave.kvcache.server import AttentionServer
from cleave.kvcache.step import Chunk
from cleave.runtime.engines.engine import DeviceEngine

_FIRST = -1
"""Sequences of warm-up steps have numbers below zero, which no request has."""


def warm_up(engine: DeviceEngine, attention: AttentionServer, max_sequences: int) -> None:
    """Run a prefill step and a decode step of every batch size, and undo them.

    Behind the prefill step an engine may capture more, for later ones. Of decode steps the largest batch
    comes first, since smaller ones then fit into its memory. A size that there are not
    pages enough for, or that is more than `max_sequences`, is run with as many sequences as there may be;
    only sizes that no step is padded to, since a smaller one holds all of those, are left out.
    """
    shape = attention.shape
    _run(engine, attention, [min(shape.max_tokens, shape.max_position, shape.num_pages * shape.page_size)])
    most = min(shape.max_tokens, shape.num_pages, max_sequences)
    sizes = sorted(engine.batch_sizes)
    for smaller, size in reversed(list(zip([0, *sizes], sizes, strict=False))):
        if smaller < most:
            _run(engine, attention, [1] * min(size, most))


def _run(engine: DeviceEngine, attention: AttentionServer, counts: list[int]) -> None:
    step = [Chunk(_FIRST - index, 0, count) for index, count in enumerate(counts)]
    for chunk in step:
        attention.open(chunk.sequence)
    try:
        attention.plan(step)
        try:
            tokens = sum(counts)
            engine.run(np.zeros(tokens, np.int64), np.cumsum(counts) - 1, attention)
        finally:
            attention.rollback()
    except OutOfPages:
        return
    finally:
        for chunk in step:
            attention.close(chunk.sequence)
