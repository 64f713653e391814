"""The attention backends `triton` and `flashinfer` beside each other on an NVIDIA GPU: one layer of a step.

Each point is made for all at once, with the same pages and rows, checked against each other, and replayed
in turn, four layers or more as one CUDA graph; append included. Every step is FlashInfer's own here, also
those that the backend `flashinfer` leaves to Triton: decode steps, and chunks that see few keys. Chunks have
its kernels for Hopper, `fa3`, and those for any GPU, `fa2`. Of the host: what `plan` takes, and what a layer
takes to launch. PyTorch's own attention, where all have one length, is on tensors that lie ready. FlashInfer
compiles its kernels at first use, one after the other; `--compile` does it side by side beforehand.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from attention_points import (
    RESIDENT,
    SHAPES,
    Point,
    backend,
    graph_of,
    seconds,
    show,
    step_of,
    tensors,
    torch_seconds,
)
from needs import require, require_gpu
from record import save
from rich.console import Console
from torch.nn.attention import SDPBackend

from cleave.kvcache.step import StepPlan

PIN = "flashinfer-python==0.5.3"
KERNELS = ("fa3", "fa2")
TURNS = 3
REPLAYS = 5
"""Of each turn."""
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 4e-2}
AFTER = 544
"""Tokens before that of a decode step."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A step: sequences, and how many of their last tokens it has of each."""

    label: str
    point: Point
    last: tuple[int, ...]

    @property
    def is_decode(self) -> bool:
        """Every sequence has one token."""
        return set(self.last) == {1}


def chunks(shape: str) -> Iterator[Kind]:
    """Prompts, and parts of prompts with decoding requests beside them."""
    for batch, context in ((1, 512), (16, 512), (8, 2048), (1, 8192)):
        point = Point.even(shape, batch, context)
        yield Kind(f"{batch} x {context}", point, point.lengths)
    parts, rows = (500, 500, 1000, 1000), Point.ragged(shape, 240).lengths
    yield Kind("4 chunks of 500", Point(shape, "", parts), (500,) * 4)
    yield Kind("4 chunks of 500, 240 rows", Point(shape, "", parts + rows), (500,) * 4 + (1,) * 240)


def decode(shape: str) -> Iterator[Kind]:
    """One more token of every sequence."""
    for batch in (1, 8, 32, 128, 256):
        yield Kind(f"{batch} x {AFTER}", Point.even(shape, batch, AFTER + 1), (1,) * batch)
    for batch in (64, 256):
        point = Point.ragged(shape, batch)
        yield Kind(f"{batch} x {point.context}", point, (1,) * batch)


STEPS = {"chunks": chunks, "decode": decode}


def attention_of(name: str, kind: Kind, layers: int) -> Any:
    """With random pages: the backend `triton`, FlashInfer's decode, or one of its kernels for chunks."""
    if name == "triton":
        return backend(kind.point, layers)
    if name == "flashinfer":
        from flashinfer_decode import FlashInferDecode

        return FlashInferDecode(kind.point, layers)
    return backend(kind.point, layers, name="flashinfer", kernels=name)


def compile_all(kernels: Sequence[str], shapes: Sequence[str]) -> None:
    """Compile FlashInfer's kernels, several at a time: they are kept on disk."""
    jobs = [(shape, name, 2) for shape in shapes for name in kernels]
    jobs += [(shape, "flashinfer", 1) for shape in shapes]
    with ProcessPoolExecutor(len(jobs), multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_one, *zip(*jobs, strict=True)))


def compile_one(shape: str, name: str, last: int) -> None:
    """One of them, in a process of its own."""
    kind = Kind("", Point.even(shape, 1, 64), (last,))
    attention = attention_of(name, kind, 1)
    attention.plan(step_of(kind.point, kind.last))
    attention.run(0, *tensors(kind.point, last))
    torch.cuda.synchronize()


def row_of(kind: Kind, kernels: Sequence[str]) -> dict[str, Any]:
    """Microseconds of one layer: of the GPU, of the host's `plan`, of the host's launches."""
    names = ("triton", "flashinfer") if kind.is_decode else ("triton", *kernels)
    layers = min(32, max(4, -(-RESIDENT // kind.point.kv_bytes))) if kind.is_decode else 4
    step = step_of(kind.point, kind.last)
    arrays = tensors(kind.point, len(step.positions))
    made = {name: attention_of(name, kind, layers) for name in names}
    check(made, step, arrays)
    graphs = {
        name: graph_of(lambda a=attention: [a.run(layer, *arrays) for layer in range(layers)])
        for name, attention in made.items()
    }
    taken: dict[str, list[float]] = {name: [] for name in names}
    for _, name in itertools.product(range(TURNS), names):
        taken[name].append(seconds(graphs[name].replay, REPLAYS) / layers)
    row: dict[str, Any] = {"shape": kind.point.shape, "step": kind.label}
    for name in names:
        row[f"{name} us"] = round(statistics.median(taken[name]) * 1e6, 1)
    for name, attention in made.items():
        planned, launched = host_seconds(attention, step, arrays, layers)
        row[f"{name} plan us"] = round(planned * 1e6)
        row[f"{name} launch us"] = round(launched * 1e6)
        attention.close()
    if not kind.is_decode:
        whole = kind.last == kind.point.lengths
        for column, kernel in (("flash", SDPBackend.FLASH_ATTENTION), ("cuDNN", SDPBackend.CUDNN_ATTENTION)):
            own = torch_seconds(kind.point, kernel) if whole else None
            row[f"torch {column} us"] = own and round(own * 1e6, 1)
    return row


def check(made: dict[str, Any], step: StepPlan, arrays: Sequence[torch.Tensor]) -> None:
    """One layer of each, over the same pages. Raises AssertionError where results differ."""
    first, *others = made.values()
    for other in others:
        other._layers[0].keys.copy_(first._layers[0].keys)
        other._layers[0].values.copy_(first._layers[0].values)
    outs = []
    for attention in made.values():
        attention.plan(step)
        attention.run(0, *arrays)
        outs.append(arrays[-1].clone())
    tolerance = TOLERANCE[outs[0].dtype]
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], rtol=tolerance, atol=tolerance)


def host_seconds(
    attention: Any, step: StepPlan, arrays: Sequence[torch.Tensor], layers: int
) -> tuple[float, float]:
    """Medians of what `plan` takes, and the launches of a layer, while the GPU rests."""
    plans, launches = [], []
    for _ in range(9):
        torch.cuda.synchronize()
        times = [time.perf_counter()]
        attention.plan(step)
        times.append(time.perf_counter())
        for layer in range(layers):
            attention.run(layer, *arrays)
        times.append(time.perf_counter())
        plans.append(times[1] - times[0])
        launches.append((times[2] - times[1]) / layers)
    torch.cuda.synchronize()
    return statistics.median(plans), statistics.median(launches)


def main() -> None:
    """Measure, print the table, write results/NAME.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="attention_backends")
    parser.add_argument(
        "--kernels",
        nargs="+",
        choices=KERNELS,
        default=KERNELS,
        help="FlashInfer's for chunks; default: both. fa3 needs Hopper: elsewhere give --kernels fa2",
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=tuple(SHAPES))
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=tuple(STEPS))
    parser.add_argument("--compile", action="store_true", help="compile FlashInfer's kernels, and end")
    arguments = parser.parse_args()
    require("flashinfer-python", PIN)
    require_gpu()
    import flashinfer
    import triton

    if arguments.compile:
        compile_all(arguments.kernels, arguments.shapes)
        return
    console = Console(width=200)
    torch.manual_seed(0)
    figures: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "triton": triton.__version__,
        "flashinfer": flashinfer.__version__,
        "cuda": torch.version.cuda,
        **{name: [] for name in arguments.steps},
    }
    for name, shape in itertools.product(arguments.steps, arguments.shapes):
        for kind in STEPS[name](shape):
            row = row_of(kind, arguments.kernels)
            figures[name].append(row)
            console.print(row)
            torch.cuda.empty_cache()
            path = save(arguments.name, figures)
    for title in arguments.steps:
        show(console, title, figures[title])
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
