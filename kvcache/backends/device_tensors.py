"""What the attention backends for GPUs check: how they are made, steps, and the tensors of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cleave.errors import AttentionError
from cleave.kvcache.backend import CacheShape
from cleave.kvcache.spec import AttentionSpec
from cleave.kvcache.step import StepPlan

_MOST_CHUNKS = 512
"""Of a step, where nobody says how many."""


def checked_dtype(name: str, allowed: Sequence[str]) -> torch.dtype:
    """The dtype of the KV cache. Raises AttentionError for one that is not allowed."""
    if name not in allowed:
        raise AttentionError(f"dtype {name!r} is not supported; there are: {', '.join(allowed)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def checked_sequences(asked: int | None, shape: CacheShape) -> int:
    """Most chunks of a step; None: 512, or max_tokens. Raises AttentionError for a number that cannot be."""
    most = min(shape.max_tokens, _MOST_CHUNKS) if asked is None else asked
    if not 0 < most <= shape.max_tokens:
        raise AttentionError(
            f"max_sequences is {most}; it must be between 1 and max_tokens, {shape.max_tokens}"
        )
    return most


def no_room(shape: CacheShape, dtype: str) -> AttentionError:
    """What is said where the GPU has no memory for the pages."""
    return AttentionError(
        f"the GPU has no room for {shape.num_pages} KV pages of {len(shape.specs)} layers in "
        f"{dtype}; lower num_pages (kv_cache_bytes)"
    )


def check_chunks(step: StepPlan, most: int) -> None:
    """Raise AttentionError for a step of more chunks than that."""
    if step.chunks > most:
        raise AttentionError(f"the step has {step.chunks} chunks; max_sequences allows {most}: split it")


def check_tensors(
    spec: AttentionSpec, rows: int, dtype: torch.dtype, device: torch.device, q: Any, k: Any, v: Any, out: Any
) -> None:
    """Raise AttentionError unless they fit a step of `rows` rows; they may have more, all as many as q.

    Rows of q, k and v need not touch; those of out do.
    """
    count = len(q)
    for name, tensor, columns in (
        ("q", q, spec.q_size),
        ("k", k, spec.kv_size),
        ("v", v, spec.kv_size),
        ("out", out, spec.q_size),
    ):
        if (
            tensor.shape == (count, columns)
            and count >= rows
            and tensor.dtype == dtype
            and tensor.device.type == device.type
            and tensor.stride(1) == 1
        ):
            continue
        raise AttentionError(
            f"{name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}; it must be {dtype} "
            f"on {device}, of {rows} rows or more, as many as q, and {columns} columns"
        )
    if not out.is_contiguous():
        raise AttentionError("out is not contiguous; it must be, since its rows are written as one block")
