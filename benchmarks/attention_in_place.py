"""Attention where it stands in a decode step: between the linear layers before and behind it, on one GPU.

A kernel that starts before the one before it has ended takes less than it does alone, and so does the one
behind it. So what is timed is a chain of layers, q, k and v and the output projection with attention
between them, and the same chain without attention; the difference is what attention costs there. With
`early` off the attention kernel is launched plainly.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from attention_gpu import copy_bandwidth
from attention_points import SHAPES, Point, backend, graph_of, seconds, show, step
from record import save
from rich.console import Console

from cleave.kvcache.backends import triton as backend_module
from cleave.kvcache.backends.triton import TritonBackend
from cleave.runtime.engines.inductor.small import small_linear

BATCHES = (1, 8, 32)
CONTEXT = 576
LAYERS = 8
HIDDEN = 4096
VECTOR_BLOCKS, MATRIX_BLOCKS = [4, 1024, 4, 1], [32, 128, 4, 5]
"""Of the linear layers, for one row and for several."""


class Chain:
    """Layers of q, k and v, attention and output projection, each with weights of its own."""

    def __init__(self, point: Point) -> None:
        spec, options = point.spec, {"dtype": point.dtype, "device": "cuda"}
        self.sizes = [spec.q_size, spec.kv_size, spec.kv_size]
        self.inward = [torch.randn(sum(self.sizes), HIDDEN, **options) / 64 for _ in range(LAYERS)]
        self.outward = [torch.randn(HIDDEN, spec.q_size, **options) / 64 for _ in range(LAYERS)]
        self.x = torch.randn(len(point.lengths), HIDDEN, **options)
        self.norm = torch.ones_like(self.x[0]) if len(self.x) == 1 else None
        self.blocks = VECTOR_BLOCKS if len(self.x) == 1 else MATRIX_BLOCKS
        self.instead = torch.randn(len(self.x), spec.q_size, **options)
        """What the output projection reads where there is no attention."""

    def run(self, attention: TritonBackend | None) -> torch.Tensor:
        """Launch all layers; the residual at their end."""
        x = self.x
        for layer, (inward, outward) in enumerate(zip(self.inward, self.outward, strict=True)):
            fused = small_linear(x, inward, self.norm, None, 1e-5, False, self.blocks)
            out = self.instead
            if attention is not None:
                out = torch.empty_like(self.instead)
                attention.run(layer, *fused.split(self.sizes, dim=1), out)
            x = small_linear(out, outward, None, self.x, 1e-5, False, self.blocks)
        return x

    def seconds(self, attention: TritonBackend | None) -> float:
        """Seconds of a layer, in a graph."""
        return seconds(graph_of(lambda: self.run(attention)).replay, 21) / LAYERS


@contextmanager
def launched_plainly(plainly: bool) -> Iterator[None]:
    """Backends made inside launch their kernels plainly, where that is asked for."""
    if not plainly:
        yield
        return
    with mock.patch.object(backend_module, "starts_early", return_value=False):
        yield


def figures_of(point: Point, bandwidth: float) -> dict[str, Any]:
    """One row; raises ArithmeticError where the ways to launch do not agree."""
    chain = Chain(point)
    row = {"shape": point.shape, "batch": len(point.lengths), "context": point.context}
    row["limit_us"] = round(point.kv_bytes / bandwidth * 1e6, 2)
    without = chain.seconds(None)
    row["chain_without_us"] = round(without * 1e6, 2)
    results = []
    for name, plainly in (("plain", True), ("early", False)):
        with launched_plainly(plainly):
            torch.manual_seed(1)
            attention = backend(point, LAYERS)
        attention.plan(step(point, True))
        results.append(chain.run(attention))
        row[f"{name}_us"] = round((chain.seconds(attention) - without) * 1e6, 2)
        attention.close()
    if not torch.allclose(*results, rtol=0.02, atol=0.02):
        raise ArithmeticError(f"{point.label}: a kernel that starts early gives another result")
    return row


def main() -> None:
    """Measure, print the table, write results/NAME.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="attention_in_place_h200")
    arguments = parser.parse_args()
    console = Console(width=170)
    torch.manual_seed(0)
    bandwidth = copy_bandwidth()
    points = [Point.even(shape, batch, CONTEXT) for shape, batch in itertools.product(SHAPES, BATCHES)]
    rows = [figures_of(point, bandwidth) for point in points]
    show(console, "attention in place", rows)
    figures = {
        "gpu": torch.cuda.get_device_name(),
        "copy_tb_per_second": round(bandwidth / 1e12, 3),
        "attention_in_place": rows,
    }
    console.print(f"written to {save(arguments.name, figures)}")


if __name__ == "__main__":
    main()
