"""Linear layers for any number of rows, in which a row's bits do not depend on how many there are."""

from __future__ import annotations

import functools

import torch

from cleave.runtime.engines.inductor.small_launch import Blocks, multiply

Tensor = torch.Tensor
_TILES = (
    (16, Blocks(64, 128, 4, 4)),
    (32, Blocks(64, 128, 4, 4)),
    (64, Blocks(64, 64, 4, 5)),
    (128, Blocks(128, 64, 8, 3)),
)
"""The most rows of a block, and its blocks: the first that holds all rows, or the last.

All of them multiply by the matrix units, where every value of the result has a sum of its own, over the
width from its beginning: that is why they give the same bits. tests/gpu/test_deterministic.py holds it.
"""
_LARGE = (256, Blocks(128, 64, 8, 3))
"""For more rows than that, where a program has so much shared memory:"""
_LARGE_BYTES = 160 << 10


@torch.library.custom_op("cleave::tiled_linear", mutates_args=())
def tiled_linear(x: Tensor, weight: Tensor, residual: Tensor | None, swiglu: bool) -> Tensor:
    """A linear layer without bias.

    x [rows, width]; weight [height, width]; residual, which is added, and the result are [rows, height],
    with `swiglu` [rows, height / 2]. All of one 16-bit dtype.
    """
    x, weight = x.contiguous(), weight.contiguous()
    residual = None if residual is None else residual.contiguous()
    largest = _LARGE if _has_room(x.device) else _TILES[-1]
    rows, blocks = next((tile for tile in _TILES if len(x) <= tile[0]), largest)
    return multiply(x, weight, residual, swiglu, blocks, rows)


@tiled_linear.register_fake
def _(x: Tensor, weight: Tensor, residual: Tensor | None, swiglu: bool) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0] // 2 if swiglu else weight.shape[0])


TILED_LINEAR = torch.ops.cleave.tiled_linear.default
"""The operator as graphs have it."""


@functools.cache
def _has_room(device: torch.device) -> bool:
    from cleave.kvcache.backends.triton_device import resources

    return resources(device)[1] >= _LARGE_BYTES
