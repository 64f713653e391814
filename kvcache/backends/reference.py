"""The reference attention backend: plain torch, sequence by sequence, made to be read."""

from __future__ import annotations

from typing import Any

import numpy as np

from cleave.errors import AttentionError, MissingPackage
from cleave.kvcache.backend import CacheShape
from cleave.kvcache.rope import rope_tables
from cleave.kvcache.spec import AttentionSpec
from cleave.kvcache.step import StepPlan

try:
    import torch
except ImportError:
    raise MissingPackage("torch", "export", "the reference attention backend") from None

Tensor = torch.Tensor
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class ReferenceBackend:
    """Attention as the papers write it, computed in float32 whatever the dtype of the tensors.

    Takes torch tensors on `device`, or numpy arrays where the device is the CPU. The KV cache is kept
    in `dtype`, after RoPE.
    """

    def __init__(self, shape: CacheShape, *, device: str = "cpu", dtype: str = "float32") -> None:
        if dtype not in _DTYPES:
            raise AttentionError(f"dtype {dtype!r} is not supported; there are: {', '.join(_DTYPES)}")
        self._shape = shape
        self._device = torch.device(device)
        self._step: StepPlan | None = None
        self._keys = [self._pages(spec, dtype) for spec in shape.specs]
        self._values = [self._pages(spec, dtype) for spec in shape.specs]
        self._tables = {
            spec.rope: tuple(
                torch.from_numpy(table).to(self._device)
                for table in rope_tables(spec.rope, shape.max_position)
            )
            for spec in shape.specs
            if spec.rope is not None
        }

    def plan(self, step: StepPlan) -> None:
        """Keep the step; the reference prepares nothing."""
        self._step = step

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        """One layer of the planned step. Raises AttentionError where a shape does not fit."""
        if self._step is None:
            raise AttentionError("no step is planned; call plan(step) before run(layer, ...)")
        spec, step = self._shape.specs[layer], self._step
        rows = step.tokens
        queries = self._view(q, "q", rows, spec.heads, spec.head_dim).float()
        keys = self._view(k, "k", rows, spec.kv_heads, spec.head_dim).float()
        values = self._view(v, "v", rows, spec.kv_heads, spec.head_dim)
        result = self._view(out, "out", rows, spec.heads, spec.head_dim)

        queries = self._rotate(spec, queries, step.positions)
        keys = self._rotate(spec, keys, step.positions)
        self._append(self._keys[layer], keys, step.slots)
        self._append(self._values[layer], values, step.slots)
        for chunk in range(step.chunks):
            first, end = int(step.offsets[chunk]), int(step.offsets[chunk + 1])
            start = int(step.starts[chunk])
            length = start + end - first
            result[first:end] = _attend(
                spec,
                queries[first:end],
                self._history(self._keys[layer], step.page_table[chunk], length),
                self._history(self._values[layer], step.page_table[chunk], length),
                start,
            ).to(result.dtype)

    def close(self) -> None:
        """Give the pages back."""
        self._keys, self._values, self._step = [], [], None

    def _pages(self, spec: AttentionSpec, dtype: str) -> Tensor:
        tokens = self._shape.num_pages * self._shape.page_size
        return torch.zeros(tokens, spec.kv_heads, spec.head_dim, dtype=_DTYPES[dtype], device=self._device)

    def _view(self, array: Any, name: str, rows: int, heads: int, head_dim: int) -> Tensor:
        tensor = torch.from_numpy(array) if isinstance(array, np.ndarray) else array
        if tuple(tensor.shape) != (rows, heads * head_dim) or tensor.stride(1) != 1:
            raise AttentionError(
                f"{name} is {list(tensor.shape)}; it must be [{rows}, {heads * head_dim}], rows without gaps"
            )
        view: Tensor = tensor.view(rows, heads, head_dim)
        return view

    def _rotate(self, spec: AttentionSpec, x: Tensor, positions: np.ndarray[Any, Any]) -> Tensor:
        """RoPE of x [tokens, heads, head_dim] in the halves layout; dimensions past rotary_dim pass."""
        if spec.rope is None:
            return x
        index = torch.from_numpy(positions).to(self._device)
        cos, sin = (table[index][:, None] for table in self._tables[spec.rope])
        half = spec.rope.rotary_dim // 2
        first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)

    def _append(self, pages: Tensor, x: Tensor, slots: np.ndarray[Any, Any]) -> None:
        pages[torch.from_numpy(slots).to(self._device)] = x.to(pages.dtype)

    def _history(self, pages: Tensor, table: np.ndarray[Any, Any], length: int) -> Tensor:
        """Keys or values of one sequence's tokens in order: [length, kv_heads, head_dim] float32."""
        size = self._shape.page_size
        used = torch.from_numpy(table[: -(-length // size)].astype(np.int64)).to(self._device)
        return pages.view(-1, size, *pages.shape[1:])[used].flatten(0, 1)[:length].float()


def _attend(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, start: int) -> Tensor:
    """q [rows, heads, d] at positions start.. over k, v [length, kv_heads, d]; [rows, heads, d]."""
    group = spec.heads // spec.kv_heads
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * spec.scale
    if spec.softcap is not None:
        scores = torch.tanh(scores / spec.softcap) * spec.softcap
    queries = torch.arange(start, start + len(q), device=q.device)[:, None]
    keys = torch.arange(len(k), device=q.device)
    visible = keys <= queries
    if spec.window is not None:
        visible &= keys > queries - spec.window
    weights = torch.softmax(scores.masked_fill(~visible, -torch.inf), dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, v)
