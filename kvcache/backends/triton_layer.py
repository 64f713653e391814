"""One layer of an attention backend for GPUs: its pages, and what its kernels are compiled for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cleave.kvcache.backend import CacheShape
from cleave.kvcache.backends.triton_decode import decode_kernel
from cleave.kvcache.backends.triton_kernel import Kernel
from cleave.kvcache.backends.triton_prefill import append_kernel, prefill_kernel
from cleave.kvcache.backends.triton_tuning import Blocks, Tuning, power_of_two
from cleave.kvcache.rope import rope_tables
from cleave.kvcache.spec import AttentionSpec, RopeSpec

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Layer:
    """What run() needs of one layer."""

    spec: AttentionSpec
    kind: int
    """Which of the backend's kinds it is of."""
    tuning: Tuning
    keys: Tensor
    """[num_pages, kv_heads, page_size, head_dim], after RoPE; so are the values, which have none."""
    values: Tensor
    cos: Tensor
    """[max_position, rotary_dim] float32, and so is sin; of one number in a layer without RoPE."""
    sin: Tensor
    append: Kernel
    """RoPE and append of k and v."""
    append_turned: Kernel
    """The same, and RoPE of q."""
    decode: Kernel
    prefill: Kernel


def make_layer(
    shape: CacheShape,
    spec: AttentionSpec,
    kind: int,
    tuning: Tuning,
    dtype: torch.dtype,
    cos: Tensor,
    sin: Tensor,
    *,
    deterministic: bool,
) -> Layer:
    """Allocate the pages of a layer, on the device of its tables. Raises torch.OutOfMemoryError."""
    pages = (shape.num_pages, spec.kv_heads, shape.page_size, spec.head_dim)
    group = spec.heads // spec.kv_heads
    cache = {
        "KV_HEADS": spec.kv_heads,
        "GROUP": group,
        "D": spec.head_dim,
        "PAGE": shape.page_size,
        "BLOCK_D": tuning.dims,
    }
    rope = {"ROTARY": 0 if spec.rope is None else spec.rope.rotary_dim}
    attention = cache | {"WIDEN": cos.device.type == "cpu"} | _scores(spec)
    fold_rows = power_of_two(group)
    fold = {"FOLD": max(1, tuning.fold // fold_rows), "FOLD_ROWS": fold_rows}
    append, decode, prefill = tuning.append, tuning.decode, tuning.prefill
    appending = cache | rope | {"BLOCK_M": append.rows, "SHARES": tuning.shares, "num_warps": append.warps}
    return Layer(
        spec,
        kind,
        tuning,
        torch.zeros(pages, dtype=dtype, device=cos.device),
        torch.zeros(pages, dtype=dtype, device=cos.device),
        cos,
        sin,
        Kernel(append_kernel, appending | {"QUERIES": False}),
        Kernel(append_kernel, appending | {"QUERIES": True}),
        Kernel(decode_kernel, attention | rope | fold | _blocks(decode) | {"MANY": deterministic}),
        Kernel(
            prefill_kernel,
            attention | rope | {"WINDOW": spec.window or 0, "ALL_MASKED": deterministic} | _blocks(prefill),
        ),
    )


def full_tables(rope: RopeSpec | None, max_position: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of both halves of each position: [max_position, rotary_dim] float32."""
    if rope is None:
        return torch.zeros(1, device=device), torch.zeros(1, device=device)
    cos, sin = (torch.from_numpy(np.hstack((x, x))).to(device) for x in rope_tables(rope, max_position))
    return cos, sin


def _scores(spec: AttentionSpec) -> dict[str, Any]:
    """SCALE, SOFTCAP and UNIT of the kernels. Only a positive factor can wait until after the maximum."""
    to_base_2 = math.log2(math.e)
    if spec.softcap is not None:
        return {"SCALE": spec.scale / spec.softcap, "SOFTCAP": True, "UNIT": spec.softcap * to_base_2}
    if spec.scale > 0:
        return {"SCALE": 1.0, "SOFTCAP": False, "UNIT": spec.scale * to_base_2}
    return {"SCALE": spec.scale * to_base_2, "SOFTCAP": False, "UNIT": 1.0}


def _blocks(blocks: Blocks) -> dict[str, Any]:
    registers = {} if blocks.registers is None else {"maxnreg": blocks.registers}
    return registers | {
        "BLOCK_M": blocks.rows,
        "BLOCK_N": blocks.keys,
        "STAGES": blocks.stages,
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }
