"""The likeliest tokens of logits that lie on a device, so that the logits need not come to the host."""

from __future__ import annotations

from typing import Any

import numpy as np

from cleave.errors import EngineError


def likeliest(logits: Any) -> list[int]:
    """The likeliest token of each row, the first of equals; waits for the device.

    logits: a torch tensor [rows, vocab] float32. Raises EngineError for logits that are not numbers.
    """
    best, tokens = logits.max(dim=-1)
    # Both in one copy: float64 holds either exactly, and what is not a number stays so.
    pair = best.double().repeat(2, 1)
    pair[0] = tokens
    found = pair.cpu().numpy()
    if not np.isfinite(found[1]).all():
        rows = np.flatnonzero(~np.isfinite(found[1])).tolist()
        raise EngineError(f"the engine's logits of rows {rows} are not finite; its dtype may be too narrow")
    chosen: list[int] = found[0].astype(np.int64).tolist()
    return chosen
