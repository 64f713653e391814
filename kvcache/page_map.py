"""Who holds which page, for those who want to draw it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FREE, CACHED, SHARED = -1, -2, -3


@dataclass(frozen=True, slots=True)
class PageMap:
    """The pages of a KV cache at one moment."""

    holders: npt.NDArray[np.int64]
    """[num_pages] the sequence that holds each page; FREE, CACHED where only the prefix cache keeps it,
    SHARED where several sequences hold it."""
