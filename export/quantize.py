"""Quantising: a matrix of floats becomes integers, rounded to the nearest."""

from __future__ import annotations

import torch

from cleave.export.quantized import INT4_LARGEST, INT8_LARGEST, GroupedInt4, RowInt8, check_group_size

_CLIPPINGS = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Shares of a group's range that are tried: a few large weights clipped may spare all others rounding."""


def quantize_int8(weight: torch.Tensor) -> RowInt8:
    """[out, in] floats -> one scale for each row, the largest value of which becomes 127."""
    weight = weight.float()
    scales = weight.abs().amax(1) / INT8_LARGEST
    # A row of zeros keeps the scale 0; what it is divided by does not matter then.
    divisor = torch.where(scales > 0, scales, 1.0)
    values = (weight / divisor[:, None]).round_().clamp_(-INT8_LARGEST, INT8_LARGEST)
    return RowInt8(values.to(torch.int8).numpy(), scales.numpy())


def quantize_int4(weight: torch.Tensor, group_size: int) -> GroupedInt4:
    """[out, in] floats -> groups along the input, each from its least to its largest value.

    Of several ranges that end earlier, the one with the least squared error is taken. Zero is always met
    exactly. Raises ExportError for a group size that is not allowed or does not divide the inputs.
    """
    out, inputs = weight.shape
    check_group_size(group_size, inputs)
    groups = weight.float().reshape(out, inputs // group_size, group_size)
    low, high = groups.amin(2).clamp_(max=0), groups.amax(2).clamp_(min=0)
    best_error = torch.full_like(low, torch.inf)
    best_scales = torch.zeros_like(low)
    best_zeros = torch.zeros_like(low)
    for share in _CLIPPINGS:
        scales, zeros = _affine(low * share, high * share)
        error = (
            _round(groups, scales, zeros).sub_(zeros[..., None]).mul_(scales[..., None]) - groups
        ).square_()
        total = error.sum(2)
        better = total < best_error
        best_error = torch.where(better, total, best_error)
        best_scales = torch.where(better, scales, best_scales)
        best_zeros = torch.where(better, zeros, best_zeros)
    values = _round(groups, best_scales, best_zeros)
    return GroupedInt4(
        values.to(torch.uint8).reshape(out, inputs).numpy(),
        best_scales.numpy(),
        best_zeros.to(torch.uint8).numpy(),
        group_size,
    )


def _affine(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scales = (high - low) / INT4_LARGEST
    divisor = torch.where(scales > 0, scales, 1.0)
    return scales, (-low / divisor).round_().clamp_(0, INT4_LARGEST)


def _round(groups: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    divisor = torch.where(scales > 0, scales, 1.0)
    return (groups / divisor[..., None]).round_().add_(zeros[..., None]).clamp_(0, INT4_LARGEST)
