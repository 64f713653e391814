"""FlashInfer's plans for the layers that have one attention spec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from flashinfer import BatchDecodeWithPagedKVCacheWrapper, BatchPrefillWithPagedKVCacheWrapper

from cleave.kvcache.spec import AttentionSpec

Tensor = torch.Tensor
_LAYOUT = "HND"
"""FlashInfer's name of pages [num_pages, kv_heads, page_size, head_dim]."""
_VECTOR_HEADS = 2
"""Query heads of a KV head for which the kernel without tensor cores is the faster one, at most."""


@dataclass(frozen=True, slots=True)
class StepPages:
    """The pages of the chunks of a step, one chunk after the other."""

    first: Tensor
    """[chunks + 1] int32 on the host: where the pages of each chunk begin."""
    numbers: Tensor
    """[pages] int32 on the device."""
    filled: Tensor
    """[chunks] int32 on the host: tokens in each chunk's last page, those of the step included."""


class Plans:
    """One wrapper for steps with chunks, and one for each number of requests that decode steps are padded to.

    Those of decode steps read from buffers that stay where they are, so that a captured step can be
    replayed after another plan.
    """

    def __init__(
        self, spec: AttentionSpec, page_size: int, dtype: torch.dtype, workspace: Tensor, listed: int
    ) -> None:
        """`listed` bounds the pages of a step. Raises torch.OutOfMemoryError where there is no room."""
        self._spec, self._page_size, self._dtype = spec, page_size, dtype
        self._workspace = workspace
        self._numbers = torch.zeros(listed, dtype=torch.int32, device=workspace.device)
        self._prefill: Any = BatchPrefillWithPagedKVCacheWrapper(workspace, _LAYOUT)
        self._decode: dict[int, Any] = {}

    def wrapper(self, padded: int | None) -> Any:
        """What runs a decode step of so many requests, or, for None, any other step."""
        if padded is None:
            return self._prefill
        if padded not in self._decode:
            device = self._workspace.device
            self._decode[padded] = BatchDecodeWithPagedKVCacheWrapper(
                self._workspace,
                _LAYOUT,
                use_cuda_graph=True,
                use_tensor_cores=self._spec.heads // self._spec.kv_heads > _VECTOR_HEADS,
                paged_kv_indptr_buffer=torch.zeros(padded + 1, dtype=torch.int32, device=device),
                paged_kv_indices_buffer=self._numbers,
                paged_kv_last_page_len_buffer=torch.zeros(padded, dtype=torch.int32, device=device),
            )
        return self._decode[padded]

    def plan(self, pages: StepPages, rows: Tensor | None, padded: int | None) -> None:
        """Divide a step among programs; `rows` [chunks + 1] int32 on the host, for steps with chunks."""
        spec = self._spec
        shape = (spec.heads, spec.kv_heads, spec.head_dim, self._page_size)
        options: dict[str, Any] = {
            "sm_scale": spec.scale,
            "window_left": -1 if spec.window is None else spec.window - 1,
            "logits_soft_cap": spec.softcap or 0.0,
            "q_data_type": self._dtype,
            "kv_data_type": self._dtype,
        }
        where = (pages.first, pages.numbers, pages.filled)
        if padded is None:
            self._prefill.plan(rows, *where, *shape, causal=True, **options)
        else:
            self.wrapper(padded).plan(*where, *shape, **options)
