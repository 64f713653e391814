"""How the rows of a step are cut into items for the CPU kernel, and the items into parts for threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cleave.compiled import whole
from cleave.kvcache.spec import AttentionSpec
from cleave.kvcache.step import StepPlan

# Multiply-adds for which a thread is worth waking.
SPLIT = 4_000_000


@dataclass(frozen=True, slots=True)
class Work:
    """The items of one step for layers of one shape."""

    rows: int
    """Rows of the step."""
    arrays: tuple[npt.NDArray[Any], ...]
    """positions, slots, offsets, starts, page_table of the step, and its items.

    items: [items, 4] int64: chunk, KV head, first row, rows; rows are those of the chunk times the
    heads per KV head.
    """
    bounds: list[int]
    """Items bounds[p]:bounds[p + 1] are part p."""

    @property
    def parts(self) -> int:
        """Parts, each for another thread."""
        return len(self.bounds) - 1


def cut(step: StepPlan, spec: AttentionSpec, tile: int, threads: int) -> Work:
    """Items of at most `tile` rows, neighbours reading the same keys; at most one part a thread."""
    share = spec.heads // spec.kv_heads
    items = _items(step.offsets, share, spec.kv_heads, tile)
    bounds = [0, len(items)]
    if threads > 1:
        window = step.positions[-1] + 1 if spec.window is None else spec.window
        bounds = _bounds(items, step.starts, share, window, SPLIT // (2 * spec.head_dim), threads).tolist()
    arrays = (step.positions, step.slots, step.offsets, step.starts, step.page_table, items)
    return Work(step.tokens, arrays, bounds)


@whole("int64[:, ::1](int64[::1], int64, int64, int64)")
def _items(offsets: Any, share: Any, kv_heads: Any, tile: Any) -> Any:
    """The items of a step: chunk by chunk, KV head by KV head, tile by tile."""
    count = 0
    for chunk in range(len(offsets) - 1):
        count += ((offsets[chunk + 1] - offsets[chunk]) * share + tile - 1) // tile
    items = np.empty((count * kv_heads, 4), np.int64)
    item = 0
    for chunk in range(len(offsets) - 1):
        rows = (offsets[chunk + 1] - offsets[chunk]) * share
        for kv_head in range(kv_heads):
            for first in range(0, rows, tile):
                items[item] = (chunk, kv_head, first, min(tile, rows - first))
                item += 1
    return items


@whole("int64[::1](int64[:, ::1], int64[::1], int64, int64, int64, int64)")
def _bounds(items: Any, starts: Any, share: Any, window: Any, enough: Any, threads: Any) -> Any:
    """Where to divide the items so that parts cost about the same, each at least `enough` row-keys."""
    cost = np.empty(len(items), np.int64)
    total = 0
    for item in range(len(items)):
        chunk, _, first, rows = items[item]
        keys = starts[chunk] + (first + rows - 1) // share + 1
        total += rows * min(keys, window + rows // share)
        cost[item] = total
    parts = max(1, min(threads, total // max(enough, 1), len(items)))
    bounds = np.empty(parts + 1, np.int64)
    bounds[0] = 0
    end = 0
    for part in range(1, parts):
        while cost[end] < total * part // parts:
            end += 1
        bounds[part] = min(max(end + 1, bounds[part - 1] + 1), len(items) - (parts - part))
    bounds[parts] = len(items)
    return bounds
