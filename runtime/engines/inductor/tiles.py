"""Linear layers for any number of rows, in which a row's bits do not depend on how many there are."""

from __future__ import annotations

import torch

from cleave.runtime.engines.inductor.small import Blocks, multiply

Tensor = torch.Tensor
_TILES = (
    (16, Blocks(64, 128, 4, 4)),
    (32, Blocks(64, 128, 4, 4)),
    (64, Blocks(64, 64, 4, 5)),
    (128, Blocks(128, 64, 8, 4)),
    (256, Blocks(128, 64, 8, 3)),
)
"""The most rows of a block, and its blocks: the first that holds all rows, or the last.

All of them multiply by one instruction, in which every value of the result has a sum of its own, over the
width from its beginning: that is why they give the same bits. tests/gpu/test_deterministic.py holds it.
"""


@torch.library.custom_op("cleave::tiled_linear", mutates_args=())
def tiled_linear(x: Tensor, weight: Tensor, residual: Tensor | None, swiglu: bool) -> Tensor:
    """A linear layer without bias.

    x [rows, width]; weight [height, width]; residual, which is added, and the result are [rows, height],
    with `swiglu` [rows, height / 2]. All of one 16-bit dtype.
    """
    x, weight = x.contiguous(), weight.contiguous()
    residual = None if residual is None else residual.contiguous()
    rows, blocks = next((tile for tile in _TILES if len(x) <= tile[0]), _TILES[-1])
    return multiply(x, weight, residual, swiglu, blocks, rows)


@tiled_linear.register_fake
def _(x: Tensor, weight: Tensor, residual: Tensor | None, swiglu: bool) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0] // 2 if swiglu else weight.shape[0])


TILED_LINEAR = torch.ops.cleave.tiled_linear.default
"""The operator as graphs have it."""
