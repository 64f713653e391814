"""Attention of one layer on the CPU: append the step's keys and values, then attend, item by item.

An item is one tile of query rows of one chunk and one KV head. Items do not depend on each other, so
any division of them among threads gives the same bits.
"""

from __future__ import annotations

import inspect
import sys
import zlib
from typing import Any

import numpy as np

import cleave.lanes
from cleave.compiled import Function, part, whole
from cleave.kvcache.backends import cpu_tiles
from cleave.kvcache.backends.cpu_tiles import (
    HEIGHT,
    LOWEST,
    REACH,
    row_softcap,
    row_softmax,
    tile_scores,
    tile_values,
)
from cleave.lanes import LANES

# Rows of a tile, and keys of a block of the online softmax. Blocks are counted from position 0, so
# that a row meets the same blocks however its prompt was cut.
TILE = 24
BLOCK = 128

LOOK_UP = BLOCK // LANES + REACH
"""Elements of the `groups` scratch of `attend`."""

_FLOATS, _ROWS, _INTS, _INT, _FLOAT = "float32[::1]", "float32[:, ::1]", "int64[::1]", "int64", "float32"
_TYPES = (
    *[_ROWS] * 4, _FLOATS, _FLOATS, _ROWS, _ROWS, *[_INTS] * 4, "int32[:, ::1]", "int64[:, ::1]", _FLOATS,
    _INTS, "boolean", *[_INT] * 7, _FLOAT, _FLOAT,
)  # fmt: skip


def padded(head_dim: int) -> int:
    """head_dim rounded up to whole lanes: the row length of V pages."""
    return -(-head_dim // LANES) * LANES


def scratch_floats(head_dim: int) -> int:
    """Elements of the `scratch` of `attend`."""
    return TILE * (head_dim + BLOCK + padded(head_dim) + 2 * LANES + 1)


def _source_digest() -> int:
    modules = (cleave.lanes, cpu_tiles, sys.modules[__name__])
    return zlib.crc32("".join(inspect.getsource(module) for module in modules).encode())


@part
def _rotate(source: Any, cos: Any, sin: Any, target: Any) -> None:
    """RoPE of one head: the halves are paired, what is past them is copied."""
    half = len(cos)
    for d in range(half):
        first, second = source[d], source[half + d]
        target[d] = first * cos[d] - second * sin[d]
        target[half + d] = second * cos[d] + first * sin[d]
    for d in range(2 * half, len(source)):
        target[d] = source[d]


@part
def _append(
    k: Any, v: Any, keys: Any, values: Any, cos: Any, sin: Any, positions: Any, slots: Any, rotated: Any,
    kv_heads: Any, head_dim: Any, page_size: Any,
) -> None:  # fmt: skip
    """Put k, rotated, and v of every row into their slots; `rotated` is scratch for one head."""
    width = (head_dim + LANES - 1) // LANES * LANES
    page_groups = page_size // LANES
    for row in range(len(k)):
        position = positions[row]
        page, place = divmod(slots[row], page_size)
        group, lane = divmod(place, LANES)
        for head in range(kv_heads):
            number = (page * kv_heads + head) * page_groups + group
            columns = slice(head * head_dim, (head + 1) * head_dim)
            _rotate(k[row, columns], cos[position], sin[position], rotated)
            key_group = keys[number * LANES * head_dim : (number + 1) * LANES * head_dim]
            for d in range(head_dim):
                key_group[d * LANES + lane] = rotated[d]
            value_at = (number * LANES + lane) * width
            values[value_at : value_at + head_dim] = v[row, columns]


@part
def _find_groups(
    pages: Any, first: Any, last: Any, kv_head: Any, kv_heads: Any, page_groups: Any, groups: Any
) -> None:
    """Where key groups first, first + 1, ... of a sequence are; past the last, the last again."""
    page, place = divmod(first, page_groups)
    for i in range(len(groups)):
        groups[i] = (pages[page] * kv_heads + kv_head) * page_groups + place
        if first + i < last:
            place += 1
            if place == page_groups:
                page, place = page + 1, 0


@part
def _height(rows: Any) -> Any:
    """Rows that the loops take next: at most HEIGHT, and about as many each time."""
    times = (rows + HEIGHT - 1) // HEIGHT
    return (rows + times - 1) // times


def _compile(source_digest: int) -> Function:
    """Compile `attend`, or find it in numba's cache.

    The cache looks at the text of this file only, while `attend` is made from three; but what a
    function closes over is part of its key, so it closes over the digest of all three.
    """

    @whole(f"void({', '.join(_TYPES)})")
    def attend(
        q: Any, k: Any, v: Any, out: Any, keys: Any, values: Any, cos: Any, sin: Any, positions: Any,
        slots: Any, offsets: Any, starts: Any, page_table: Any, items: Any, scratch: Any, groups: Any,
        is_first: Any, first_item: Any, end_item: Any, heads: Any, kv_heads: Any, head_dim: Any,
        page_size: Any, window: Any, scale: Any, cap: Any,
    ) -> None:  # fmt: skip
        """Append the step's k and v where `is_first`, then attend for items[first_item:end_item].

        keys: pages of [kv_heads, page_size / 16, head_dim, 16]; values: pages of
        [kv_heads, page_size, padded head_dim]. An item is (chunk, KV head, first row, rows); rows of a
        chunk and KV head are counted token by token, and in a token head by head. Scores are q·k * scale,
        capped if cap > 0, and are exponents of 2.
        """
        _ = source_digest
        share = heads // kv_heads
        width = (head_dim + LANES - 1) // LANES * LANES
        page_groups = page_size // LANES
        queries, scratch = scratch[: TILE * head_dim], scratch[TILE * head_dim :]
        scores, scratch = scratch[: TILE * BLOCK], scratch[TILE * BLOCK :]
        sums, scratch = scratch[: TILE * width], scratch[TILE * width :]
        state, decay = scratch[: TILE * 2 * LANES], scratch[TILE * 2 * LANES :]
        if is_first:
            _append(
                k, v, keys, values, cos, sin, positions, slots, queries[:head_dim], kv_heads, head_dim,
                page_size,
            )  # fmt: skip
        for item in range(first_item, end_item):
            chunk, kv_head, first, rows = items[item, 0], items[item, 1], items[item, 2], items[item, 3]
            offset, start = offsets[chunk], starts[chunk]

            sums[: rows * width] = 0.0
            for r in range(rows):
                token, member = divmod(first + r, share)
                column = (kv_head * share + member) * head_dim
                query = queries[r * head_dim : (r + 1) * head_dim]
                _rotate(
                    q[offset + token, column : column + head_dim], cos[start + token], sin[start + token],
                    query,
                )  # fmt: skip
                for d in range(head_dim):
                    query[d] *= scale
                state[r * 2 * LANES : (r * 2 + 1) * LANES] = LOWEST
                state[(r * 2 + 1) * LANES : (r * 2 + 2) * LANES] = 0.0

            low = max(0, start + first // share - window + 1)
            high = start + (first + rows - 1) // share + 1
            for block in range(low // BLOCK, (high + BLOCK - 1) // BLOCK):
                base = max(block * BLOCK, low // LANES * LANES)
                count = min((block + 1) * BLOCK, high) - base
                used = (count + LANES - 1) // LANES
                _find_groups(
                    page_table[chunk], base // LANES, (high - 1) // LANES, kv_head, kv_heads, page_groups,
                    groups,
                )  # fmt: skip
                r = 0
                while r < rows:
                    height = _height(rows - r)
                    tile_scores(
                        height, queries, r * head_dim, head_dim, keys, groups, used, scores, r * BLOCK, BLOCK
                    )
                    r += height
                for r in range(rows):
                    end = start + (first + r) // share + 1
                    if cap > 0:
                        row_softcap(scores, r * BLOCK, used, cap)
                    row_softmax(
                        scores, r * BLOCK, used, max(0, end - window - base), end - base, state,
                        r * 2 * LANES, decay, r,
                    )  # fmt: skip
                r = 0
                while r < rows:
                    height = _height(rows - r)
                    tile_values(
                        height, scores, r * BLOCK, BLOCK, values, groups, count, width, sums, r * width,
                        decay, r,
                    )  # fmt: skip
                    r += height

            for r in range(rows):
                token, member = divmod(first + r, share)
                lane_sums = state[(r * 2 + 1) * LANES : (r * 2 + 2) * LANES]
                total = np.float32(0.0)
                for lane in range(LANES):
                    total += lane_sums[lane]
                column = (kv_head * share + member) * head_dim
                result = out[offset + token, column : column + head_dim]
                row_sums = sums[r * width : r * width + head_dim]
                for d in range(head_dim):
                    result[d] = row_sums[d] / total

    return attend


attend = _compile(_source_digest())
