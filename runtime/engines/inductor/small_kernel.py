"""Linear layers over few rows, in Triton: the weight is read once, at the speed of memory.

Around the product they do what would else be launches of their own: the RMS norm before it, the residual
added after it, or the SwiGLU of a gate and an up projection that are one matrix. A kernel may start before
the last one has ended (programmatic dependent launch): its weights are on their way already when it waits
for what the last one writes.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def vector_kernel(
    x, weight, out, norm, residual, height, width, epsilon,
    NORM: tl.constexpr, RESIDUAL: tl.constexpr, SWIGLU: tl.constexpr, EVEN: tl.constexpr,
    EARLY: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out [height] = weight [height, width] times x [width]; one program for BLOCK_N values of out.

    With SWIGLU `weight` is [2 * height, width]: the gate, and below it the up projection. `norm` [width]
    and `epsilon` are those of an RMS norm of x, `residual` is like out. EVEN: BLOCK_K divides the width.
    EARLY: the kernel was launched before the last one ended.
    """
    dtype = x.dtype.element_ty
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    is_column = (n < height)[:, None]
    weight_at = weight + n[:, None].to(tl.int64) * width + k[None, :]
    up_at = weight_at + height.to(tl.int64) * width
    mask = is_column & (EVEN | (k < width)[None, :])
    tile = tl.load(weight_at, mask=mask, other=0.0, eviction_policy="evict_first")
    up_tile = tile
    if SWIGLU:
        up_tile = tl.load(up_at, mask=mask, other=0.0, eviction_policy="evict_first")
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()

    scale = 1.0
    if NORM:
        squares = tl.zeros([BLOCK_K], tl.float32)
        for start in range(0, width, BLOCK_K):
            part = tl.load(x + start + k, mask=EVEN | (start + k < width), other=0.0).to(tl.float32)
            squares += part * part
        scale = tl.rsqrt(tl.sum(squares, 0) / width + epsilon)

    sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    up_sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for start in range(0, width, BLOCK_K):
        # The next tile is asked for before this one is used.
        after = start + BLOCK_K
        mask = is_column & (after + k < width)[None, :]
        next_tile = tl.load(weight_at + after, mask=mask, other=0.0, eviction_policy="evict_first")
        next_up_tile = next_tile
        if SWIGLU:
            next_up_tile = tl.load(up_at + after, mask=mask, other=0.0, eviction_policy="evict_first")
        inside = EVEN | (start + k < width)
        part = tl.load(x + start + k, mask=inside, other=0.0)
        if NORM:
            factor = tl.load(norm + start + k, mask=inside, other=0.0)
            part = (part.to(tl.float32) * scale).to(dtype) * factor
        wide = part.to(tl.float32)[None, :]
        sums += tile.to(tl.float32) * wide
        if SWIGLU:
            up_sums += up_tile.to(tl.float32) * wide
        tile, up_tile = next_tile, next_up_tile

    result = tl.sum(sums, 1).to(dtype)
    if SWIGLU:
        gate = result.to(tl.float32)
        result = (gate * tl.sigmoid(gate)).to(dtype) * tl.sum(up_sums, 1).to(dtype)
    if RESIDUAL:
        result += tl.load(residual + n, mask=n < height)
    tl.store(out + n, result, mask=n < height)


@triton.jit
def rows_kernel(
    x, weight, out, norm, residual, height, width, epsilon,
    NORM: tl.constexpr, RESIDUAL: tl.constexpr, SWIGLU: tl.constexpr, EARLY: tl.constexpr,
    TURNS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """As `vector_kernel`, for a width of at most BLOCK_K: a program holds all of x, which it reads and norms
    once, and goes through its rows of the weight, BLOCK_N at a time, TURNS times.
    """
    dtype = x.dtype.element_ty
    n = tl.program_id(0) * (BLOCK_N * TURNS) + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    inside = k < width
    weight_at = weight + n[:, None].to(tl.int64) * width + k[None, :]
    up_at = weight_at + height.to(tl.int64) * width
    mask = (n < height)[:, None] & inside[None, :]
    tile = tl.load(weight_at, mask=mask, other=0.0, eviction_policy="evict_first")
    up_tile = tile
    if SWIGLU:
        up_tile = tl.load(up_at, mask=mask, other=0.0, eviction_policy="evict_first")
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()

    held = tl.load(x + k, mask=inside, other=0.0)
    if NORM:
        factor = tl.load(norm + k, mask=inside, other=0.0)
        raw = held.to(tl.float32)
        scale = tl.rsqrt(tl.sum(raw * raw, 0) / width + epsilon)
        held = (raw * scale).to(dtype) * factor
    wide = held.to(tl.float32)[None, :]

    for turn in range(TURNS):
        # The next rows are asked for before these are used.
        next_n = n + BLOCK_N
        mask = ((next_n < height) & (turn + 1 < TURNS))[:, None] & inside[None, :]
        weight_at += BLOCK_N * width
        up_at += BLOCK_N * width
        next_tile = tl.load(weight_at, mask=mask, other=0.0, eviction_policy="evict_first")
        next_up_tile = next_tile
        if SWIGLU:
            next_up_tile = tl.load(up_at, mask=mask, other=0.0, eviction_policy="evict_first")
        result = tl.sum(tile.to(tl.float32) * wide, 1).to(dtype)
        if SWIGLU:
            gate = result.to(tl.float32)
            up = tl.sum(up_tile.to(tl.float32) * wide, 1)
            result = (gate * tl.sigmoid(gate)).to(dtype) * up.to(dtype)
        if RESIDUAL:
            result += tl.load(residual + n, mask=n < height)
        tl.store(out + n, result, mask=n < height)
        n, tile, up_tile = next_n, next_tile, next_up_tile


@triton.jit
def norm_kernel(
    x, factors, out, width, epsilon, EARLY: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The RMS norm of every row of x [rows, width]; one program a row, whose BLOCK holds it."""
    at = tl.arange(0, BLOCK)
    inside = at < width
    factor = tl.load(factors + at, mask=inside, other=0.0)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64) * width + at
    wide = tl.load(x + row, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / width + epsilon)
    tl.store(out + row, (wide * scale).to(x.dtype.element_ty) * factor, mask=inside)


@triton.jit(do_not_specialize=["rows"])
def add_norm_kernel(
    parts, residual, total, factors, out, rows, width, epsilon,
    SPLITS: tl.constexpr, EARLY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """total [rows, width] = residual + the sum of parts [SPLITS, rows, width], and its RMS norm in out."""
    at = tl.arange(0, BLOCK)
    inside = at < width
    factor = tl.load(factors + at, mask=inside, other=0.0)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64) * width + at
    kept = tl.load(residual + row, mask=inside, other=0.0)
    sums = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLITS):
        part = tl.load(parts + split * rows * width + row, mask=inside, other=0.0)
        sums += part.to(tl.float32)
    kept += sums.to(kept.dtype)
    tl.store(total + row, kept, mask=inside)
    wide = kept.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / width + epsilon)
    tl.store(out + row, (wide * scale).to(kept.dtype) * factor, mask=inside)


@triton.jit
def fetch(weight, row, begin, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Have COLUMNS from `begin` on of the rows `row` [ROWS] of a matrix of 16-bit values brought into the
    GPU's cache; none behind the row's end.
    """
    LINE: tl.constexpr = 64
    column = tl.minimum(begin + tl.arange(0, COLUMNS // LINE) * LINE, width - 1)
    at = (weight + row[:, None].to(tl.int64) * width + column[None, :]).to(tl.int64)
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [at], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit(do_not_specialize=["rows"])
def matrix_kernel(
    x, weight, out, residual, rows, height, width,
    RESIDUAL: tl.constexpr, SWIGLU: tl.constexpr, EVEN: tl.constexpr, EARLY: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    FETCH: tl.constexpr, GROUP: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """As `vector_kernel` for x [rows, width], by the matrix units; a program has BLOCK_M rows of x.

    With SWIGLU the upper half of its BLOCK_N rows of the weight are of the gate, the lower half of the up
    projection. It has no norm: with several rows that costs more here than in a launch of its own. FETCH
    columns of the weight are on their way to the cache before the last kernel has ended. Programs of GROUP
    neighbouring columns of the result follow one another; 0: BLOCK_M holds all rows. With SPLITS, out is
    [SPLITS, rows, height] float32: what is to be added up, each over a part of the width.
    """
    dtype = x.dtype.element_ty
    WIDE: tl.constexpr = BLOCK_N // 2 if SWIGLU else BLOCK_N
    program = tl.program_id(0)
    begin, end = 0, width
    if SPLITS:
        split, blocks = program % SPLITS, tl.cdiv(width, BLOCK_K)
        program //= SPLITS
        begin = split * blocks // SPLITS * BLOCK_K
        end = tl.minimum((split + 1) * blocks // SPLITS * BLOCK_K, width)
        out += split.to(tl.int64) * rows * height
    first, first_row = program * WIDE, 0
    if GROUP:
        across, down = tl.cdiv(rows, BLOCK_M), tl.cdiv(height, WIDE)
        group = program // (GROUP * across)
        size = tl.minimum(down - group * GROUP, GROUP)
        first = (group * GROUP + program % (GROUP * across) % size) * WIDE
        first_row = program % (GROUP * across) // size * BLOCK_M
    i = tl.arange(0, BLOCK_N)
    n = tl.minimum(first + i % WIDE, height - 1) + i // WIDE * height
    m = first_row + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    is_row = m < rows
    x_at = x + m[None, :].to(tl.int64) * width + k[:, None]
    weight_at = weight + n[:, None].to(tl.int64) * width + k[None, :]
    if EARLY:
        if FETCH:
            fetch(weight, n, begin, width, BLOCK_N, FETCH)
        gdc_wait()

    sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in range(begin, end, BLOCK_K):
        inside = EVEN | (start + k < width)
        tile = tl.load(weight_at + start, mask=inside[None, :], other=0.0)
        part = tl.load(x_at + start, mask=is_row[None, :] & inside[:, None], other=0.0)
        sums = tl.dot(tile, part, sums)
    if EARLY:
        gdc_launch_dependents()  # not before: what waits takes the place of programs that read

    result = sums if SPLITS else sums.to(dtype)
    if SWIGLU:
        halves = tl.permute(tl.reshape(result, [2, WIDE, BLOCK_M]), [1, 2, 0])
        gate, up = tl.split(halves)
        wide = gate.to(tl.float32)
        result = (wide * tl.sigmoid(wide)).to(dtype) * up
    n = first + tl.arange(0, WIDE)
    out_at = m[None, :].to(tl.int64) * height + n[:, None]
    mask = is_row[None, :] & (n < height)[:, None]
    if RESIDUAL:
        result += tl.load(residual + out_at, mask=mask)
    tl.store(out + out_at, result, mask=mask)
