"""Attention alone on an NVIDIA GPU: the backend `triton`, one layer, beside what the GPU can do.

Decode: every sequence has `context` tokens, and reads all of them; the limit is the time that a large
copy on the same GPU, in the same run, takes for as many bytes. Layers have a KV cache each, so that
no cache holds what is read, and are replayed as one CUDA graph. Prefill: `batch` prompts of `context`
tokens; the attention kernel beside PyTorch's own on tensors that lie ready, and both kernels in all.
`--beside flashinfer` has the backend `flashinfer` do the same instead, each point in turn with `triton`.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import torch
import triton
from attention_points import (
    PREFILLS,
    SHAPES,
    Point,
    decode_seconds,
    kernel_seconds,
    prefill_seconds,
    seconds,
    show,
)
from record import save
from rich.console import Console
from torch.nn.attention import SDPBackend, sdpa_kernel

BATCHES = (1, 8, 32, 64, 128, 256)
CONTEXTS = (576, 1024)


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


def copy_bandwidth() -> float:
    """Bytes a second of a large copy on the GPU, read and written bytes both counted."""
    source = torch.randn(1 << 30, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source))


def decode_figures(bandwidth: float, deterministic: bool) -> list[dict[str, Any]]:
    """One row for each shape, batch and context."""
    rows = []
    points = [
        Point.even(shape, batch, context)
        for shape, context, batch in itertools.product(SHAPES, CONTEXTS, BATCHES)
    ]
    points += [Point.ragged(shape, batch) for shape, batch in itertools.product(SHAPES, (16, 64, 256))]
    for point in points:
        taken = decode_seconds(point, deterministic=deterministic)
        limit = point.kv_bytes / bandwidth
        rows.append(
            {
                "shape": point.shape,
                "batch": len(point.lengths),
                "context": point.context,
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
        point = Point.even(shape, batch, context)
        row = {"shape": shape, "batch": batch, "context": context}
        row["all_us"] = round(prefill_seconds(point) * 1e6, 1)
        kernels = kernel_seconds(point)
        row["append_us"] = round(kernels["append_kernel"] * 1e6, 1)
        times = {
            "": kernels["prefill_kernel"],
            "torch_flash_": torch_seconds(point, SDPBackend.FLASH_ATTENTION),
            "torch_cudnn_": torch_seconds(point, SDPBackend.CUDNN_ATTENTION),
        }
        for name, taken in times.items():
            row[f"{name}attention_us"] = taken and round(taken * 1e6, 1)
            row[f"{name}tflops"] = taken and round(point.prefill_operations / taken / 1e12, 1)
        rows.append(row)
        torch.cuda.empty_cache()
    return rows


def beside(other: str) -> list[dict[str, Any]]:
    """A whole layer of each backend, in turn: the same steps, the medians of three turns."""
    rows = []
    kinds = {"decode": (decode_seconds, BATCHES, (576,)), "prefill": (prefill_seconds, (1, 32), (512,))}
    for shape, (kind, (measure, batches, contexts)) in itertools.product(SHAPES, kinds.items()):
        for context, batch in itertools.product(contexts, batches):
            point = Point.even(shape, batch, context)
            taken: dict[str, list[float]] = {"triton": [], other: []}
            for _, name in itertools.product(range(3), taken):
                taken[name].append(measure(point, name=name))
                torch.cuda.empty_cache()
            own, others = (statistics.median(times) for times in taken.values())
            row: dict[str, Any] = {"step": kind, "shape": shape, "batch": batch, "context": context}
            row |= {"triton_us": round(own * 1e6, 1), f"{other}_us": round(others * 1e6, 1)}
            rows.append(row | {"ratio": round(others / own, 2)})
    return rows


def main() -> None:
    """Measure, print the tables, write results/NAME.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="attention_gpu")
    parser.add_argument("--beside", choices=["flashinfer"], help="another backend to compare with")
    arguments = parser.parse_args()
    console = Console(width=170)
    torch.manual_seed(0)
    bandwidth = copy_bandwidth()
    figures: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "copy_tb_per_second": round(bandwidth / 1e12, 3),
    }
    console.print(figures)
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "decode": lambda: decode_figures(bandwidth, False),
        "prefill": prefill_figures,
        "decode_deterministic": lambda: decode_figures(bandwidth, True),
    }
    if arguments.beside is not None:
        parts = {f"beside_{arguments.beside}": lambda: beside(arguments.beside)}
    for title, measure in parts.items():
        figures[title] = measure()
        show(console, title, figures[title])
        console.print(f"written to {save(arguments.name, figures)}")


if __name__ == "__main__":
    main()
