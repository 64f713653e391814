"""The tensors that an engine hands to an attention backend on a GPU."""

from __future__ import annotations

from typing import Any

import torch

from cleave.errors import AttentionError
from cleave.kvcache.spec import AttentionSpec


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
