"""The GPU kernel of chunks of one token: RoPE, append and attention over split histories in one launch."""

import triton
import triton.language as tl

from cleave.kvcache.backends.triton_attend import LOWEST, angles, attend, capped, rotated


@triton.jit
def fold(
    out, sums, kv_head, slot, spans, d,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, FOLD: tl.constexpr, FOLD_ROWS: tl.constexpr,
):  # fmt: skip
    """The output of the heads of one row and KV head from what `spans` programs have left, FOLD at a time.

    A record of `sums` [slots, heads, RECORD]: sums of values, their weight, the highest score, and two
    that are there for alignment.
    """
    RECORD: tl.constexpr = d.shape[0] + 4
    m = tl.arange(0, FOLD_ROWS)
    head = kv_head * GROUP + m
    inside = m < GROUP
    top = tl.full([FOLD_ROWS], LOWEST, tl.float32)
    total = tl.zeros([FOLD_ROWS], tl.float32)
    acc = tl.zeros([FOLD_ROWS, d.shape[0]], tl.float32)
    for first in range(0, spans, FOLD):
        span = first + tl.arange(0, FOLD)
        there = (span < spans)[:, None] & inside[None, :]
        at = sums + ((slot + span) * (KV_HEADS * GROUP * RECORD))[:, None] + (head * RECORD)[None, :]
        peak = tl.load(at + d.shape[0] + 1, mask=there, other=LOWEST, cache_modifier=".cg")
        weight = tl.load(at + d.shape[0], mask=there, other=0.0, cache_modifier=".cg")
        values = at[:, :, None] + d[None, None, :]
        some = tl.load(values, mask=there[:, :, None], other=0.0, cache_modifier=".cg")
        higher = tl.maximum(top, tl.max(peak, 0))
        shrink, grow = tl.exp2(top - higher), tl.exp2(peak - higher[None, :])
        total = total * shrink + tl.sum(weight * grow, 0)
        acc = acc * shrink[:, None] + tl.sum(some * grow[:, :, None], 0)
        top = higher
    mask = inside[:, None] & (d < D)[None, :]
    result = acc / tl.where(inside, total, 1.0)[:, None]
    tl.store(out + (head * D)[:, None] + d[None, :], result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def item_of(items, number, room):
    """What item `number` says, of a list that has room for `room`."""
    at = items + tl.minimum(number, room - 1) * 8
    return (
        tl.load(at).to(tl.int64), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3),
        tl.load(at + 4), tl.load(at + 5), tl.load(at + 6), tl.load(at + 7),
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "room"])
def decode_kernel(
    q, k, v, out, q_stride, k_stride, v_stride, rows, keys, values, cos, sin,
    items, room, tokens, item_count, pages, sums, arrived,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, ROTARY: tl.constexpr,
    PAGE: tl.constexpr, SCALE: tl.constexpr, UNIT: tl.constexpr, SOFTCAP: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    WIDEN: tl.constexpr, FOLD: tl.constexpr, FOLD_ROWS: tl.constexpr,
    MANY: tl.constexpr,
):  # fmt: skip
    """A span of one sequence's history, for one token and one KV head; items [room, 8] int32.

    With MANY there may be more of them than programs, which then have several in turn. The program of a
    last span also appends the token itself, whose key and value it takes from k and v. Of the programs
    that share a row, the one that ends last adds up what all have left in `sums`, in the order of the
    spans, whoever it is. Rows of out from `tokens` to `rows` are cleared.
    """
    kv_head = tl.program_id(0)
    number = tl.program_id(1)
    row, position, table, begin, end, span, spans, slot = item_of(items, number, room)
    used = tl.load(item_count)
    spare = (number >= tl.load(tokens)) & (number < rows)

    WIDTH: tl.constexpr = KV_HEADS * GROUP * D
    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    inside = m < GROUP
    head = kv_head * GROUP + m
    mask = inside[:, None] & (d < D)[None, :]
    if spare:
        at = (number.to(tl.int64) * WIDTH + head * D)[:, None] + d[None, :]
        tl.store(out + at, tl.zeros([BLOCK_M, BLOCK_D], out.dtype.element_ty), mask=mask)

    while number < used:
        # A last span's own token: asked for now, used when the history is read.
        one = tl.arange(0, 1)
        mine = one + span == spans - 1
        c, s = angles(mine | True, position + one, d, cos, sin, ROTARY)
        key = k + row * k_stride + kv_head * D + one
        new = rotated(key, mine, d, c, s, D, ROTARY).to(keys.dtype.element_ty)
        own = mine[:, None] & (d < D)[None, :]
        value = tl.load(v + (row * v_stride + kv_head * D + one)[:, None] + d[None, :], mask=own, other=0.0)
        page = tl.load(pages + table + position // PAGE).to(tl.int64)
        x = rotated(q + row * q_stride + head * D, inside, d, c, s, D, ROTARY).to(q.dtype.element_ty)

        top = tl.full([BLOCK_M], LOWEST, tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        top, total, acc = attend(
            x, top, total, acc, begin, end, m, keys, values, pages + table, kv_head, d,
            KV_HEADS, D, PAGE, SCALE, UNIT, SOFTCAP, 0, True, False, BLOCK_N, STAGES, WIDEN,
        )  # fmt: skip
        if span == spans - 1:
            at = (((page * KV_HEADS + kv_head) * PAGE + position % PAGE) * D + one)[:, None] + d[None, :]
            tl.store(keys + at, new, mask=own)
            tl.store(values + at, value, mask=own)
            score = capped(tl.sum(x.to(tl.float32) * new.to(tl.float32), 1), SCALE, SOFTCAP) * UNIT
            higher = tl.maximum(top, score)
            shrink, weight = tl.exp2(top - higher), tl.exp2(score - higher)
            total = total * shrink + weight
            acc = acc * shrink[:, None] + value.to(tl.float32) * weight[:, None]
            top = higher

        if spans == 1:
            at = (row * WIDTH + head * D)[:, None] + d[None, :]
            tl.store(out + at, (acc / total[:, None]).to(out.dtype.element_ty), mask=mask)
        else:
            RECORD: tl.constexpr = BLOCK_D + 4
            left = sums + (slot + span) * (KV_HEADS * GROUP * RECORD) + head * RECORD
            tl.store(left[:, None] + d[None, :], acc, mask=inside[:, None])
            tl.store(left + BLOCK_D, total, mask=inside)
            tl.store(left + BLOCK_D + 1, top, mask=inside)
            tl.debug_barrier()
            counter = arrived + slot * KV_HEADS + kv_head
            if tl.atomic_add(counter, 1, sem="acq_rel") == spans - 1:
                tl.debug_barrier()
                tl.store(counter, 0)
                fold(out + row * WIDTH, sums, kv_head, slot, spans, d, KV_HEADS, GROUP, D, FOLD, FOLD_ROWS)
        if MANY:
            number += tl.num_programs(1)
            row, position, table, begin, end, span, spans, slot = item_of(items, number, room)
        else:
            number = used
