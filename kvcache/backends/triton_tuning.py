"""Block sizes of the GPU kernels: chosen by shape alone, from figures measured once."""

from __future__ import annotations

from dataclasses import dataclass

from cleave.kvcache.spec import AttentionSpec

_FLOAT32 = 4
"""Bytes of a value for which the tensor cores have no exact product: small blocks, for tests."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Query rows and keys of a tile, warps that share it, and loads of keys in flight."""

    rows: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class Tuning:
    """The blocks of one layer's kernels."""

    dims: int
    """head_dim, padded to a power of two."""
    append: Blocks
    decode: Blocks
    prefill: Blocks
    programs: int
    """Programs of the decode kernel that share a small batch."""
    shares: int
    """Programs of the append kernel that share the heads of a row."""
    fold: int
    """Records that the decode kernel adds up at once."""


def tune(spec: AttentionSpec, item_bytes: int, processors: int) -> Tuning:
    """Blocks for a GPU with `processors` multiprocessors and a cache of `item_bytes` a value."""
    dims = max(16, power_of_two(spec.head_dim))
    group = spec.heads // spec.kv_heads
    rows = max(16, power_of_two(group))
    wide = dims * item_bytes
    if item_bytes == _FLOAT32:
        decode, prefill = Blocks(rows, 16, 4, 2), Blocks(16, 16, 4, 2)
    else:
        decode = Blocks(rows, 64 if wide <= 256 else 32, 4, 4)
        prefill = Blocks(128, 64, 4 if dims <= 64 else 8, 3 if wide <= 256 else 2)
    prefill = Blocks(max(prefill.rows, rows), prefill.keys, prefill.warps, prefill.stages)
    return Tuning(dims, Blocks(16, 1, 4, 1), decode, prefill, 4 * processors, min(8, spec.kv_heads), 32)


def power_of_two(value: int) -> int:
    """The smallest power of two that is not below `value`."""
    return 1 << (value - 1).bit_length()
