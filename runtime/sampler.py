"""The next token from the logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cleave.errors import EngineError


def greedy(logits: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The likeliest token of each row; the lowest id of equals. logits [rows, vocab] float32 -> [rows].

    Raises EngineError for logits that are not numbers: an engine that overflowed.
    """
    tokens: npt.NDArray[np.int64] = logits.argmax(axis=-1)
    best = logits[np.arange(len(logits)), tokens]  # argmax finds a NaN before any number
    if not np.isfinite(best).all():
        rows = np.flatnonzero(~np.isfinite(best)).tolist()
        raise EngineError(f"the engine's logits of rows {rows} are not finite; its dtype may be too narrow")
    return tokens
