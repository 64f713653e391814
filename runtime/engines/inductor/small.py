"""The linear layer and the norm of few rows as torch operators."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

Tensor = torch.Tensor
MOST_ROWS = 32
"""With more rows than this the library's products are as fast."""
_HOPPER = (9, 0)


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
    [rows, height], with `swiglu` [rows, height / 2]. All of one 16-bit dtype. Norm and SwiGLU are for
    one row only.
    """
    from cleave.runtime.engines.inductor.small_kernel import matrix_kernel, vector_kernel

    rows, width = x.shape
    height = len(weight) // 2 if swiglu else len(weight)
    out = x.new_empty(rows, height)
    chosen = Blocks(*blocks)
    early = _starts_early(x.device)
    common = {
        "RESIDUAL": residual is not None,
        "EVEN": width % chosen.k == 0,
        "EARLY": early,
        "BLOCK_N": chosen.n,
        "BLOCK_K": chosen.k,
        "num_warps": chosen.warps,
    } | ({"launch_pdl": True} if early else {})
    grid = (-(-height // chosen.n),)
    added = x if residual is None else residual
    if rows == 1:
        factors = x if norm is None else norm
        vector_kernel[grid](
            x,
            weight,
            out,
            factors,
            added,
            height,
            width,
            epsilon,
            NORM=norm is not None,
            SWIGLU=swiglu,
            **common,
        )
    else:
        matrix_kernel[grid](
            x,
            weight,
            out,
            added,
            rows,
            height,
            width,
            BLOCK_M=16 if rows <= 16 else 32,
            FETCH=chosen.k * (1 << (chosen.stages.bit_length() - 1)),
            num_stages=chosen.stages,
            **common,
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


@torch.library.custom_op("cleave::small_norm", mutates_args=())
def small_norm(x: Tensor, factors: Tensor, epsilon: float) -> Tensor:
    """The RMS norm of x [rows, width], contiguous, of a 16-bit dtype; factors are [width]."""
    from cleave.runtime.engines.inductor.small_kernel import norm_kernel

    rows, width = x.shape
    out = torch.empty_like(x)
    early = _starts_early(x.device)
    block = 1 << (width - 1).bit_length()
    options = {"num_warps": min(16, max(1, block // 512))} | ({"launch_pdl": True} if early else {})
    norm_kernel[(rows,)](x, factors, out, width, epsilon, EARLY=early, BLOCK=block, **options)
    return out


@small_norm.register_fake
def _(x: Tensor, factors: Tensor, epsilon: float) -> Tensor:
    return torch.empty_like(x)


SMALL_NORM = torch.ops.cleave.small_norm.default
SMALL_LINEAR = torch.ops.cleave.small_linear.default
"""The operators as graphs have them."""


@functools.cache
def _starts_early(device: torch.device) -> bool:
    """Whether kernels may start before the one before them has ended: from Hopper on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _HOPPER
