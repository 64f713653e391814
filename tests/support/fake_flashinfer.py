"""FlashInfer where there is no GPU: its wrapper over torch, with the rules that the real one enforces.

`plan` copies what it is given but for the pages' numbers, which `run` reads where they are, as there: so a
plan that comes too late, or numbers that are not there by then, give wrong results.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

Tensor = torch.Tensor
HEAD_DIMS = (64, 128, 256)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    sm_scale: float,
    window_left: int,
    logits_soft_cap: float,
    causal: bool,
) -> Tensor:
    """q [rows, heads, dim], the last ones of k and v [tokens, kv_heads, dim]; like q, in float32."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.float().repeat_interleave(group, 1) for x in (k, v))
    scores = torch.einsum("rhd,nhd->hrn", q.float(), k) * sm_scale
    if logits_soft_cap > 0:
        scores = logits_soft_cap * torch.tanh(scores / logits_soft_cap)
    at = torch.arange(len(q))[:, None] + len(k) - len(q)
    n = torch.arange(len(k))
    hidden = torch.zeros(len(q), len(k), dtype=torch.bool)
    if causal:
        hidden |= n > at
    if window_left >= 0:
        hidden |= n < at - window_left
    return torch.einsum("hrn,nhd->rhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


@dataclass
class BatchPrefillWithPagedKVCacheWrapper:
    """For chunks of any number of tokens."""

    float_workspace_buffer: Tensor
    kv_layout: str = "NHD"
    planned: tuple[Tensor, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.kv_layout not in ("NHD", "HND"):
            raise KeyError(f"Invalid kv_layout {self.kv_layout}")
        if self.float_workspace_buffer.dtype != torch.uint8:
            raise ValueError("the workspace is uint8")

    def plan(
        self,
        qo_indptr: Tensor,
        paged_kv_indptr: Tensor,
        paged_kv_indices: Tensor,
        paged_kv_last_page_len: Tensor,
        heads: int,
        kv_heads: int,
        head_dim: int,
        page_size: int,
        *,
        causal: bool = False,
        **options: Any,
    ) -> None:
        copied = (qo_indptr, paged_kv_indptr, paged_kv_last_page_len)
        if any(tensor.dtype != torch.int32 for tensor in (*copied, paged_kv_indices)):
            raise ValueError("must have dtype torch.int32")
        if heads % kv_heads or head_dim not in HEAD_DIMS:
            raise ValueError(f"there is no kernel for {heads} heads, {kv_heads} KV heads of {head_dim}")
        if not ((paged_kv_last_page_len >= 1) & (paged_kv_last_page_len <= page_size)).all():
            raise ValueError("a last page holds 1 to page_size tokens")
        if int(qo_indptr[0]) or int(paged_kv_indptr[0]) or int(paged_kv_indptr[-1]) != len(paged_kv_indices):
            raise ValueError("rows and pages are not those of the requests")
        kinds = {options.pop("q_data_type"), options.pop("kv_data_type")}
        if len(kinds) != 1 or not kinds <= {torch.float16, torch.bfloat16}:
            raise ValueError(f"there is no kernel for {kinds}")
        self.dtype = kinds.pop()
        self.shape = (heads, kv_heads, head_dim, page_size)
        self.options = options | {"causal": causal}
        self.planned = tuple(map(torch.clone, copied))
        self.numbers = paged_kv_indices

    def run(self, q: Tensor, cache: tuple[Tensor, Tensor], *, out: Tensor) -> None:
        rows, first, last = self.planned
        heads, kv_heads, head_dim, page_size = self.shape
        if q.shape != (int(rows[-1]), heads, head_dim) or q.dtype != self.dtype:
            raise ValueError(f"q is {q.dtype} {tuple(q.shape)}; the plan has {int(rows[-1])} rows")
        if out.shape != q.shape or out.dtype != q.dtype:
            raise ValueError("out is not like q")
        if out.untyped_storage().data_ptr() == q.untyped_storage().data_ptr():
            raise ValueError("out lies over q")
        for x in cache:
            if x.shape[1:] != (kv_heads, page_size, head_dim) or x.dtype != self.dtype:
                raise ValueError("the pages are not those of the plan")
        for request in range(len(last)):
            pages = self.numbers[int(first[request]) : int(first[request + 1])].long()
            tokens = (len(pages) - 1) * page_size + int(last[request])
            k, v = (x[pages].transpose(1, 2).reshape(-1, kv_heads, head_dim)[:tokens] for x in cache)
            of = slice(int(rows[request]), int(rows[request + 1]))
            out[of] = attention(q[of], k, v, **self.options)
