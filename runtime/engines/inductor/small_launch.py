"""How the kernels for few rows are launched."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from cleave.runtime.triton_launch import launch

Tensor = torch.Tensor
_HOPPER = (9, 0)
_GROUP = 8
"""Columns of blocks that follow one another, so that what they read of x is still in the cache."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """How a kernel is launched."""

    n: int
    """Columns of the result that one program computes."""
    k: int
    """Values of a row of the weight that are read at a time."""
    warps: int
    stages: int = 1
    """Reads that are under way at a time, where the matrix units are used."""
    splits: int = 0
    """Parts of the width that are summed up apart; 0: all of it at once."""
    turns: int = 0
    """Of one row: times n columns that a program computes with x held whole; 0: x is read along with the
    weight, k values at a time."""


def linear(
    x: Tensor,
    weight: Tensor,
    norm: Tensor | None,
    residual: Tensor | None,
    epsilon: float,
    swiglu: bool,
    blocks: Blocks,
) -> Tensor:
    """See `small_linear`."""
    if len(x) > 1:
        return multiply(x, weight, residual, swiglu, blocks, block_rows(len(x)))
    from cleave.runtime.engines.inductor.small_kernel import rows_kernel, vector_kernel

    height, width = len(weight) // 2 if swiglu else len(weight), x.shape[1]
    out = x.new_empty(1, height)
    if blocks.turns:
        kernel, block = rows_kernel, {"TURNS": blocks.turns, "BLOCK_K": 1 << (width - 1).bit_length()}
    else:
        kernel, block = vector_kernel, {"EVEN": width % blocks.k == 0, "BLOCK_K": blocks.k}
    launch(
        kernel,
        (-(-height // (blocks.n * max(1, blocks.turns))),),
        x,
        weight,
        out,
        x if norm is None else norm,
        x if residual is None else residual,
        height,
        width,
        epsilon,
        NORM=norm is not None,
        SWIGLU=swiglu,
        RESIDUAL=residual is not None,
        BLOCK_N=blocks.n,
        num_warps=blocks.warps,
        **block,
        **_early(x.device),
    )
    return out


def block_rows(rows: int) -> int:
    """Rows of a block that holds up to 128 of them: as few as there are kernels for."""
    return next(size for size in (16, 32, 64, 128) if rows <= size)


def multiply(
    x: Tensor, weight: Tensor, residual: Tensor | None, swiglu: bool, blocks: Blocks, rows_of_block: int
) -> Tensor:
    """What `small_linear` gives, by the matrix units, `rows_of_block` of any number of rows at a time.

    Where the blocks have splits, what `split_linear` gives.
    """
    from cleave.runtime.engines.inductor.small_kernel import matrix_kernel

    rows, width = x.shape
    height = len(weight) // 2 if swiglu else len(weight)
    splits = blocks.splits
    out = x.new_empty(splits, rows, height, dtype=torch.float32) if splits else x.new_empty(rows, height)
    down, across = -(-height // (blocks.n // 2 if swiglu else blocks.n)), -(-rows // rows_of_block)
    launch(
        matrix_kernel,
        (down * across * max(1, splits),),
        x,
        weight,
        out,
        x if residual is None else residual,
        rows,
        height,
        width,
        RESIDUAL=residual is not None,
        SWIGLU=swiglu,
        EVEN=width % blocks.k == 0,
        BLOCK_M=rows_of_block,
        BLOCK_N=blocks.n,
        BLOCK_K=blocks.k,
        FETCH=blocks.k * (1 << (blocks.stages.bit_length() - 1)) if across == 1 else 0,
        GROUP=_GROUP if across > 1 else 0,
        SPLITS=splits,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
        **_early(x.device),
    )
    return out


def add_norm(parts: Tensor, residual: Tensor, factors: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """See `small.add_norm`."""
    from cleave.runtime.engines.inductor.small_kernel import add_norm_kernel

    parts, residual = parts.contiguous(), residual.contiguous()
    splits, rows, width = parts.shape
    total, out = torch.empty_like(residual), torch.empty_like(residual)
    block = 1 << (width - 1).bit_length()
    launch(
        add_norm_kernel,
        (rows,),
        parts,
        residual,
        total,
        factors,
        out,
        rows,
        width,
        epsilon,
        SPLITS=splits,
        BLOCK=block,
        num_warps=_warps(block),
        **_early(parts.device),
    )
    return total, out


def norm(x: Tensor, factors: Tensor, epsilon: float) -> Tensor:
    """See `small_norm`."""
    from cleave.runtime.engines.inductor.small_kernel import norm_kernel

    x = x.contiguous()
    width = x.shape[-1]
    out = torch.empty_like(x)
    block = 1 << (width - 1).bit_length()
    rows, warps = x.numel() // width, _warps(block)
    early = _early(x.device)
    launch(norm_kernel, (rows,), x, factors, out, width, epsilon, BLOCK=block, num_warps=warps, **early)
    return out


def _warps(block: int) -> int:
    """Of a program that holds a row of so many values."""
    return min(16, max(1, block // 512))


@functools.cache
def _early(device: torch.device) -> dict[str, bool]:
    """How kernels are launched that may start before the one before them has ended: from Hopper on.

    What is compiled for the device "meta" is for the current GPU.
    """
    if device.type != "cpu" and torch.cuda.is_available():
        index = device if device.type == "cuda" else None
        if torch.cuda.get_device_capability(index) >= _HOPPER:
            return {"EARLY": True, "launch_pdl": True}
    return {"EARLY": False}
