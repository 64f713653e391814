"""The linear layer and the norm of few rows as torch operators."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

Tensor = torch.Tensor
MOST_ROWS = 32
"""With more rows than this the library's products are as fast."""
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


@torch.library.custom_op("cleave::small_linear", mutates_args=())
def small_linear(
    x: Tensor,
    weight: Tensor,
    norm: Tensor | None,
    residual: Tensor | None,
    epsilon: float,
    swiglu: bool,
    blocks: list[int],
) -> Tensor:
    """A linear layer without bias over at most 32 rows, with what is fused to it.

    x [rows, width]; weight [height, width]; norm [width] of an RMS norm of x; residual and the result are
    [rows, height], with `swiglu` [rows, height / 2]. All of one 16-bit dtype. The norm is for one row only.
    """
    chosen = Blocks(*blocks)
    if len(x) > 1:
        return multiply(x, weight, residual, swiglu, chosen, 16 if len(x) <= 16 else 32)
    from cleave.runtime.engines.inductor.small_kernel import vector_kernel

    height, width = len(weight) // 2 if swiglu else len(weight), x.shape[1]
    out = x.new_empty(1, height)
    vector_kernel[(-(-height // chosen.n),)](
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
        EVEN=width % chosen.k == 0,
        BLOCK_N=chosen.n,
        BLOCK_K=chosen.k,
        num_warps=chosen.warps,
        **_early(x.device),
    )
    return out


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
    matrix_kernel[(down * across * max(1, splits),)](
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


@small_linear.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    norm: Tensor | None,
    residual: Tensor | None,
    epsilon: float,
    swiglu: bool,
    blocks: list[int],
) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0] // 2 if swiglu else weight.shape[0])


@torch.library.custom_op("cleave::split_linear", mutates_args=())
def split_linear(x: Tensor, weight: Tensor, blocks: list[int]) -> Tensor:
    """A linear layer without bias over 2 to 32 rows, whose parts `add_norm` adds up.

    x [rows, width]; weight [height, width]; the result is [splits, rows, height] float32.
    """
    return multiply(x, weight, None, False, Blocks(*blocks), 16 if len(x) <= 16 else 32)


@split_linear.register_fake
def _(x: Tensor, weight: Tensor, blocks: list[int]) -> Tensor:
    return x.new_empty(Blocks(*blocks).splits, x.shape[0], weight.shape[0], dtype=torch.float32)


@torch.library.custom_op("cleave::add_norm", mutates_args=())
def add_norm(parts: Tensor, residual: Tensor, factors: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The sum of a residual and the parts of a linear layer, and the RMS norm of it.

    parts [splits, rows, width] of any dtype, which are added up and rounded first; residual and what is
    given back are [rows, width] of a 16-bit dtype, factors [width].
    """
    from cleave.runtime.engines.inductor.small_kernel import add_norm_kernel

    parts, residual = parts.contiguous(), residual.contiguous()
    splits, rows, width = parts.shape
    total, out = torch.empty_like(residual), torch.empty_like(residual)
    block = 1 << (width - 1).bit_length()
    add_norm_kernel[(rows,)](
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


@add_norm.register_fake
def _(parts: Tensor, residual: Tensor, factors: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    contiguous = torch.contiguous_format
    return tuple(torch.empty_like(residual, memory_format=contiguous) for _ in range(2))  # type: ignore[return-value]


@torch.library.custom_op("cleave::small_norm", mutates_args=())
def small_norm(x: Tensor, factors: Tensor, epsilon: float) -> Tensor:
    """The RMS norm of x [..., width], of a 16-bit dtype; factors are [width]."""
    from cleave.runtime.engines.inductor.small_kernel import norm_kernel

    x = x.contiguous()
    width = x.shape[-1]
    out = torch.empty_like(x)
    block = 1 << (width - 1).bit_length()
    rows, warps = x.numel() // width, _warps(block)
    norm_kernel[(rows,)](x, factors, out, width, epsilon, BLOCK=block, num_warps=warps, **_early(x.device))
    return out


@small_norm.register_fake
def _(x: Tensor, factors: Tensor, epsilon: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


SMALL_NORM = torch.ops.cleave.small_norm.default
SMALL_LINEAR = torch.ops.cleave.small_linear.default
SPLIT_LINEAR = torch.ops.cleave.split_linear.default
ADD_NORM = torch.ops.cleave.add_norm.default
"""The operators as graphs have them."""


def _warps(block: int) -> int:
    """Of a program that holds a row of so many values."""
    return min(16, max(1, block // 512))


@functools.cache
def _early(device: torch.device) -> dict[str, bool]:
    """How kernels are launched that may start before the one before them has ended: from Hopper on."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= _HOPPER:
        return {"EARLY": True, "launch_pdl": True}
    return {"EARLY": False}
