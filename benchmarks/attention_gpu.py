"""Attention alone on an NVIDIA GPU: the backend `triton`, one layer, beside what the GPU can do.

Decode: every sequence has `context` tokens, and reads all of them; the limit is the time that a large
copy on the same GPU, in the same run, takes for as many bytes. Layers have a KV cache each, so that
no cache holds what is read, and are replayed as one CUDA graph. Prefill: `batch` prompts of `context`
tokens; the attention kernel beside PyTorch's own on tensors that lie ready, and both kernels in all.
"""

from __future__ import annotations

import argparse
import itertools
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
    torch_seconds,
)
from record import save
from rich.console import Console
from torch.nn.attention import SDPBackend

BATCHES = (1, 8, 32, 64, 128, 256)
CONTEXTS = (576, 1024)


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


def main() -> None:
    """Measure, print the tables, write results/NAME.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="attention_gpu")
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
    for title, measure in parts.items():
        figures[title] = measure()
        show(console, title, figures[title])
        console.print(f"written to {save(arguments.name, figures)}")


if __name__ == "__main__":
    main()
