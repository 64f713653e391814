"""Decode steps by FlashInfer's own kernel over the pages of the backend `triton`, to be compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from attention_points import PAGE, Point, backend
from flashinfer import BatchDecodeWithPagedKVCacheWrapper

from cleave.kvcache.backends.triton_buffer import Sections, StepBuffer, aligned
from cleave.kvcache.backends.triton_chunks import Rows
from cleave.kvcache.step import StepPlan

_VECTOR_HEADS = 2
"""Query heads of a KV head for which the kernel without tensor cores is the faster one, at most."""
_WORKSPACE = 256 << 20


class FlashInferDecode:
    """One launch of the append kernel, which rotates q too, and one of FlashInfer's attention a layer."""

    def __init__(self, point: Point, layers: int) -> None:
        """All sequences of `point` have a row in every step."""
        self._own = backend(point, layers)
        self._layers = self._own._layers
        self._spec, self._dtype = point.spec, point.dtype
        rows = len(point.lengths)
        pages = sum(-(-length // PAGE) for length in point.lengths)
        self._buffer = StepBuffer(Rows.room(rows) + aligned(pages), torch.device("cuda"))
        numbers = {"dtype": torch.int32, "device": "cuda"}
        self._wrapper = BatchDecodeWithPagedKVCacheWrapper(
            torch.zeros(_WORKSPACE, dtype=torch.uint8, device="cuda"),
            "HND",
            use_cuda_graph=True,
            use_tensor_cores=point.spec.heads // point.spec.kv_heads > _VECTOR_HEADS,
            paged_kv_indptr_buffer=torch.zeros(rows + 1, **numbers),
            paged_kv_indices_buffer=torch.zeros(pages, **numbers),
            paged_kv_last_page_len_buffer=torch.zeros(rows, **numbers),
        )
        self._turned = torch.zeros(rows, point.spec.q_size, dtype=point.dtype, device="cuda")

    def plan(self, step: StepPlan) -> None:
        """Send the numbers of the step, and let FlashInfer divide it."""
        send = Sections(self._buffer.begin(), self._buffer.device, 0)
        self._rows = Rows.of(step, np.ones(step.chunks, np.bool_), send)
        lengths = step.starts + 1
        held = -(-lengths // PAGE)
        pages = send.add(step.page_table[np.arange(step.page_table.shape[1]) < held[:, None]])
        self._buffer.send(send.used)
        first, filled = np.concatenate(([0], np.cumsum(held))), (lengths - 1) % PAGE + 1
        self._wrapper.plan(
            torch.from_numpy(first.astype(np.int32)),
            pages,
            torch.from_numpy(filled.astype(np.int32)),
            self._spec.heads,
            self._spec.kv_heads,
            self._spec.head_dim,
            PAGE,
            sm_scale=self._spec.scale,
            q_data_type=self._dtype,
            kv_data_type=self._dtype,
        )

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        """One layer of the step."""
        own = self._layers[layer]
        self._rows.append(own, q, k, v, self._turned)
        heads = (-1, self._spec.heads, self._spec.head_dim)
        self._wrapper.run(self._turned.view(heads), (own.keys, own.values), out=out.view(heads))

    def close(self) -> None:
        """Give the pages back."""
        self._layers = []
        self._own.close()
