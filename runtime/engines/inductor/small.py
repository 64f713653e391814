"""The linear layer and the norm of few rows as torch operators."""

from __future__ import annotations

import torch

from cleave.runtime.engines.inductor import small_launch
from cleave.runtime.engines.inductor.small_launch import Blocks, block_rows, multiply

Tensor = torch.Tensor


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
    """A linear layer without bias over at most 128 rows, with what is fused to it.

    x [rows, width]; weight [height, width]; norm [width] of an RMS norm of x; residual and the result are
    [rows, height], with `swiglu` [rows, height / 2]. All of one 16-bit dtype. The norm is for one row only.
    """
    residual = None if residual is None else residual.contiguous()
    return small_launch.linear(x.contiguous(), weight, norm, residual, epsilon, swiglu, Blocks(*blocks))


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
    """A linear layer without bias over 2 to 128 rows, whose parts `add_norm` adds up.

    x [rows, width]; weight [height, width]; the result is [splits, rows, height] float32.
    """
    return multiply(x.contiguous(), weight, None, False, Blocks(*blocks), block_rows(len(x)))


@split_linear.register_fake
def _(x: Tensor, weight: Tensor, blocks: list[int]) -> Tensor:
    return x.new_empty(Blocks(*blocks).splits, x.shape[0], weight.shape[0], dtype=torch.float32)


@torch.library.custom_op("cleave::add_norm", mutates_args=())
def add_norm(parts: Tensor, residual: Tensor, factors: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The sum of a residual and the parts of a linear layer, and the RMS norm of it.

    parts [splits, rows, width] of any dtype, which are added up and rounded first; residual and what is
    given back are [rows, width] of a 16-bit dtype, factors [width].
    """
    return small_launch.add_norm(parts, residual, factors, epsilon)


@add_norm.register_fake
def _(parts: Tensor, residual: Tensor, factors: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    contiguous = torch.contiguous_format
    return tuple(torch.empty_like(residual, memory_format=contiguous) for _ in range(2))  # type: ignore[return-value]


@torch.library.custom_op("cleave::small_norm", mutates_args=())
def small_norm(x: Tensor, factors: Tensor, epsilon: float) -> Tensor:
    """The RMS norm of x [..., width], of a 16-bit dtype; factors are [width]."""
    return small_launch.norm(x, factors, epsilon)


@small_norm.register_fake
def _(x: Tensor, factors: Tensor, epsilon: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


SMALL_NORM = torch.ops.cleave.small_norm.default
SMALL_LINEAR = torch.ops.cleave.small_linear.default
SPLIT_LINEAR = torch.ops.cleave.split_linear.default
ADD_NORM = torch.ops.cleave.add_norm.default
"""The operators as graphs have them."""
