"""A linear layer over few rows, in Triton: the weight is read once, at the speed of memory.

Around the product it does what would else be launches of their own: the RMS norm before it, the residual
added after it, or the SwiGLU of a gate and an up projection that are one matrix.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def small_linear_kernel(
    x, weight, out, norm, residual, rows, height, width, epsilon,
    NORM: tl.constexpr, RESIDUAL: tl.constexpr, SWIGLU: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out [rows, height] = x [rows, width] times weight transposed; one program for BLOCK_N columns of out.

    `weight` is [height, width], and with SWIGLU [2 * height, width]: the gate, and below it the up
    projection. `norm` [width] and `epsilon` are those of an RMS norm of x, `residual` is like out. With
    BLOCK_M 1 products are summed by the arithmetic units, else by the matrix units, which want 16 rows.
    """
    dtype = x.dtype.element_ty
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    is_row, is_column = m < rows, n < height
    x_at = x + m[:, None] * width + k[None, :]
    weight_at = weight + n[:, None].to(tl.int64) * width + k[None, :]
    up_at = weight_at + height.to(tl.int64) * width

    scale = tl.full([BLOCK_M], 1.0, tl.float32)
    if NORM:
        squares = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
        for start in range(0, width, BLOCK_K):
            mask = is_row[:, None] & (EVEN | (start + k < width)[None, :])
            part = tl.load(x_at + start, mask=mask, other=0.0).to(tl.float32)
            squares += part * part
        scale = tl.rsqrt(tl.sum(squares, 1) / width + epsilon)

    if BLOCK_M == 1:
        sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        up_sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    else:
        sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        up_sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in range(0, width, BLOCK_K):
        inside = EVEN | (start + k < width)[None, :]
        tile = tl.load(weight_at + start, mask=is_column[:, None] & inside, other=0.0)
        if SWIGLU:
            up_tile = tl.load(up_at + start, mask=is_column[:, None] & inside, other=0.0)
        part = tl.load(x_at + start, mask=is_row[:, None] & inside, other=0.0)
        if NORM:
            factor = tl.load(norm + start + k[None, :], mask=inside, other=0.0)
            part = (part.to(tl.float32) * scale[:, None]).to(dtype) * factor
        if BLOCK_M == 1:
            wide = part.to(tl.float32)
            sums += tile.to(tl.float32) * wide
            if SWIGLU:
                up_sums += up_tile.to(tl.float32) * wide
        else:
            turned = tl.trans(part)
            sums = tl.dot(tile, turned, sums)
            if SWIGLU:
                up_sums = tl.dot(up_tile, turned, up_sums)

    if BLOCK_M == 1:
        result = tl.sum(sums, 1)[:, None].to(dtype)
        up = tl.sum(up_sums, 1)[:, None].to(dtype)
    else:
        result = sums.to(dtype)
        up = up_sums.to(dtype)
    out_at = m[None, :] * height + n[:, None]
    mask = is_row[None, :] & is_column[:, None]
    if SWIGLU:
        gate = result.to(tl.float32)
        result = (gate * tl.sigmoid(gate)).to(dtype) * up
    if RESIDUAL:
        result += tl.load(residual + out_at, mask=mask)
    tl.store(out + out_at, result, mask=mask)
