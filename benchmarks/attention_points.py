"""Attention alone on an NVIDIA GPU: batches of the shapes of real models, and how long a layer takes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rows import rows_table
from torch.nn.attention import SDPBackend, sdpa_kernel

from cleave.kvcache.backend import CacheShape, create_backend
from cleave.kvcache.spec import AttentionSpec, RopeSpec
from cleave.kvcache.step import StepPlan
from cleave.runtime.engines.inductor.graphs import GraphPool

PAGE = 16
SHAPES = {
    "llama-2-7b": (AttentionSpec(32, 32, 128, 128**-0.5, RopeSpec("default", 1e4, 128)), "float16"),
    "llama-3-8b": (AttentionSpec(32, 8, 128, 128**-0.5, RopeSpec("default", 5e5, 128)), "bfloat16"),
}
PREFILLS = ((1, 512), (32, 512), (8, 2048))
RESIDENT = 512 << 20
"""Bytes of KV that the layers of a replay read together, at least."""
RAGGED = "64-1599"
"""Label of batches whose lengths are drawn evenly from there."""


@dataclass(frozen=True, slots=True)
class Point:
    """What is measured: sequences of `lengths` tokens."""

    shape: str
    context: str
    lengths: tuple[int, ...]

    @classmethod
    def even(cls, shape: str, batch: int, context: int) -> Point:
        """All sequences have `context` tokens."""
        return cls(shape, str(context), (context,) * batch)

    @classmethod
    def ragged(cls, shape: str, batch: int) -> Point:
        """Every sequence has another length."""
        low, high = map(int, RAGGED.split("-"))
        return cls(shape, RAGGED, tuple(np.random.default_rng(1).integers(low, high + 1, batch).tolist()))

    @property
    def label(self) -> str:
        """Short, for the head of a column."""
        return f"{self.shape[-2:]} {len(self.lengths)}x{self.context}"

    @property
    def spec(self) -> AttentionSpec:
        """The attention of a layer."""
        return SHAPES[self.shape][0]

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensors and of the cache."""
        return getattr(torch, SHAPES[self.shape][1])

    @property
    def tokens(self) -> int:
        """Of all sequences."""
        return sum(self.lengths)

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one layer."""
        return self.tokens * 2 * self.spec.kv_size * 2

    @property
    def prefill_operations(self) -> int:
        """Multiplications and additions of one layer under the causal mask."""
        return sum(2 * length * (length + 1) * self.spec.q_size for length in self.lengths)


def backend(point: Point, layers: int, name: str = "triton", **options: Any) -> Any:
    """The attention backend `name`, whose pages hold random keys and values."""
    pages = sum(-(-length // PAGE) for length in point.lengths)
    shape = CacheShape((point.spec,) * layers, pages, PAGE, max(point.lengths), point.tokens)
    made: Any = create_backend(name, shape, dtype=SHAPES[point.shape][1], **options)
    for layer in made._layers:
        layer.keys.normal_()
        layer.values.normal_()
    return made


def step(point: Point, is_decode: bool) -> StepPlan:
    """The last token of every sequence, or all its tokens."""
    return step_of(point, (1,) * len(point.lengths) if is_decode else point.lengths)


def step_of(point: Point, last: Sequence[int]) -> StepPlan:
    """So many tokens at the end of each sequence; pages in random order."""
    lengths, counts = np.array(point.lengths), np.array(last)
    held = -(-lengths // PAGE)
    table = np.full((len(lengths), held.max()), -1, np.int32)
    table[np.arange(held.max()) < held[:, None]] = np.random.default_rng(0).permutation(held.sum())
    offsets = np.concatenate(([0], np.cumsum(counts)))
    starts = lengths - counts
    chunk = np.repeat(np.arange(len(lengths)), counts)
    positions = np.arange(offsets[-1]) + (starts - offsets[:-1])[chunk]
    slots = table[chunk, positions // PAGE].astype(np.int64) * PAGE + positions % PAGE
    return StepPlan(offsets, starts, positions, slots, table)


def tensors(point: Point, rows: int) -> list[torch.Tensor]:
    """q, k and v as columns of one tensor, and out."""
    spec = point.spec
    sizes = [spec.q_size, spec.kv_size, spec.kv_size]
    fused = torch.randn(rows, sum(sizes), dtype=point.dtype, device="cuda")
    return [*fused.split(sizes, dim=1), torch.empty(rows, spec.q_size, dtype=point.dtype, device="cuda")]


def seconds(run: Callable[[], object], repetitions: int = 15) -> float:
    """Median time on the GPU."""
    for _ in range(2):
        run()
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(repetitions)
    ]
    for began, ended in events:
        began.record()
        run()
        ended.record()
    torch.cuda.synchronize()
    return statistics.median(began.elapsed_time(ended) for began, ended in events) / 1e3


def graph_of(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """`run`, once as warm-up and once captured."""
    run()
    torch.cuda.synchronize()
    # torch.cuda.graph collects garbage first, which takes long among so many modules.
    graph, _ = GraphPool(torch.device("cuda")).capture(run)
    return graph


def decode_seconds(point: Point, **options: Any) -> float:
    """Seconds of one layer of a decode step."""
    layers = min(32, max(4, -(-RESIDENT // point.kv_bytes)))
    attention = backend(point, layers, **options)
    attention.plan(step(point, True))
    arrays = tensors(point, len(point.lengths))
    graph = graph_of(lambda: [attention.run(layer, *arrays) for layer in range(layers)])
    taken = seconds(graph.replay) / layers
    attention.close()
    return taken


def prefill_seconds(point: Point, **options: Any) -> float:
    """Seconds of one layer: RoPE, append and attention."""
    attention = backend(point, 4, **options)
    attention.plan(step(point, False))
    arrays = tensors(point, point.tokens)
    graph = graph_of(lambda: [attention.run(layer, *arrays) for layer in range(4)])
    taken = seconds(graph.replay) / 4
    attention.close()
    return taken


def kernel_seconds(point: Point) -> dict[str, float]:
    """Kernel -> seconds of one layer of a prefill, each kernel by itself."""
    attention = backend(point, 1)
    attention.plan(step(point, False))
    arrays = tensors(point, point.tokens)
    attention.run(0, *arrays)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(5):
            attention.run(0, *arrays)
        torch.cuda.synchronize()
    attention.close()
    return {event.key: event.device_time_total / 5e6 for event in profile.key_averages()}


def torch_seconds(point: Point, kernel: SDPBackend) -> float | None:
    """Seconds of PyTorch's attention alone, on [batch, heads, context, head_dim]."""
    spec = point.spec
    q, k, v = (
        torch.randn(
            len(point.lengths), heads, point.lengths[0], spec.head_dim, dtype=point.dtype, device="cuda"
        )
        for heads in (spec.heads, spec.kv_heads, spec.kv_heads)
    )
    try:
        with sdpa_kernel(kernel):
            return seconds(
                lambda: torch.nn.functional.scaled_dot_product_attention(
                    q, k, v, is_causal=True, enable_gqa=spec.heads != spec.kv_heads
                )
            )
    except RuntimeError:
        return None


def show(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    """One table."""
    console.print(rows_table(title, rows))
