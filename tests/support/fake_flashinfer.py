"""FlashInfer where there is no GPU: its wrapper over torch, with the rules that the real one enforces.

`plan` copies what it is given but for the pages' numbers, which `run` reads where they are, as there: so a
plan that comes too late, or numbers that are not there by then, give wrong results. What the real one
compiles when it is first used `COMPILED` has here, and `flashinfer.jit` tells it as there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch

Tensor = torch.Tensor
HEAD_DIMS = (64, 128, 256)
COMPILED: set[str] = set()
"""The kernels that are."""
SHIPPED: set[str] = set()
"""Those of the package flashinfer-jit-cache."""


@dataclass
class JitSpec:
    """What one kernel is compiled from."""

    name: str

    @property
    def is_aot(self) -> bool:
        return self.name in SHIPPED

    @property
    def is_compiled(self) -> bool:
        return self.is_aot or self.name in COMPILED

    def build_and_load(self) -> None:
        COMPILED.add(self.name)


def gen_batch_prefill_module(
    backend: str,
    dtype_q: torch.dtype,
    dtype_kv: torch.dtype,
    dtype_o: torch.dtype,
    dtype_idx: torch.dtype,
    head_dim_qk: int,
    head_dim_vo: int,
    pos_encoding_mode: int,
    use_sliding_window: bool,
    use_logits_soft_cap: bool,
    use_fp16_qk_reduction: bool,
) -> JitSpec:
    given = tuple(locals().values())
    if backend not in ("fa2", "fa3"):
        raise ValueError(f"Invalid backend: {backend}")
    return JitSpec(" ".join(("prefill", *map(str, given))))


def gen_page_module() -> JitSpec:
    return JitSpec("page")


def modules() -> dict[str, ModuleType]:
    """What is imported of it, by name, but for itself."""
    jit, page = ModuleType("flashinfer.jit"), ModuleType("flashinfer.jit.page")
    jit.__dict__["gen_batch_prefill_module"] = gen_batch_prefill_module
    page.__dict__["gen_page_module"] = gen_page_module
    return {"flashinfer.jit": jit, "flashinfer.jit.page": page}


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
    backend: str = field(default="auto", kw_only=True)

    def __post_init__(self) -> None:
        if self.kv_layout not in ("NHD", "HND"):
            raise KeyError(f"Invalid kv_layout {self.kv_layout}")
        if self.backend not in ("auto", "fa2", "fa3"):
            raise KeyError(f"Invalid backend {self.backend}")
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
        chosen = "fa2" if self.backend == "auto" else self.backend  # as where there is no Hopper GPU
        dtypes = (self.dtype, self.dtype, self.dtype, qo_indptr.dtype)
        window, softcap = options["window_left"] >= 0, options["logits_soft_cap"] > 0
        kernel = gen_batch_prefill_module(chosen, *dtypes, head_dim, head_dim, 0, window, softcap, False)
        kernel.build_and_load()
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
        if self.backend == "fa3":
            gen_page_module().build_and_load()
        for request in range(len(last)):
            pages = self.numbers[int(first[request]) : int(first[request + 1])].long()
            tokens = (len(pages) - 1) * page_size + int(last[request])
            k, v = (x[pages].transpose(1, 2).reshape(-1, kv_heads, head_dim)[:tokens] for x in cache)
            of = slice(int(rows[request]), int(rows[request + 1]))
            out[of] = attention(q[of], k, v, **self.options)
