"""What the GPU kernels of the attention backend `triton` share: RoPE, and the online softmax over pages.

Pages of one layer are `[num_pages, kv_heads, page_size, head_dim]`, one tensor for keys (after RoPE)
and one for values, so that a page of one head is one run of bytes. All query heads that share a KV head
are rows of one tile, so that keys and values are read once for all of them. Sums are float32. A score is
`UNIT` times what `capped` gives, in base 2: the factor joins the subtraction of the maximum, in one rounding
wherever that stands, with masks or without.
"""

import triton
import triton.language as tl

LOWEST = tl.constexpr(-(2.0**100))
"""The score of a key that is not seen: finite, so that a row which has seen none yet is free of NaN.

A power of two, so that LOWEST times UNIT is exact: were it rounded, the product inside an fma and the maximum
would differ by some 1e21, and exp2 of that is infinite.
"""


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
def wholly_rotated(rows, inside, position, cos, sin, BLOCK_D: tl.constexpr):
    """[rows, BLOCK_D] in the dtype of `rows`: what they point at after RoPE of every dimension.

    Each number is loaded once, and so are cos and sin, which are the same in both halves.
    """
    h = tl.arange(0, BLOCK_D // 2)
    seen = inside[:, None]
    low = tl.load(rows[:, None] + h[None, :], mask=seen, other=0.0).to(tl.float32)
    high = tl.load(rows[:, None] + (h + BLOCK_D // 2)[None, :], mask=seen, other=0.0).to(tl.float32)
    at = position[:, None] * BLOCK_D + h[None, :]
    c, s = tl.load(cos + at, mask=seen, other=1.0), tl.load(sin + at, mask=seen, other=0.0)
    halves = tl.join(low * c - high * s, high * c + low * s).to(rows.dtype.element_ty)
    return tl.reshape(tl.permute(halves, (0, 2, 1)), [rows.shape[0], BLOCK_D])


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
    UNIT: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, MASKED: tl.constexpr,
    CAUSAL: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr, WIDEN: tl.constexpr,
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
        if CAUSAL:  # hides what is not stored too
            s = tl.where(n[None, :] <= position[:, None], s, LOWEST)
        elif MASKED:
            s = tl.where(stored[None, :], s, LOWEST)
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
