"""One engine over one attention backend, reading tokens while a recorder looks on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from cleave.kvcache.step import Chunk
from cleave.runtime.compare.recorder import Recorder
from cleave.runtime.compare.trace import Trace
from cleave.runtime.model import Model

_SEQUENCE = 0
_DECODED = 8
"""So many of the last tokens are read one by one, as decoding does; those before them in chunks."""


def trace_engine(model: Model, layers: int, tokens: Sequence[int], reference: Trace | None = None) -> Trace:
    """What crosses every cut while `model` reads the tokens; with a `reference`, see `Recorder`."""
    trace = Trace(layers, len(tokens))
    recorder = Recorder(model.attention, trace, reference)
    token_ids = np.array(tokens, np.int64)
    model.engine.observe(recorder)
    model.attention.open(_SEQUENCE)
    try:
        for start, count in _chunks(len(tokens), model.max_tokens_per_step):
            recorder.start = start
            model.attention.plan([Chunk(_SEQUENCE, start, count)])
            try:
                logits = model.engine.run(token_ids[start : start + count], np.arange(count), recorder)
            except BaseException:
                model.attention.rollback()
                raise
            model.attention.commit()
            recorder.logits(logits)
    finally:
        model.attention.close(_SEQUENCE)
        model.engine.observe(None)
    return trace


def _chunks(tokens: int, longest: int) -> Iterator[tuple[int, int]]:
    """(start, count) of each step."""
    prompt = tokens - min(_DECODED, tokens // 2)
    for start in range(0, prompt, longest):
        yield start, min(longest, prompt - start)
    for start in range(prompt, tokens):
        yield start, 1
