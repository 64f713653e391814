"""What runs in one step, and what the attention backends need to know of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one sequence that run in one step: a decode token or a part of a prompt.

    `start` is the position of the first token and equals the number of tokens of the sequence that
    the KV cache already holds.
    """

    sequence: int
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The host work of one step, done once and read by every layer.

    Row r of q, k, v and out is one token. Rows of chunk c are `offsets[c]:offsets[c + 1]`.
    """

    offsets: npt.NDArray[np.int64]
    """[chunks + 1] first row of each chunk, and the number of rows."""
    starts: npt.NDArray[np.int64]
    """[chunks] position of the first token of each chunk."""
    positions: npt.NDArray[np.int64]
    """[tokens] position of each row's token in its sequence."""
    slots: npt.NDArray[np.int64]
    """[tokens] where each row's k and v go: page * page_size + offset in the page."""
    page_table: npt.NDArray[np.int32]
    """[chunks, pages] pages of each chunk's sequence in order; unused entries are -1."""

    @property
    def tokens(self) -> int:
        """Rows of the step."""
        return int(self.offsets[-1])

    @property
    def chunks(self) -> int:
        """Chunks of the step; each belongs to another sequence."""
        return len(self.starts)
