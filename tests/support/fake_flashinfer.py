"""FlashInfer where there is no GPU: its two wrappers over torch, with the rules that the real ones enforce.

What `plan` is told lies in buffers that `run` reads, as there, so that a plan which comes too late or goes
to the wrong buffer gives wrong results.
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
class Wrapper:
    """What both wrappers have."""

    float_workspace_buffer: Tensor
    kv_layout: str = "NHD"

    def __post_init__(self) -> None:
        if self.kv_layout not in ("NHD", "HND"):
            raise KeyError(f"Invalid kv_layout {self.kv_layout}")
        if self.float_workspace_buffer.dtype != torch.uint8:
            raise ValueError("the workspace is uint8")
        self.options: dict[str, Any] = {}

    def keep(
        self, heads: int, kv_heads: int, head_dim: int, page_size: int, last: Tensor, options: dict[str, Any]
    ) -> None:
        if heads % kv_heads or head_dim not in HEAD_DIMS:
            raise ValueError(f"there is no kernel for {heads} heads, {kv_heads} KV heads of {head_dim}")
        if not ((last >= 1) & (last <= page_size)).all():
            raise ValueError("a last page holds 1 to page_size tokens")
        kinds = {options.pop("q_data_type"), options.pop("kv_data_type")}
        if len(kinds) != 1 or not kinds <= {torch.float16, torch.bfloat16}:
            raise ValueError(f"there is no kernel for {kinds}")
        self.dtype = kinds.pop()
        self.shape = (heads, kv_heads, head_dim, page_size)
        self.options = options

    def sequences(self, cache: tuple[Tensor, Tensor], first: Tensor, numbers: Tensor, last: Tensor) -> Any:
        """k and v [tokens, kv_heads, dim] of each request."""
        _, kv_heads, head_dim, page_size = self.shape
        for x in cache:
            if x.shape[1:] != (kv_heads, page_size, head_dim) or x.dtype != self.dtype:
                raise ValueError("the pages are not those of the plan")
        for request in range(len(last)):
            pages = numbers[int(first[request]) : int(first[request + 1])].long()
            tokens = (len(pages) - 1) * page_size + int(last[request])
            yield tuple(x[pages].transpose(1, 2).reshape(-1, kv_heads, head_dim)[:tokens] for x in cache)

    def check(self, q: Tensor, out: Tensor, rows: int) -> None:
        if q.shape != (rows, self.shape[0], self.shape[2]) or q.dtype != self.dtype:
            raise ValueError(f"q is {q.dtype} {tuple(q.shape)}; the plan has {rows} rows")
        if out.shape != q.shape or out.dtype != q.dtype:
            raise ValueError("out is not like q")
        if out.untyped_storage().data_ptr() == q.untyped_storage().data_ptr():
            raise ValueError("out lies over q")


@dataclass
class BatchDecodeWithPagedKVCacheWrapper(Wrapper):
    """For one token of each request; in graph mode of as many requests as the buffers have room for."""

    use_cuda_graph: bool = False
    use_tensor_cores: bool = False
    paged_kv_indptr_buffer: Tensor | None = None
    paged_kv_indices_buffer: Tensor | None = None
    paged_kv_last_page_len_buffer: Tensor | None = None

    def plan(
        self, indptr: Tensor, indices: Tensor, last_page_len: Tensor, *shape: int, **options: Any
    ) -> None:
        first, numbers, last = self.buffers()
        for tensor in (indptr, indices, last_page_len):
            if tensor.dtype != torch.int32:
                raise ValueError(f"must have dtype torch.int32, got {tensor.dtype}")
        if len(last_page_len) != len(last) or len(indptr) != len(first):
            raise ValueError("The batch size should be fixed in cudagraph mode")
        if len(indices) > len(numbers):
            raise ValueError("The size of indices should be less than or equal to the allocated buffer")
        group = shape[0] // shape[1]
        if not self.use_tensor_cores and group not in (1, 2, 3, 4, 8):
            raise ValueError(f"Unsupported group_size: {group}")
        first.copy_(indptr)
        last.copy_(last_page_len)
        numbers[: len(indices)].copy_(indices)
        self.keep(*shape, last_page_len, options)

    def run(self, q: Tensor, cache: tuple[Tensor, Tensor], *, out: Tensor) -> None:
        first, numbers, last = self.buffers()
        self.check(q, out, len(last))
        for request, (k, v) in enumerate(self.sequences(cache, first, numbers, last)):
            out[request] = attention(q[request : request + 1], k, v, causal=True, **self.options)[0]

    def buffers(self) -> tuple[Tensor, Tensor, Tensor]:
        given = (
            self.paged_kv_indptr_buffer, self.paged_kv_indices_buffer, self.paged_kv_last_page_len_buffer
        )  # fmt: skip
        if not self.use_cuda_graph or not all(map(torch.is_tensor, given)):
            raise ValueError("paged_kv_indptr_buffer should be a torch.Tensor in cudagraph mode")
        if len(given[0]) != len(given[2]) + 1:
            raise ValueError("The size of paged_kv_indptr_buffer should be batch_size + 1")
        return given


@dataclass
class BatchPrefillWithPagedKVCacheWrapper(Wrapper):
    """For chunks of any number of tokens."""

    planned: tuple[Tensor, ...] = field(default=())

    def plan(
        self,
        qo_indptr: Tensor,
        paged_kv_indptr: Tensor,
        paged_kv_indices: Tensor,
        paged_kv_last_page_len: Tensor,
        *shape: int,
        causal: bool = False,
        **options: Any,
    ) -> None:
        planned = (qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len)
        if any(tensor.dtype != torch.int32 for tensor in planned):
            raise ValueError("must have dtype torch.int32")
        self.planned = tuple(map(torch.clone, planned))
        self.keep(*shape, paged_kv_last_page_len, options | {"causal": causal})

    def run(self, q: Tensor, cache: tuple[Tensor, Tensor], *, out: Tensor) -> None:
        rows, *pages = self.planned
        self.check(q, out, int(rows[-1]))
        for request, (k, v) in enumerate(self.sequences(cache, *pages)):
            of = slice(int(rows[request]), int(rows[request + 1]))
            out[of] = attention(q[of], k, v, **self.options)
