"""The linear layer of few rows as a torch operator, and which block sizes suit a shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Blocks:
    """How the kernel is launched."""

    n: int
    """Columns of the result that one program computes."""
    k: int
    """Values of a row that are read at a time."""
    warps: int
    stages: int
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
    """A linear layer without bias over at most 16 rows; see `small_linear_kernel`."""
    import triton

    from cleave.runtime.engines.inductor.small_kernel import small_linear_kernel

    rows, width = x.shape
    height = len(weight) // 2 if swiglu else len(weight)
    out = x.new_empty(rows, height)
    chosen = Blocks(*blocks)
    small_linear_kernel[(triton.cdiv(height, chosen.n),)](
        x,
        weight,
        out,
        x if norm is None else norm,
        x if residual is None else residual,
        rows,
        height,
        width,
        epsilon,
        NORM=norm is not None,
        RESIDUAL=residual is not None,
        SWIGLU=swiglu,
        EVEN=width % chosen.k == 0,
        BLOCK_M=1 if rows == 1 else 16,
        BLOCK_N=chosen.n,
        BLOCK_K=chosen.k,
        num_warps=chosen.warps,
        num_stages=chosen.stages,
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
