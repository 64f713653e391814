"""The GPU kernels of the attention backend `triton`: append, decode and prefill over a paged KV cache.

Pages of one layer are `[num_pages, kv_heads, page_size, head_dim]`, one tensor for keys (after RoPE)
and one for values, so that a page of one head is one run of bytes. All query heads that share a KV head
are rows of one tile, so that keys and values are read once for all of them. Sums are float32. A score is
`UNIT` times what `capped` gives, in base 2: the factor joins the subtraction of the maximum, in one rounding
wherever that stands, with masks or without.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

LOWEST = tl.constexpr(-1.0e30)
"""The score of a key that is not seen: finite, so that a row which has seen none yet is free of NaN."""


@triton.jit
def angles(inside, position, d, cos, sin, ROTARY: tl.constexpr):
    """cos and sin at `position` [rows] of every dimension d: two [rows, BLOCK_D] float32."""
    at = position[:, None] * ROTARY + d[None, :]
    turned = inside[:, None] & (d < ROTARY)[None, :]
    return tl.load(cos + at, mask=turned, other=1.0), tl.load(sin + at, mask=turned, other=0.0)


@triton.jit
def rotated(rows, inside, d, c, s, D: tl.constexpr, ROTARY: tl.constexpr):
    """[rows, BLOCK_D] float32: what `rows` [rows] point at, after RoPE with the cos c and the sin s.

    A dimension's partner is loaded a second time, from the other half, rather than moved between threads:
    it comes from the L1 cache, in full vectors, for every head_dim and rotary_dim.
    """
    at = rows[:, None] + d[None, :]
    seen = inside[:, None]
    x = tl.load(at, mask=seen & (d < D)[None, :], other=0.0).to(tl.float32)
    if ROTARY > 0:
        HALF: tl.constexpr = ROTARY // 2
        low = seen & (d < HALF)[None, :]
        high = seen & ((d >= HALF) & (d < ROTARY))[None, :]
        above = tl.load(at + HALF, mask=low, other=0.0).to(tl.float32)
        below = tl.load(at - HALF, mask=high, other=0.0).to(tl.float32)
        x = x * c + (below - above) * s
    return x


@triton.jit
def capped(s, SCALE: tl.constexpr, SOFTCAP: tl.constexpr):
    """Scores in units of UNIT, which has what is not in SCALE: the cap, and log2(e)."""
    if SOFTCAP:
        # tanh(s * SCALE), with exp2 alone
        return 1.0 - 2.0 / (1.0 + tl.exp2(s * (SCALE * 2.885390081777927)))
    return s * SCALE


@triton.jit
def product(a, b, acc, WIDEN: tl.constexpr):
    """acc + a b in float32. Triton's interpreter takes bfloat16 for integers there, hence WIDEN."""
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def attend(
    q, top, total, acc, begin, end, position, keys, values, pages, kv_head, d,
    KV_HEADS: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, SCALE: tl.constexpr,
    UNIT: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_N: tl.constexpr, STAGES: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """The online softmax over the keys `begin` to `end` of one KV head; gives back top, total, acc.

    Blocks are read whole where MASKED is False; CAUSAL and WINDOW hide keys from rows by their position.
    """
    # The page of a key is asked for one block ahead, so that nothing waits for it to ask for the key.
    n = begin + tl.arange(0, BLOCK_N)
    page = tl.load(pages + n // PAGE, mask=n < end, other=0)
    for _ in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        place = ((page.to(tl.int64) * KV_HEADS + kv_head) * PAGE + n % PAGE) * D
        at = place[:, None] + d[None, :]
        stored = n < end
        dims = stored[:, None] & (d < D)[None, :]
        next_n = n + BLOCK_N
        page = tl.load(pages + next_n // PAGE, mask=next_n < end, other=0)
        if MASKED or d.shape[0] != D:
            k = tl.load(keys + at, mask=dims, other=0.0)
            v = tl.load(values + at, mask=dims, other=0.0)
        else:
            k = tl.load(keys + at)
            v = tl.load(values + at)
        s = capped(product(q, tl.trans(k), None, WIDEN), SCALE, SOFTCAP)
        if MASKED:
            s = tl.where(stored[None, :], s, LOWEST)
        if CAUSAL:
            s = tl.where(n[None, :] <= position[:, None], s, LOWEST)
        if WINDOW > 0:
            s = tl.where(n[None, :] > position[:, None] - WINDOW, s, LOWEST)
        higher = tl.maximum(top, tl.max(s, 1) * UNIT)
        p = tl.exp2(tl.fma(s, UNIT, -higher[:, None]))
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(p, 1)
        acc = product(p.to(v.dtype), v, acc * shrink[:, None], WIDEN)
        top = higher
        n = next_n
    return top, total, acc


@triton.jit(do_not_specialize=["rows"])
def append_kernel(
    q, k, v, out, q_stride, k_stride, v_stride, rows, keys, values, cos, sin, positions, slots,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, ROTARY: tl.constexpr,
    PAGE: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    """RoPE of some rows, and of every SHARES-th head: k and v to their slots, q to where the output will be.

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
    if ROTARY > 0:
        for head in range(share, KV_HEADS * GROUP, SHARES):
            x = rotated(q + row * q_stride + head * D, inside, d, c, s, D, ROTARY)
            at = (row * (KV_HEADS * GROUP * D) + head * D)[:, None] + d[None, :]
            tl.store(out + at, x.to(out.dtype.element_ty), mask=mask)


@triton.jit
def prefill_kernel(
    q, out, q_stride, keys, values, tiles, pages,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr,
    PAGE: tl.constexpr, SCALE: tl.constexpr, UNIT: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    WIDEN: tl.constexpr, ALL_MASKED: tl.constexpr,
):  # fmt: skip
    """One tile of query rows of one chunk and one KV head; tiles [tiles, 4] int32: see `triton_work`.

    q is after RoPE. It may be `out`: a tile reads what it will overwrite, and nothing else of it.
    """
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
    mask = (token < tokens)[:, None] & (d < D)[None, :]
    position = start + token
    source = (first_row + token).to(tl.int64)
    x = tl.load(q + (source * q_stride + head * D)[:, None] + d[None, :], mask=mask, other=0.0)

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
    at = (source * (KV_HEADS * GROUP * D) + head * D)[:, None] + d[None, :]
    tl.store(out + at, (acc / total[:, None]).to(out.dtype.element_ty), mask=mask)


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
def fetch(
    begin, end, keys, values, pages, kv_head, KV_HEADS: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_D: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Have the first KEYS keys of a span, and their values, brought into the GPU's cache."""
    LINE: tl.constexpr = min(BLOCK_D, 1024 // keys.dtype.element_ty.primitive_bitwidth)
    LINES: tl.constexpr = BLOCK_D // LINE
    line = tl.arange(0, KEYS * LINES)
    n = tl.maximum(tl.minimum(begin + line // LINES, end - 1), 0)
    page = tl.load(pages + n // PAGE).to(tl.int64)
    at = ((page * KV_HEADS + kv_head) * PAGE + n % PAGE) * D + tl.minimum(line % LINES * LINE, D - 1)
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; prefetch.global.L2 [$2]; mov.u32 $0, 0;", "=r,l,l",
        [(keys + at).to(tl.int64), (values + at).to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def decode_kernel(
    q, k, v, out, q_stride, k_stride, v_stride, rows, keys, values, cos, sin,
    items, tokens, item_count, pages, sums, arrived,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, ROTARY: tl.constexpr,
    PAGE: tl.constexpr, SCALE: tl.constexpr, UNIT: tl.constexpr, SOFTCAP: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    WIDEN: tl.constexpr, FOLD: tl.constexpr, FOLD_ROWS: tl.constexpr,
    EARLY: tl.constexpr, FETCH: tl.constexpr,
):  # fmt: skip
    """One span of one sequence's history, for one token and one KV head; items [items, 8] int32.

    The program of the last span also appends the token itself, whose key and value it takes from k and v.
    Of the programs that share a row, the one that ends last adds up what all have left in `sums`, in
    the order of the spans, whoever it is. Rows of out from `tokens` to `rows` are cleared.

    EARLY: the kernel was launched before the last one ended. Until it has, nothing of its is read and
    nothing is written; the numbers of the step and the history are older, and FETCH keys are on their way.
    """
    kv_head = tl.program_id(0)
    number = tl.program_id(1)
    item = items + number * 8
    row = tl.load(item).to(tl.int64)
    position = tl.load(item + 1)
    table = tl.load(item + 2)
    begin = tl.load(item + 3)
    end = tl.load(item + 4)
    span = tl.load(item + 5)
    spans = tl.load(item + 6)
    slot = tl.load(item + 7)
    used = tl.load(item_count)
    spare = (number >= tl.load(tokens)) & (number < rows)

    WIDTH: tl.constexpr = KV_HEADS * GROUP * D
    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    inside = m < GROUP
    head = kv_head * GROUP + m
    mask = inside[:, None] & (d < D)[None, :]
    if EARLY:
        if number < used:
            fetch(begin, end, keys, values, pages + table, kv_head, KV_HEADS, D, PAGE, BLOCK_D, FETCH)
        gdc_wait()
        gdc_launch_dependents()
    if spare:
        at = (number.to(tl.int64) * WIDTH + head * D)[:, None] + d[None, :]
        tl.store(out + at, tl.zeros([BLOCK_M, BLOCK_D], out.dtype.element_ty), mask=mask)
    if number >= used:
        return

    pages += table
    # A last span's own token: asked for now, used when the history is read.
    one = tl.arange(0, 1)
    mine = one + span == spans - 1
    c, s = angles(mine | True, position + one, d, cos, sin, ROTARY)
    new = rotated(k + row * k_stride + kv_head * D + one, mine, d, c, s, D, ROTARY).to(keys.dtype.element_ty)
    own = mine[:, None] & (d < D)[None, :]
    value = tl.load(v + (row * v_stride + kv_head * D + one)[:, None] + d[None, :], mask=own, other=0.0)
    page = tl.load(pages + position // PAGE).to(tl.int64)
    x = rotated(q + row * q_stride + head * D, inside, d, c, s, D, ROTARY).to(q.dtype.element_ty)

    top = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    top, total, acc = attend(
        x, top, total, acc, begin, end, m, keys, values, pages, kv_head, d,
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
