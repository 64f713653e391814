"""Rotary position encoding in numbers: inverse frequencies, and the cos and sin of every position."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from cleave.kvcache.spec import RopeSpec

Float32 = npt.NDArray[np.float32]


def inverse_frequencies(rope: RopeSpec) -> Float32:
    """[rotary_dim / 2] float32, radians a position: what transformers' ROPE_INIT_FUNCTIONS give.

    The powers of the base are rounded correctly here, on every machine. PyTorch's vectorised `pow`
    is allowed an error of 1 ulp and uses it about once in 200 frequencies; there the two differ by
    that ulp (by two where "llama3" or "yarn" blend it), elsewhere not at all.
    """
    exponents = np.arange(0, rope.rotary_dim, 2, dtype=np.float32) / np.float32(rope.rotary_dim)
    powers = np.float64(np.float32(rope.base)) ** exponents.astype(np.float64)
    periods = powers.astype(np.float32)
    if rope.kind == "yarn":
        return _yarn(rope, periods)
    frequencies = np.float32(1) / periods
    if rope.kind == "linear":
        return frequencies / np.float32(rope.factor)
    if rope.kind == "llama3":
        return _llama3(rope, frequencies)
    return frequencies


def attention_factor(rope: RopeSpec) -> float:
    """What cos and sin are multiplied by: 1 for every kind but "yarn"."""
    return rope.attention_factor if rope.kind == "yarn" else 1.0


def rope_tables(rope: RopeSpec, max_position: int) -> tuple[Float32, Float32]:
    """cos and sin, each [max_position, rotary_dim / 2] float32, times the attention factor.

    The angle is rounded to float32 before cos and sin are taken, as transformers does.
    """
    positions = np.arange(max_position, dtype=np.float32)
    angles = (positions[:, None] * inverse_frequencies(rope)).astype(np.float64)
    factor = np.float32(attention_factor(rope))
    cos = np.cos(angles).astype(np.float32) * factor
    sin = np.sin(angles).astype(np.float32) * factor
    return cos, sin


def _llama3(rope: RopeSpec, frequencies: Float32) -> Float32:
    """Long waves slowed by the factor, short ones kept, those between interpolated (Llama 3.1)."""
    factor = np.float32(rope.factor)
    context = np.float32(rope.original_max_position)
    # A number divided by a tensor is, in PyTorch, the tensor's reciprocal times the number: two roundings.
    one = np.float32(1)
    wavelengths = one / frequencies * np.float32(2 * math.pi)
    is_long = wavelengths > np.float32(rope.original_max_position / rope.low_freq_factor)
    is_short = wavelengths < np.float32(rope.original_max_position / rope.high_freq_factor)
    span = np.float32(rope.high_freq_factor - rope.low_freq_factor)
    keep = (one / wavelengths * context - np.float32(rope.low_freq_factor)) / span
    between = (one - keep) * frequencies / factor + keep * frequencies
    scaled: Float32 = np.where(is_long, frequencies / factor, np.where(is_short, frequencies, between))
    return scaled


def _yarn(rope: RopeSpec, periods: Float32) -> Float32:
    """Interpolated and unscaled frequencies blended by a ramp over the dimensions (YaRN, section 3.2)."""
    low = _dimension_turning(rope.beta_fast, rope)
    high = _dimension_turning(rope.beta_slow, rope)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    if low == high:
        high += 0.001
    dimensions = np.arange(rope.rotary_dim // 2, dtype=np.float32)
    ramp = np.clip((dimensions - np.float32(low)) / np.float32(high - low), np.float32(0), np.float32(1))
    unscaled = np.float32(1) - ramp
    one = np.float32(1)
    interpolated = one / (np.float32(rope.factor) * periods)
    blended: Float32 = interpolated * (one - unscaled) + (one / periods) * unscaled
    return blended


def _dimension_turning(turns: float, rope: RopeSpec) -> float:
    """The (fractional) dimension that turns that often within the original context."""
    context = rope.original_max_position
    return (rope.rotary_dim * math.log(context / (turns * 2 * math.pi))) / (2 * math.log(rope.base))
