"""How the rows of a step are cut into items for the CPU kernel, and the items into parts for threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cleave.compiled import whole
from cleave.kvcache.spec import AttentionSpec
from cleave.kvcache.step import StepPlan

# Multiply-adds that a part has at least: about 15 microseconds, for which handing it over is worth it.
SPLIT = 400_000

APPEND = 32_768
"""Elements of k that a part of the append has at least."""

PARTS = 4
"""Parts of a thread at most. More than one, so that nobody waits for a thread that came late or was slow."""

# Reading a key and its value from memory takes as long as the multiply-adds of this many rows.
_READ = 12


@dataclass(frozen=True, slots=True)
class Work:
    """The items of one step for layers of one shape."""

    rows: int
    """Rows of the step."""
    arrays: dict[str, npt.NDArray[Any]]
    """row_positions, slots, offsets, starts, page_table of the step, and its items and bounds.

    items: [items, 4] int64: chunk, KV head, first row, rows; rows are those of the chunk times the
    heads per KV head. bounds: [parts + 1] int64: items bounds[p]:bounds[p + 1] are part p.
    """
    parts: int
    """Parts of the items, which any thread may take."""
    append_parts: int
    """Parts of the rows, for the append to the pages."""


def cut(step: StepPlan, spec: AttentionSpec, tile: int, threads: int) -> Work:
    """Items of at most `tile` rows, neighbours reading the same keys; at most PARTS parts a thread."""
    share = spec.heads // spec.kv_heads
    items = _items(step.offsets, share, spec.kv_heads, tile)
    bounds = np.array([0, len(items)])
    if threads > 1:
        window = step.positions[-1] + 1 if spec.window is None else spec.window
        enough = SPLIT // (2 * spec.head_dim)
        bounds = _bounds(items, step.starts, share, window, _READ, enough, threads * PARTS)
    arrays = {
        "row_positions": step.positions,
        "slots": step.slots,
        "offsets": step.offsets,
        "starts": step.starts,
        "page_table": step.page_table,
        "items": items,
        "bounds": bounds,
    }
    append_parts = (
        max(1, min(step.tokens * spec.kv_size // APPEND, step.tokens, threads)) if threads > 1 else 1
    )
    return Work(step.tokens, arrays, len(bounds) - 1, append_parts)


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


@whole("int64[::1](int64[:, ::1], int64[::1], int64, int64, int64, int64, int64)")
def _bounds(items: Any, starts: Any, share: Any, window: Any, read: Any, enough: Any, most: Any) -> Any:
    """Where to divide the items so that parts cost about the same, each at least `enough` row-keys."""
    cost = np.empty(len(items), np.int64)
    total = 0
    for item in range(len(items)):
        chunk, _, first, rows = items[item]
        keys = starts[chunk] + (first + rows - 1) // share + 1
        total += (rows + read) * min(keys, window + rows // share)
        cost[item] = total
    parts = max(1, min(most, total // max(enough, 1), len(items)))
    bounds = np.empty(parts + 1, np.int64)
    bounds[0] = 0
    end = 0
    for part in range(1, parts):
        while cost[end] < total * part // parts:
            end += 1
        bounds[part] = min(max(end + 1, bounds[part - 1] + 1), len(items) - (parts - part))
    bounds[parts] = len(items)
    return bounds
