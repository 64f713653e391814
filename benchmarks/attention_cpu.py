"""Attention of one layer on the CPU in decode steps, by whose threads compute it.

Microseconds, and GB/s of KV cache. Before every run a matrix product streams `--between` MiB through ONNX
Runtime's pool, as the pieces of a model do: it takes the KV cache out of the processor's caches and leaves
the pool's threads as a piece leaves them. All crews take turns. The limit is the bandwidth that
`cleave bench` measures, with as many threads.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from record import save
from rich.console import Console
from rich.table import Table

from cleave.crew.borrowed import BorrowedCrew, can_borrow
from cleave.crew.crew import Crew
from cleave.crew.pool import PoolCrew
from cleave.crew.semaphore import SemaphoreCrew
from cleave.kvcache.backends import cpu
from cleave.kvcache.server import AttentionServer
from cleave.kvcache.spec import AttentionSpec, RopeSpec
from cleave.kvcache.step import Chunk
from cleave.runtime.bench.limits import CpuProbe
from cleave.threads import physical_cores, session_options, use_one_thread_pool

_ROPE = RopeSpec("default", 10_000.0, 64)
SPECS = {"135m": AttentionSpec(9, 3, 64, 0.125, _ROPE), "1b": AttentionSpec(32, 4, 64, 0.125, _ROPE)}
LAYERS = 8
CHUNK = 512


class Switch:
    """A `Crew` that is one of several."""

    means = "one of several"

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.crews: dict[str, Crew] = {
            "one thread": SemaphoreCrew(1, "alone"),
            "Python's": PoolCrew(threads, "pool"),
            "semaphores": SemaphoreCrew(threads, "semaphores"),
        }
        if can_borrow():
            self.crews["borrowed"] = BorrowedCrew(threads)
        self.use(next(reversed(self.crews)))

    def use(self, name: str) -> None:
        """Let this one run what comes."""
        self.run = self.crews[name].run

    def close(self) -> None:
        """Close all."""
        for crew in self.crews.values():
            crew.close()


def piece(mebibytes: int, rows: int) -> Callable[[], None]:
    """A matrix product over weights of this size, in ONNX Runtime's pool."""
    columns = mebibytes * (1 << 20) // 4 // 1024
    weight = numpy_helper.from_array(np.ones((1024, columns), np.float32), "weight")
    given, made = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, width])
        for name, width in (("given", 1024), ("made", columns))
    )
    node = helper.make_node("MatMul", ["given", "weight"], ["made"])
    graph = helper.make_graph([node], "piece", [given], [made], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = ort.InferenceSession(
        model.SerializeToString(), session_options(), providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    for bind, name, width in (
        (binding.bind_ortvalue_input, "given", 1024),
        (binding.bind_ortvalue_output, "made", columns),
    ):
        bind(name, ort.OrtValue.ortvalue_from_numpy(np.ones((rows, width), np.float32)))
    return lambda: session.run_with_iobinding(binding)


class Decoding:
    """A server whose sequences all have `history` tokens, about to decode one more."""

    def __init__(self, spec: AttentionSpec, batch: int, history: int, crew: Crew) -> None:
        with mock.patch.object(cpu, "make_crew", return_value=crew):
            self._server = AttentionServer(
                [spec] * LAYERS,
                num_pages=batch * (history // 16 + 1),
                max_position=history + 1,
                max_tokens=max(CHUNK, batch),
                threads=crew.threads,
            )
        self._spec = spec
        for sequence in range(batch):
            self._server.open(sequence)
            for start in range(0, history, CHUNK):
                chunk = Chunk(sequence, start, min(CHUNK, history - start))
                self._server.plan([chunk])
                for layer in range(LAYERS):
                    self._server.run(layer, *self._arrays(chunk.count))
                self._server.commit()
        self._rows = self._arrays(batch)
        self._step = [Chunk(sequence, history, 1) for sequence in range(batch)]
        self.bytes = batch * (history + 1) * 2 * spec.kv_size * 4

    def seconds(self, between: Callable[[], None]) -> list[float]:
        """Of each layer of one step."""
        found = []
        self._server.plan(self._step)
        for layer in range(LAYERS):
            between()
            began = time.perf_counter()
            self._server.run(layer, *self._rows)
            found.append(time.perf_counter() - began)
        self._server.rollback()
        return found

    def close(self) -> None:
        """Give back memory and threads."""
        self._server.shutdown()

    def _arrays(self, rows: int) -> list[Any]:
        widths = (self._spec.q_size, self._spec.kv_size, self._spec.kv_size, self._spec.q_size)
        generator = np.random.default_rng(rows)
        return [generator.standard_normal((rows, width), dtype=np.float32) for width in widths]


def measure(
    shape: str, batch: int, history: int, threads: int, repetitions: int, between: int
) -> list[dict[str, Any]]:
    """A row for each crew."""
    run_piece = piece(between, batch)
    switch = Switch(threads)
    decoding = Decoding(SPECS[shape], batch, history, switch)
    seconds: dict[str, list[float]] = {name: [] for name in switch.crews}
    for repetition in range(repetitions + 1):
        for name, found in seconds.items():
            switch.use(name)
            times = decoding.seconds(run_piece)
            found += times if repetition else []
    decoding.close()
    rows = []
    for name, found in seconds.items():
        median = statistics.median(found)
        figures = {"us": round(median * 1e6, 1), "gb_per_s": round(decoding.bytes / median / 1e9, 1)}
        rows.append(
            {"shape": shape, "batch": batch, "history": history, "threads": threads, "crew": name} | figures
        )
    return rows


def main() -> None:
    """Measure, print the table, write results/NAME.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default="135m,1b")
    parser.add_argument("--batch", default="1,8,32")
    parser.add_argument("--history", default="128,256,1024")
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--repetitions", type=int, default=8)
    parser.add_argument("--between", type=int, default=16, help="MiB of weights between two layers")
    parser.add_argument("--name", default="attention_cpu")
    arguments = parser.parse_args()
    use_one_thread_pool(arguments.threads)
    probe = CpuProbe(arguments.threads)
    limits = [probe.measure().bandwidth]
    figures = []
    for shape in arguments.shapes.split(","):
        for batch in map(int, arguments.batch.split(",")):
            for history in map(int, arguments.history.split(",")):
                figures += measure(
                    shape, batch, history, arguments.threads, arguments.repetitions, arguments.between
                )
    limits.append(probe.measure().bandwidth)
    probe.close()
    bandwidth = statistics.mean(limits)
    table = Table(
        title=f"Attention of one layer, {arguments.threads} threads; read {bandwidth / 1e9:.1f} GB/s"
    )
    for column in (*figures[0], "% of limit"):
        table.add_column(column.replace("_", " "), justify="right" if column != "crew" else "left")
    for row in figures:
        table.add_row(*map(str, row.values()), f"{row['gb_per_s'] * 1e11 / bandwidth:.0f}")
    console = Console()
    console.print(table)
    saved = save(
        arguments.name, {"bytes_per_s": bandwidth, "between_mib": arguments.between, "rows": figures}
    )
    console.print(f"written to {saved}")


if __name__ == "__main__":
    main()
