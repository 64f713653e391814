"""The linear layer of few rows as a torch operator."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

Tensor = torch.Tensor
MOST_ROWS = 16
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
    """A linear layer without bias over at most 16 rows, with what is fused to it.

    x [rows, width]; weight [height, width]; norm [width] of an RMS norm of x, for one row only; residual
    and the result are [rows, height], with `swiglu` [rows, height / 2]. All of one 16-bit dtype.
    """
    from cleave.runtime.engines.inductor.small_kernel import matrix_kernel, vector_kernel

    rows, width = x.shape
    height = len(weight) // 2 if swiglu else len(weight)
    out = x.new_empty(rows, height)
    chosen = Blocks(*blocks)
    early = _starts_early(x.device)
    common = {
        "RESIDUAL": residual is not None,
        "SWIGLU": swiglu,
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
            x, weight, out, factors, added, height, width, epsilon, NORM=norm is not None, **common
        )
    else:
        matrix_kernel[grid](
            x, weight, out, added, rows, height, width, BLOCK_M=16, num_stages=chosen.stages, **common
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


SMALL_LINEAR = torch.ops.cleave.small_linear.default
"""The operator as graphs have it."""


@functools.cache
def _starts_early(device: torch.device) -> bool:
    """Whether kernels may start before the one before them has ended: from Hopper on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _HOPPER
