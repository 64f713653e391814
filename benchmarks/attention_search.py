"""Block sizes of the GPU attention kernels beside each other: what `triton_tuning.py` is chosen from."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any
from unittest import mock

import torch
from attention_points import PREFILLS, SHAPES, Point, decode_seconds, prefill_seconds, show
from record import save
from rich.console import Console

from cleave.kvcache.backends import triton as backend_module
from cleave.kvcache.backends.triton_tuning import Blocks, Tuning, tune

DECODE_BLOCKS = [
    (Blocks(16, keys, warps, stages), share)
    for keys, warps, stages, share in (
        (32, 2, 3, 4), (32, 2, 4, 2), (32, 2, 4, 4), (32, 2, 4, 8), (32, 4, 4, 4), (64, 2, 2, 4),
        (64, 4, 3, 4), (128, 4, 2, 2),
    )
]  # fmt: skip
"""Blocks of the decode kernel, and its programs a multiprocessor."""
PREFILL_BLOCKS = [
    Blocks(*blocks)
    for blocks in (
        (128, 32, 4, 2), (128, 32, 4, 3), (128, 32, 4, 4), (128, 32, 8, 3, 128), (128, 64, 8, 2, 128),
        (128, 64, 8, 3), (128, 128, 8, 2), (64, 32, 4, 3), (64, 64, 4, 3),
    )
]  # fmt: skip


@contextmanager
def tuned(change: Callable[[Tuning], Tuning]) -> Iterator[None]:
    """Backends made inside have changed block sizes."""
    with mock.patch.object(backend_module, "tune", lambda *arguments: change(tune(*arguments))):
        yield


def compile_all() -> None:
    """Run every block size once, several at a time: Triton keeps what it has compiled on disk."""
    jobs = [(blocks, shape, True) for blocks, _ in DECODE_BLOCKS for shape in SHAPES]
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
        (decode_seconds if is_decode else prefill_seconds)(Point.even(shape, 1, 64))


def decode_search() -> Iterator[dict[str, Any]]:
    """Microseconds of a few points for each of DECODE_BLOCKS."""
    sizes = ((1, 576), (8, 576), (32, 576), (128, 1024))
    points = [Point.even(shape, *size) for shape in SHAPES for size in sizes]
    points += [Point.ragged(shape, batch) for shape in SHAPES for batch in (16, 256)]
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    for blocks, share in DECODE_BLOCKS:
        row: dict[str, Any] = asdict(blocks) | {"programs": share}
        with tuned(lambda base, b=blocks, s=share * processors: replace(base, decode=b, programs=s)):
            for point in points:
                row[point.label] = round(decode_seconds(point) * 1e6, 1)
        yield row


def prefill_search() -> Iterator[dict[str, Any]]:
    """Microseconds of a few points for each of PREFILL_BLOCKS."""
    points = [Point.even(shape, *size) for shape in SHAPES for size in PREFILLS]
    for blocks in PREFILL_BLOCKS:
        row: dict[str, Any] = asdict(blocks)
        with tuned(lambda base, b=blocks: replace(base, prefill=b)):
            for point in points:
                row[point.label] = round(prefill_seconds(point) * 1e6, 1)
        yield row


def main() -> None:
    """Measure, print the tables, write results/NAME.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="attention_search")
    arguments = parser.parse_args()
    console = Console(width=170)
    torch.manual_seed(0)
    compile_all()
    figures: dict[str, Any] = {"gpu": torch.cuda.get_device_name()}
    for title, rows in (("decode_us", decode_search()), ("prefill_us", prefill_search())):
        figures[title] = list(rows)
        show(console, title, figures[title])
    console.print(f"written to {save(arguments.name, figures)}")


if __name__ == "__main__":
    main()
