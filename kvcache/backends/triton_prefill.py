"""The GPU kernels of chunks of more than one token: RoPE and append, and attention over the pages."""

import triton
import triton.language as tl

from cleave.kvcache.backends.triton_attend import LOWEST, angles, attend, rotated, wholly_rotated


@triton.jit(do_not_specialize=["rows"])
def append_kernel(
    q, k, v, turned, q_stride, k_stride, v_stride, rows, keys, values, cos, sin, positions, slots,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, ROTARY: tl.constexpr,
    PAGE: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, SHARES: tl.constexpr,
    QUERIES: tl.constexpr,
):  # fmt: skip
    """RoPE of some rows, and of every SHARES-th head: k and v to their slots, q to `turned` if asked to.

    Rows whose slot is -1 are the decode kernel's.
    """
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    share = tl.program_id(1)
    d = tl.arange(0, BLOCK_D)
    slot = tl.load(slots + row, mask=row < rows, other=-1)
    position = tl.load(positions + row, mask=row < rows, other=0)
    inside = slot >= 0
    mask = inside[:, None] & (d < D)[None, :]
    row = row.to(tl.int64)
    c, s = angles(inside, position, d, cos, sin, ROTARY)
    place = (slot // PAGE).to(tl.int64) * (KV_HEADS * PAGE) + slot % PAGE
    for head in range(share, KV_HEADS, SHARES):
        key = rotated(k + row * k_stride + head * D, inside, d, c, s, D, ROTARY)
        value = tl.load(v + (row * v_stride + head * D)[:, None] + d[None, :], mask=mask, other=0.0)
        at = ((place + head * PAGE) * D)[:, None] + d[None, :]
        tl.store(keys + at, key.to(keys.dtype.element_ty), mask=mask)
        tl.store(values + at, value, mask=mask)
    if QUERIES and ROTARY > 0:
        for head in range(share, KV_HEADS * GROUP, SHARES):
            x = rotated(q + row * q_stride + head * D, inside, d, c, s, D, ROTARY)
            at = (row * (KV_HEADS * GROUP * D) + head * D)[:, None] + d[None, :]
            tl.store(turned + at, x.to(turned.dtype.element_ty), mask=mask)


@triton.jit
def prefill_kernel(
    q, out, q_stride, keys, values, cos, sin, tiles, pages,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, ROTARY: tl.constexpr,
    PAGE: tl.constexpr, SCALE: tl.constexpr, UNIT: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    WIDEN: tl.constexpr, ALL_MASKED: tl.constexpr,
):  # fmt: skip
    """One tile of query rows of one chunk and one KV head; tiles [tiles, 4] int32: see `triton_work`."""
    kv_head = tl.program_id(0)
    tile = tiles + tl.program_id(1) * 4
    first_row = tl.load(tile)
    tokens = tl.load(tile + 1)
    start = tl.load(tile + 2)
    pages += tl.load(tile + 3)

    row = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    token = row // GROUP
    head = kv_head * GROUP + row % GROUP
    inside = token < tokens
    position = start + token
    source = (first_row + token).to(tl.int64)
    rows = q + source * q_stride + head * D
    if ROTARY == BLOCK_D:
        x = wholly_rotated(rows, inside, position, cos, sin, BLOCK_D)
    else:
        c, s = angles(inside, position, d, cos, sin, ROTARY)
        x = rotated(rows, inside, d, c, s, D, ROTARY).to(q.dtype.element_ty)

    top = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    # Blocks are counted from position 0, so that a row meets the same ones however its prompt was cut.
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(start - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
    # All rows of the tile see the whole of the blocks before this one. Without masks the compiler rounds
    # otherwise, so that where the tile begins would show in the bits.
    edge = begin if ALL_MASKED else tl.maximum((start + 1) // BLOCK_N * BLOCK_N, begin)
    top, total, acc = attend(
        x, top, total, acc, begin, edge, position, keys, values, pages, kv_head, d,
        KV_HEADS, D, PAGE, SCALE, UNIT, SOFTCAP, WINDOW, False, False, BLOCK_N, STAGES, WIDEN,
    )  # fmt: skip
    top, total, acc = attend(
        x, top, total, acc, edge, start + tokens, position, keys, values, pages, kv_head, d,
        KV_HEADS, D, PAGE, SCALE, UNIT, SOFTCAP, WINDOW, True, True, BLOCK_N, STAGES, WIDEN,
    )  # fmt: skip
    mask = inside[:, None] & (d < D)[None, :]
    at = (source * (KV_HEADS * GROUP * D) + head * D)[:, None] + d[None, :]
    tl.store(out + at, (acc / total[:, None]).to(out.dtype.element_ty), mask=mask)
