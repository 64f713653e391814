"""The host work of a step for the GPU: which program of a kernel does what.

A kind is what layers share whose programs divide the step in the same way: KV heads, and the window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cleave.kvcache.step import StepPlan

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

ITEM = 8
"""Numbers of a decode item: row, position of its token, offset of its page table, first and last + 1 key
of the span, number of the span, spans of the row, and where the row's records begin."""
TILE = 4
"""Numbers of a prefill tile: first row, rows, position of the first row, offset of its page table."""

LEAST_SPAN = 64
"""Keys of a span, at least: shorter ones take longer to be added up than they save."""
FIXED_SPAN = 256
FIXED_SPANS = 8
"""Where results must not depend on the batch, a row has one span for every FIXED_SPAN tokens of its
history, all alike, at most FIXED_SPANS."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How one kind of layer divides a step."""

    window: int | None
    tile_tokens: int
    """Tokens of a prefill tile."""
    block: int
    """Keys that the decode kernel reads at once; spans are multiples of it."""
    extra: int
    """Programs of the decode kernel beyond one a row; so many spans beyond one a row, but for those of
    `deterministic`, where a program may have several."""
    deterministic: bool

    def most_items(self, rows: int) -> int:
        """Decode items of a step of `rows` decode rows, at most."""
        return rows * FIXED_SPANS if self.deterministic else rows + self.extra

    def most_records(self, rows: int) -> int:
        """Records that spans of such a step leave, at most: rows of one span leave none."""
        return rows * FIXED_SPANS if self.deterministic else 2 * self.extra

    def first_keys(self, positions: Int64) -> Int64:
        """The first key that a token at each position sees."""
        if self.window is None:
            return np.zeros_like(positions)
        return np.maximum(positions - (self.window - 1), 0)

    def decode_items(self, rows: Int64, positions: Int64, tables: Int64) -> Int32:
        """[items, ITEM]: the history of each decode row in spans, longest first.

        A row's own token is not in its history: the program of its last span appends it.
        """
        first = self.first_keys(positions)
        length = positions - first
        span = self._span(length)
        spans = np.maximum(-(-length // span), 1)
        count = int(spans.sum())
        items = np.empty((count, ITEM), np.int32)
        if count == len(rows):
            row = np.arange(count)
            number = slot = np.zeros_like(row)
        else:
            row = np.repeat(np.arange(len(rows)), spans)
            number = np.arange(count) - (np.cumsum(spans) - spans)[row]
            records = np.where(spans > 1, spans, 0)
            slot = (np.cumsum(records) - records)[row]
        begin = first[row] + number * span[row]
        items[:, 0] = rows[row]
        items[:, 1] = positions[row]
        items[:, 2] = tables[row]
        items[:, 3] = begin
        items[:, 4] = np.minimum(begin + span[row], positions[row])
        items[:, 5] = number
        items[:, 6] = spans[row]
        items[:, 7] = slot
        if count > 1:
            items = items[np.argsort(items[:, 3] - items[:, 4], kind="stable")]
        return items

    def prefill_tiles(self, step: StepPlan, chunks: Int64, tables: Int64) -> Int32:
        """[tiles, TILE]: the rows of these chunks, tiles that see most keys first."""
        counts = np.diff(step.offsets)[chunks]
        tiles_of = -(-counts // self.tile_tokens)
        chunk = np.repeat(np.arange(len(chunks)), tiles_of)
        done = (np.arange(len(chunk)) - (np.cumsum(tiles_of) - tiles_of)[chunk]) * self.tile_tokens
        start = step.starts[chunks][chunk] + done
        tiles = np.empty((len(chunk), TILE), np.int32)
        tiles[:, 0] = step.offsets[:-1][chunks][chunk] + done
        tiles[:, 1] = np.minimum(counts[chunk] - done, self.tile_tokens)
        tiles[:, 2] = start
        tiles[:, 3] = tables[chunks][chunk]
        seen = start - self.first_keys(start)
        return tiles[np.argsort(-seen, kind="stable")]

    def _span(self, length: Int64) -> Int64:
        """Keys of a span of each row, of its own length alone or so that all spans fit the grid.

        Of rows of lengths n, spans of c keys make at most sum(n) / c more than there are rows; so
        c = sum(n) / extra leaves at most `extra` of them.
        """
        if self.deterministic:
            span = -(-length // np.clip(-(-length // FIXED_SPAN), 1, FIXED_SPANS))
        else:
            span = np.full_like(length, max(-(-int(length.sum()) // self.extra), LEAST_SPAN))
        return np.maximum(-(-span // self.block), 1) * self.block
