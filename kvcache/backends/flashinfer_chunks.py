"""The chunks of a step that have more than one token: RoPE and append, and FlashInfer's attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from flashinfer import BatchPrefillWithPagedKVCacheWrapper

from cleave.kvcache.backend import CacheShape
from cleave.kvcache.backends.triton_buffer import Sections, aligned
from cleave.kvcache.backends.triton_chunks import Bools, Int64, Rows
from cleave.kvcache.backends.triton_layer import Layer
from cleave.kvcache.spec import AttentionSpec
from cleave.kvcache.step import StepPlan

Tensor = torch.Tensor
_LAYOUT = "HND"
"""FlashInfer's name of pages [num_pages, kv_heads, page_size, head_dim]."""
_WORKSPACE = 128 << 20
"""Bytes in which programs that share a row leave their sums."""


@dataclass(frozen=True, slots=True)
class _Planned:
    rows: Rows
    attended: slice
    """The rows that FlashInfer attends to."""


class FlashInferChunks:
    """Attention of chunks by FlashInfer, which wants their rows one behind the other.

    So a chunk of one token that stands between longer ones is attended to as they are.
    """

    def __init__(self, shape: CacheShape, dtype: torch.dtype, layers: Sequence[Layer], kernels: str) -> None:
        """`kernels`: FlashInfer's name of them. Raises torch.OutOfMemoryError where there is no room."""
        device = layers[0].keys.device
        self._page_size, self._dtype, self._layers = shape.page_size, dtype, layers
        workspace = torch.zeros(_WORKSPACE, dtype=torch.uint8, device=device)
        self._wrappers: dict[AttentionSpec, Any] = {}
        for spec in shape.specs:
            if replace(spec, rope=None) not in self._wrappers:
                wrapper = BatchPrefillWithPagedKVCacheWrapper(workspace, _LAYOUT, backend=kernels)
                self._wrappers[replace(spec, rope=None)] = wrapper
        self._of_layer = [self._wrappers[replace(spec, rope=None)] for spec in shape.specs]
        widest = max(spec.q_size for spec in shape.specs)
        self._turned = torch.empty(shape.max_tokens * widest, dtype=dtype, device=device)
        self._copied = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @staticmethod
    def room(shape: CacheShape, chunks: int) -> int:
        """Numbers of a step, at most; sequences may share pages, which are then listed more than once."""
        return Rows.room(shape.max_tokens) + aligned(chunks * -(-shape.max_position // shape.page_size))

    def taken(self, counts: Int64) -> Bools:
        """The first one of more than one token, the last one, and all between them."""
        long = np.flatnonzero(counts > 1)
        taken = np.zeros(len(counts), np.bool_)
        if len(long):
            taken[long[0] : long[-1] + 1] = True
        return taken

    def plan(self, step: StepPlan, taken: Bools, tables: Int64, send: Sections) -> _Planned:
        """Let FlashInfer divide them among programs, once for each kind of layer."""
        # A wrapper has one pinned buffer: its last copy must have been made. That of the step before is,
        # once the step before that has ended.
        if self._copied is not None:
            self._copied.synchronize()
        rows = Rows.of(step, taken, send)
        chunks = np.flatnonzero(taken)
        offsets = step.offsets[chunks[0] : chunks[-1] + 2]
        lengths = step.starts[chunks] + np.diff(offsets)
        held = -(-lengths // self._page_size)
        table = step.page_table[chunks]
        numbers = send.add(table[np.arange(table.shape[1]) < held[:, None]])
        where = (
            _tensor(offsets - offsets[0]),
            _tensor(np.concatenate(([0], np.cumsum(held)))),
            numbers,
            _tensor((lengths - 1) % self._page_size + 1),
        )
        for spec, wrapper in self._wrappers.items():
            wrapper.plan(
                *where,
                spec.heads,
                spec.kv_heads,
                spec.head_dim,
                self._page_size,
                causal=True,
                sm_scale=spec.scale,
                window_left=-1 if spec.window is None else spec.window - 1,
                logits_soft_cap=spec.softcap or 0.0,
                q_data_type=self._dtype,
                kv_data_type=self._dtype,
            )
        if self._copied is not None:
            self._copied.record()
        return _Planned(rows, slice(int(offsets[0]), int(offsets[-1])))

    def run(self, planned: _Planned, layer: int, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
        """Launch RoPE and append, and then attention."""
        own, rows = self._layers[layer], planned.attended
        spec = own.spec
        turned = self._turned[: planned.rows.count * spec.q_size].view(-1, spec.q_size)
        planned.rows.append(own, q, k, v, turned)
        if spec.rope is None:
            turned[rows].copy_(q[rows])
        heads = (-1, spec.heads, spec.head_dim)
        self._of_layer[layer].run(turned[rows].view(heads), (own.keys, own.values), out=out[rows].view(heads))


def _tensor(values: Int64) -> Tensor:
    return torch.from_numpy(values.astype(np.int32))
