"""Attention alone on an NVIDIA GPU: the backend `triton`, one layer, beside what the GPU can do.

Decode: every sequence has `context` tokens, and reads all of them; the limit is the time that a large
copy on the same GPU, in the same run, takes for as many bytes. Layers have a KV cache each, so that
no cache holds what is read, and are replayed as one CUDA graph. Prefill: `batch` prompts of `context`
tokens, RoPE and append included, beside PyTorch's own attention on tensors that lie ready.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from record import save
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel

from cleave.kvcache.backend import CacheShape
from cleave.kvcache.backends import triton as backend_module
from cleave.kvcache.backends.triton import TritonBackend
from cleave.kvcache.backends.triton_tuning import Blocks, Tuning, tune
from cleave.kvcache.spec import AttentionSpec, RopeSpec
from cleave.kvcache.step import StepPlan

PAGE = 16
SHAPES = {
    "llama-2-7b": (AttentionSpec(32, 32, 128, 128**-0.5, RopeSpec("default", 1e4, 128)), "float16"),
    "llama-3-8b": (AttentionSpec(32, 8, 128, 128**-0.5, RopeSpec("default", 5e5, 128)), "bfloat16"),
}
BATCHES = (1, 8, 32, 64, 128, 256)
CONTEXTS = (576, 1024)
PREFILLS = ((1, 512), (32, 512), (8, 2048))
RESIDENT = 512 << 20
"""Bytes of KV that the layers of a replay read together, at least."""
DECODE_BLOCKS = [
    Blocks(16, keys, warps, stages)
    for keys, warps, stages in (
        (32, 2, 5), (32, 2, 7), (32, 4, 5), (64, 4, 3), (64, 4, 4), (64, 4, 5), (64, 2, 4), (128, 4, 3),
        (128, 4, 4), (128, 8, 4),
    )
]  # fmt: skip
PREFILL_BLOCKS = [
    Blocks(rows, keys, warps, stages)
    for rows, keys, warps, stages in (
        (128, 64, 8, 3), (128, 64, 8, 4), (128, 128, 8, 2), (128, 128, 8, 3), (64, 64, 4, 3), (64, 128, 4, 3),
        (128, 64, 4, 3),
    )
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Point:
    """What is measured: `batch` sequences of `context` tokens."""

    shape: str
    batch: int
    context: int

    @property
    def spec(self) -> AttentionSpec:
        """The attention of a layer."""
        return SHAPES[self.shape][0]

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensors and of the cache."""
        return getattr(torch, SHAPES[self.shape][1])

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one layer."""
        return self.batch * self.context * 2 * self.spec.kv_size * 2

    @property
    def prefill_operations(self) -> int:
        """Multiplications and additions of one layer under the causal mask."""
        return 2 * self.batch * self.context * (self.context + 1) * self.spec.q_size


@contextmanager
def tuned(change: Callable[[Tuning], Tuning]) -> Iterator[None]:
    """Backends made inside have changed block sizes."""
    with mock.patch.object(backend_module, "tune", lambda *arguments: change(tune(*arguments))):
        yield


def backend(point: Point, layers: int, **options: Any) -> TritonBackend:
    """A backend whose pages hold random keys and values."""
    pages = point.batch * -(-point.context // PAGE)
    shape = CacheShape((point.spec,) * layers, pages, PAGE, point.context, point.batch * point.context)
    made = TritonBackend(shape, dtype=SHAPES[point.shape][1], **options)
    for layer in made._layers:
        layer.keys.normal_()
        layer.values.normal_()
    return made


def step(point: Point, count: int) -> StepPlan:
    """The last `count` tokens of every sequence; pages in random order."""
    per = -(-point.context // PAGE)
    table = np.random.default_rng(0).permutation(point.batch * per).astype(np.int32).reshape(point.batch, per)
    starts = np.full(point.batch, point.context - count)
    positions = np.tile(np.arange(point.context - count, point.context), point.batch)
    chunk = np.repeat(np.arange(point.batch), count)
    slots = table[chunk, positions // PAGE].astype(np.int64) * PAGE + positions % PAGE
    return StepPlan(np.arange(point.batch + 1) * count, starts, positions, slots, table)


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
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def decode_seconds(point: Point, **options: Any) -> float:
    """Seconds of one layer of a decode step."""
    layers = min(32, max(4, -(-RESIDENT // point.kv_bytes)))
    attention = backend(point, layers, **options)
    attention.plan(step(point, 1))
    arrays = tensors(point, point.batch)
    graph = graph_of(lambda: [attention.run(layer, *arrays) for layer in range(layers)])
    taken = seconds(graph.replay) / layers
    attention.close()
    return taken


def prefill_seconds(point: Point) -> float:
    """Seconds of one layer: RoPE, append and attention."""
    attention = backend(point, 4)
    attention.plan(step(point, point.context))
    arrays = tensors(point, point.batch * point.context)
    graph = graph_of(lambda: [attention.run(layer, *arrays) for layer in range(4)])
    taken = seconds(graph.replay) / 4
    attention.close()
    return taken


def torch_seconds(point: Point, kernel: SDPBackend) -> float | None:
    """Seconds of PyTorch's attention alone, on [batch, heads, context, head_dim]."""
    spec = point.spec
    q, k, v = (
        torch.randn(point.batch, heads, point.context, spec.head_dim, dtype=point.dtype, device="cuda")
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


def copy_bandwidth() -> float:
    """Bytes a second of a large copy on the GPU, read and written bytes both counted."""
    source = torch.randn(1 << 30, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source))


def decode_figures(bandwidth: float, deterministic: bool) -> list[dict[str, Any]]:
    """One row for each shape, batch and context."""
    rows = []
    for shape, context, batch in itertools.product(SHAPES, CONTEXTS, BATCHES):
        point = Point(shape, batch, context)
        taken = decode_seconds(point, deterministic=deterministic)
        limit = point.kv_bytes / bandwidth
        rows.append(
            {
                "shape": shape,
                "batch": batch,
                "context": context,
                "kv_mb": round(point.kv_bytes / 1e6, 2),
                "limit_us": round(limit * 1e6, 2),
                "us": round(taken * 1e6, 2),
                "percent_of_copy": round(limit / taken * 100, 1),
            }
        )
        torch.cuda.empty_cache()
    return rows


def prefill_figures() -> list[dict[str, Any]]:
    """One row for each shape and prompt."""
    rows = []
    for shape, (batch, context) in itertools.product(SHAPES, PREFILLS):
        point = Point(shape, batch, context)
        row = {"shape": shape, "batch": batch, "context": context}
        times = {"": prefill_seconds(point)}
        times["torch_flash_"] = torch_seconds(point, SDPBackend.FLASH_ATTENTION)
        times["torch_cudnn_"] = torch_seconds(point, SDPBackend.CUDNN_ATTENTION)
        for name, taken in times.items():
            row[f"{name}us"] = taken and round(taken * 1e6, 1)
            row[f"{name}tflops"] = taken and round(point.prefill_operations / taken / 1e12, 1)
        rows.append(row)
        torch.cuda.empty_cache()
    return rows


def compile_all() -> None:
    """Run every block size once, several at a time: Triton keeps what it has compiled on disk."""
    jobs = [(blocks, shape, True) for blocks in DECODE_BLOCKS for shape in SHAPES]
    jobs += [(blocks, shape, False) for blocks in PREFILL_BLOCKS for shape in SHAPES]
    with ProcessPoolExecutor(min(12, os.cpu_count() or 1), multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_one, *zip(*jobs, strict=True)))


def compile_one(blocks: Blocks, shape: str, is_decode: bool) -> None:
    """Compile the kernels of one block size, in a process of its own."""
    change = (
        (lambda base: replace(base, decode=blocks))
        if is_decode
        else (lambda base: replace(base, prefill=blocks))
    )
    with tuned(change), contextlib.suppress(Exception):
        (decode_seconds if is_decode else prefill_seconds)(Point(shape, 1, 64))


def decode_search() -> Iterator[dict[str, Any]]:
    """Microseconds of a few points for each of DECODE_BLOCKS and numbers of programs."""
    points = [
        Point(shape, *size) for shape in SHAPES for size in ((1, 576), (8, 576), (32, 576), (128, 1024))
    ]
    for blocks in DECODE_BLOCKS:
        for share in (4, 8, 16) if blocks.keys == 64 and blocks.stages == 4 else (8,):
            row: dict[str, Any] = asdict(blocks) | {"programs_a_processor": share}
            processors = torch.cuda.get_device_properties(0).multi_processor_count
            with tuned(lambda base, b=blocks, s=share * processors: replace(base, decode=b, programs=s)):
                for point in points:
                    try:
                        taken = round(decode_seconds(point) * 1e6, 2)
                    except Exception as error:  # a block size that does not fit is a result too
                        taken = type(error).__name__
                    row[f"{point.shape[-2:]} {point.batch}x{point.context}"] = taken
            yield row


def prefill_search() -> Iterator[dict[str, Any]]:
    """Microseconds of a few points for each of PREFILL_BLOCKS."""
    points = [Point(shape, *size) for shape in SHAPES for size in PREFILLS]
    for blocks in PREFILL_BLOCKS:
        row: dict[str, Any] = asdict(blocks)
        with tuned(lambda base, b=blocks: replace(base, prefill=b)):
            for point in points:
                try:
                    taken = round(prefill_seconds(point) * 1e6, 1)
                except Exception as error:
                    taken = type(error).__name__
                row[f"{point.shape[-2:]} {point.batch}x{point.context}"] = taken
        yield row


def show(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    """One table."""
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*map(str, row.values()))
    console.print(table)


def main() -> None:
    """Measure, print the tables, write results/NAME.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="attention_gpu")
    parser.add_argument("--search", action="store_true", help="compare block sizes first")
    arguments = parser.parse_args()
    console = Console(width=170)
    torch.manual_seed(0)
    bandwidth = copy_bandwidth()
    figures: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "copy_tb_per_second": round(bandwidth / 1e12, 3),
    }
    console.print(figures)
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "decode": lambda: decode_figures(bandwidth, False),
        "prefill": prefill_figures,
        "decode_deterministic": lambda: decode_figures(bandwidth, True),
    }
    if arguments.search:
        compile_all()
        parts |= {
            "decode_search": lambda: list(decode_search()),
            "prefill_search": lambda: list(prefill_search()),
        }
    for title, measure in parts.items():
        figures[title] = measure()
        show(console, title, figures[title])
        console.print(f"written to {save(arguments.name, figures)}")


if __name__ == "__main__":
    main()
