"""Block sizes of the GPU kernels: chosen by shape alone, from figures measured once."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cleave.kvcache.spec import AttentionSpec

_FLOAT32 = 4
"""Bytes of a value for which the tensor cores have no exact product: small blocks, for tests."""
_WIDE_PREFILL = 163840
"""Bytes of shared memory that the prefill kernel takes at head_dim 256."""
_TWO_PREFILLS = 2 * 98304
"""Those of two of its programs at head_dim 128, with 64 keys a block."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Query rows and keys of a tile, warps that share it, and loads of keys in flight."""

    rows: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None
    """Of a thread, at most; None: as the compiler likes."""


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


def tune(spec: AttentionSpec, item_bytes: int, processors: int, shared_memory: int) -> Tuning:
    """Blocks for a GPU with `processors` multiprocessors, each with `shared_memory` bytes for one program,
    and a cache of `item_bytes` a value.

    Chosen on an H200 at head_dim 128 (docs/gpu_attention.md has the table); other sizes keep about the
    same bytes in flight and no more registers than there are.
    """
    dims = max(16, power_of_two(spec.head_dim))
    rows = max(16, power_of_two(spec.heads // spec.kv_heads))
    if item_bytes == _FLOAT32:
        decode, prefill = Blocks(rows, 16, 4, 2), Blocks(max(16, rows), 16, 4, 2)
    elif dims <= 64:
        decode, prefill = Blocks(rows, 64, 2, 4), Blocks(128, 64, 4, 3)
    elif dims <= 128:
        decode, prefill = Blocks(rows, 32, 2, 4), Blocks(128, 32, 4, 3)
        if shared_memory >= _TWO_PREFILLS:
            # With so many registers a multiprocessor has two programs, and one computes while one waits.
            prefill = Blocks(128, 64, 8, 2, registers=128)
    else:
        decode, prefill = Blocks(rows, 32, 4, 3), Blocks(128, 32, 8, 3)
        if shared_memory < _WIDE_PREFILL:
            prefill = Blocks(64, 32, 4, 2)
    if rows > 16:
        decode = replace(decode, warps=4)
    return Tuning(
        dims=dims,
        append=Blocks(8, 1, 4, 1),
        decode=decode,
        prefill=replace(prefill, rows=max(prefill.rows, rows)),
        programs=4 * processors,
        shares=min(8, spec.kv_heads),
        fold=32,
    )


def power_of_two(value: int) -> int:
    """The smallest power of two that is not below `value`."""
    return 1 << (value - 1).bit_length()
