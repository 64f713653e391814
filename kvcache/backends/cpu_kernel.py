"""Attention of one layer on the CPU: append the step's keys and values, then attend, item by item.

An item is one tile of query rows of one chunk and one KV head. Items do not depend on each other, so
any division of them among threads gives the same bits.

Threads that are not Python's take part, so what they need is found by address: a LAYER, and in it a STEP.
"""

from __future__ import annotations

import sys
from typing import Any

import numba
import numpy as np

import cleave.addresses
import cleave.lanes
from cleave.addresses import float32_at, int32_at, int64_at, pointer_to
from cleave.compiled import callback, part, sources_digest, whole
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
"""Elements of a thread's look-up of key groups."""

_FLOAT_BYTES, _INT_BYTES = 4, 8
_ADDRESSES = ("q", "k", "v", "out", "keys", "values", "cos", "sin", "step", "scratch", "groups")
_SIZES = ("heads", "kv_heads", "head_dim", "page_size", "window", "scratch_floats", "positions", "half")
LAYER = np.dtype([*((name, np.int64) for name in _ADDRESSES + _SIZES), ("scale", "f4"), ("cap", "f4")])
"""What `begin` and the jobs need of one layer.

keys: pages of [kv_heads, page_size / 16, head_dim, 16]; values: pages of [kv_heads, page_size, padded
head_dim]; cos, sin: [positions, half]; scratch: [threads, scratch_floats] float32; groups: [threads, LOOK_UP]
int64. `begin` sets q, k, v, out. Scores are q·k * scale, capped if cap > 0, and are exponents of 2.
"""
_ARRAYS = ("row_positions", "slots", "offsets", "starts", "page_table", "items", "bounds")
STEP = np.dtype([(name, np.int64) for name in (*_ARRAYS, "rows", "chunks", "pages", "count", "append_parts")])
"""What they need of one step; its arrays are those of `Work`, `pages` the columns of page_table, `count` the
number of items, and `append_parts` the parts that the rows are appended in."""

_layer_at = pointer_to(numba.from_dtype(LAYER))
_step_at = pointer_to(numba.from_dtype(STEP))


def padded(head_dim: int) -> int:
    """head_dim rounded up to whole lanes: the row length of V pages."""
    return -(-head_dim // LANES) * LANES


def scratch_floats(head_dim: int) -> int:
    """Elements of a thread's scratch: whole cache lines."""
    return -(-TILE * (head_dim + BLOCK + padded(head_dim) + 2 * LANES + 1) // LANES) * LANES


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
def _append(layer: Any, first: Any, end: Any, rotated: Any) -> None:
    """Put k, rotated, and v of rows first to end into their slots; `rotated` is scratch for one head."""
    step = numba.carray(_step_at(layer.step), (1,))[0]
    head_dim, kv_heads, page_size = layer.head_dim, layer.kv_heads, layer.page_size
    k = numba.carray(float32_at(layer.k), (step.rows, kv_heads * head_dim))
    v = numba.carray(float32_at(layer.v), (step.rows, kv_heads * head_dim))
    cos = numba.carray(float32_at(layer.cos), (layer.positions, layer.half))
    sin = numba.carray(float32_at(layer.sin), (layer.positions, layer.half))
    positions = numba.carray(int64_at(step.row_positions), (step.rows,))
    slots = numba.carray(int64_at(step.slots), (step.rows,))
    width = (head_dim + LANES - 1) // LANES * LANES
    page_groups = page_size // LANES
    for row in range(first, end):
        position = positions[row]
        page, place = divmod(slots[row], page_size)
        group, lane = divmod(place, LANES)
        for head in range(kv_heads):
            number = (page * kv_heads + head) * page_groups + group
            columns = slice(head * head_dim, (head + 1) * head_dim)
            _rotate(k[row, columns], cos[position], sin[position], rotated)
            size = LANES * head_dim
            key_group = numba.carray(float32_at(layer.keys + number * size * _FLOAT_BYTES), (size,))
            for d in range(head_dim):
                key_group[d * LANES + lane] = rotated[d]
            value_at = (number * LANES + lane) * width * _FLOAT_BYTES
            numba.carray(float32_at(layer.values + value_at), (head_dim,))[:] = v[row, columns]


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


@part
def _scratch_of(layer: Any, thread: Any) -> Any:
    """What this thread may write to: floats, and the look-up of groups."""
    size = layer.scratch_floats
    floats = numba.carray(float32_at(layer.scratch + thread * size * _FLOAT_BYTES), (size,))
    groups = numba.carray(int64_at(layer.groups + thread * LOOK_UP * _INT_BYTES), (LOOK_UP,))
    return floats, groups


def _compile(source_digest: int) -> tuple[Any, Any, Any, Any]:
    """Compile the functions, or find them in numba's cache; the digest is part of their key there."""

    @whole("boolean(float32[:, ::1], float32[:, ::1], float32[:, ::1], float32[:, ::1], int64)")
    def begin(q: Any, k: Any, v: Any, out: Any, address: Any) -> Any:
        """Begin the layer at `address` with these rows: append k and v, unless that is to be a job.

        False, with nothing done, where the rows or columns are not those of the step.
        """
        _ = source_digest
        layer = numba.carray(_layer_at(address), (1,))[0]
        step = numba.carray(_step_at(layer.step), (1,))[0]
        wide, narrow = (step.rows, layer.heads * layer.head_dim), (step.rows, layer.kv_heads * layer.head_dim)
        if q.shape != wide or out.shape != wide or k.shape != narrow or v.shape != narrow:
            return False
        layer.q, layer.k, layer.v, layer.out = q.ctypes.data, k.ctypes.data, v.ctypes.data, out.ctypes.data
        if step.append_parts == 1:
            _append(layer, 0, step.rows, _scratch_of(layer, 0)[0][: layer.head_dim])
        return True

    @callback("void(int64, int64, int64)")
    def append(address: Any, part: Any, thread: Any) -> None:
        """A job of `append_parts` parts: append k and v."""
        _ = source_digest
        layer = numba.carray(_layer_at(address), (1,))[0]
        step = numba.carray(_step_at(layer.step), (1,))[0]
        first = step.rows * part // step.append_parts
        end = step.rows * (part + 1) // step.append_parts
        _append(layer, first, end, _scratch_of(layer, thread)[0][: layer.head_dim])

    @callback("void(int64, int64, int64)")
    def attend(address: Any, part: Any, thread: Any) -> None:
        """A job of the step's `parts`: attend for items[bounds[part]:bounds[part + 1]]."""
        _ = source_digest
        layer = numba.carray(_layer_at(address), (1,))[0]
        step = numba.carray(_step_at(layer.step), (1,))[0]
        heads, kv_heads, head_dim, page_size = layer.heads, layer.kv_heads, layer.head_dim, layer.page_size
        window, scale, cap = layer.window, layer.scale, layer.cap
        q = numba.carray(float32_at(layer.q), (step.rows, heads * head_dim))
        out = numba.carray(float32_at(layer.out), (step.rows, heads * head_dim))
        cos = numba.carray(float32_at(layer.cos), (layer.positions, layer.half))
        sin = numba.carray(float32_at(layer.sin), (layer.positions, layer.half))
        offsets = numba.carray(int64_at(step.offsets), (step.chunks + 1,))
        starts = numba.carray(int64_at(step.starts), (step.chunks,))
        page_table = numba.carray(int32_at(step.page_table), (step.chunks, step.pages))
        items = numba.carray(int64_at(step.items), (step.count, 4))
        bounds = numba.carray(int64_at(step.bounds), (part + 2,))
        keys, values = (
            numba.carray(float32_at(layer.keys), (1,)),
            numba.carray(float32_at(layer.values), (1,)),
        )
        share = heads // kv_heads
        width = (head_dim + LANES - 1) // LANES * LANES
        page_groups = page_size // LANES
        scratch, groups = _scratch_of(layer, thread)
        queries, scratch = scratch[: TILE * head_dim], scratch[TILE * head_dim :]
        scores, scratch = scratch[: TILE * BLOCK], scratch[TILE * BLOCK :]
        sums, scratch = scratch[: TILE * width], scratch[TILE * width :]
        state, decay = scratch[: TILE * 2 * LANES], scratch[TILE * 2 * LANES :]
        for item in range(bounds[part], bounds[part + 1]):
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
                        height, queries, r * head_dim, head_dim, keys, groups, used, scores, r * BLOCK, BLOCK,
                        values, width,
                    )  # fmt: skip
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

    @whole("boolean(float32[:, ::1], float32[:, ::1], float32[:, ::1], float32[:, ::1], int64, int64)")
    def place(q: Any, k: Any, v: Any, out: Any, address: Any, count: Any) -> Any:
        """Let `count` layers, of which the first is at `address`, take these rows; False as `begin`."""
        _ = source_digest
        layers = numba.carray(_layer_at(address), (count,))
        for layer in layers:
            step = numba.carray(_step_at(layer.step), (1,))[0]
            rows, wide, narrow = step.rows, layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim
            if q.shape != (rows, wide) or out.shape != q.shape:
                return False
            if k.shape != (rows, narrow) or v.shape != k.shape:
                return False
        for layer in layers:
            layer.q, layer.k, layer.v, layer.out = (
                q.ctypes.data,
                k.ctypes.data,
                v.ctypes.data,
                out.ctypes.data,
            )
        return True

    return begin, append, attend, place


begin, append, attend, place = _compile(
    sources_digest(cleave.addresses, cleave.lanes, cpu_tiles, sys.modules[__name__])
)
