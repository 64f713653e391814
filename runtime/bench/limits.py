"""What the machine can do: bytes read a second, and operations a second for each dtype."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numba
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from cleave.errors import BenchError
from cleave.runtime.bench.counts import Work
from cleave.threads import physical_cores, session_options

Bound = Literal["memory", "compute"]

_CACHES = 4
"""The stream is this many times the last-level cache."""
_SMALLEST_STREAM = 1 << 27
_LARGEST_STREAM = 1 << 30
_MATMUL = (512, 2048, 2048)
"""M, N, K of the matrix product."""
_TRIES = 3
"""A limit is what the machine can do, so the best of a few tries counts."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Both limits, measured at about the same time."""

    bandwidth: float
    """Bytes a second of a stream that no cache holds: read by a processor, copied by a GPU, where a byte read
    and written counts as two."""
    operations: dict[str, float]
    """dtype -> operations a second of a large matrix product."""

    def seconds(self, work: Work, dtype: str) -> float:
        """The least time that the work takes: its bytes or its operations, whichever takes longer."""
        return max(work.bytes / self.bandwidth, work.operations / self.rate(dtype))

    def bound(self, work: Work, dtype: str) -> Bound:
        """Which of the two it is."""
        is_memory = work.bytes / self.bandwidth >= work.operations / self.rate(dtype)
        return "memory" if is_memory else "compute"

    def rate(self, dtype: str) -> float:
        """Operations a second. Raises BenchError for a dtype that was not measured."""
        if dtype not in self.operations:
            raise BenchError(
                f"the operation rate of {dtype} was not measured; there are: {', '.join(self.operations)}"
            )
        return self.operations[dtype]


class CpuProbe:
    """See `cleave.runtime.bench.probe.Probe`: the processor, with as many threads as the engine has."""

    def __init__(self, threads: int | None = None) -> None:
        """`threads` None: one for each physical core."""
        self.threads = threads or physical_cores()
        self.device = f"{self.threads} thread{'s' * (self.threads > 1)}"
        self.cache_bytes = last_level_cache()
        size = min(max(_CACHES * self.cache_bytes, _SMALLEST_STREAM), _LARGEST_STREAM)
        self._parts = np.array_split(np.ones(size // 4, np.float32), self.threads)
        self._sum: Callable[[Any], float] = numba.njit(_stream, nogil=True, fastmath=True)
        self._pool = ThreadPoolExecutor(self.threads, "cleave-stream")
        self._products = {dtype: _product(dtype, self.threads) for dtype in ("float32", "int8")}
        self.measure()  # compiles the kernel and touches every page

    def measure(self) -> Limits:
        """Both limits now; takes a fifth of a second."""
        streamed = sum(part.nbytes for part in self._parts)
        operations = 2 * int(np.prod(_MATMUL))
        return Limits(
            streamed / _best(lambda: list(self._pool.map(self._sum, self._parts))),
            {dtype: operations / _best(product) for dtype, product in self._products.items()},
        )

    def close(self) -> None:
        """Give back memory and threads."""
        self._pool.shutdown()
        self._parts = []
        self._products = {}


def last_level_cache() -> int:
    """Bytes of the largest cache, as Linux names it; 0 where that is not known."""
    sizes = [0]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text("utf-8").strip()
        units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
        sizes.append(int(text.rstrip("KMG")) * units.get(text[-1], 1))
    return max(sizes)


def _best(run: Callable[[], object]) -> float:
    """The least seconds of a few runs."""
    seconds = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _stream(values: npt.NDArray[np.float32]) -> np.float32:
    """Read every value once; the sum keeps the compiler from leaving that out."""
    result = np.float32(0)
    for index in range(len(values)):  # by index: a loop over the array itself is not vectorised
        result += values[index]
    return result


def _product(dtype: str, threads: int) -> Callable[[], object]:
    """A large matrix product in ONNX Runtime, weights packed as the engine packs them."""
    m, n, k = _MATMUL
    generator = np.random.default_rng(0)
    if dtype == "float32":
        left, right = generator.random((m, k), np.float32), generator.random((n, k), np.float32)
        node = helper.make_node("Gemm", ["left", "right"], ["out"], transB=1)
        types = (TensorProto.FLOAT, TensorProto.FLOAT)
    else:
        left = generator.integers(0, 255, (m, k), np.uint8)
        right = generator.integers(-127, 127, (k, n), np.int8)
        node = helper.make_node("MatMulInteger", ["left", "right"], ["out"])
        types = (TensorProto.UINT8, TensorProto.INT32)
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("left", types[0], [m, k])],
        [helper.make_tensor_value_info("out", types[1], [m, n])],
        [numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = ort.InferenceSession(
        _bytes(model), session_options(threads), providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"left": left})


def _bytes(model: onnx.ModelProto) -> bytes:
    serialised: bytes = model.SerializeToString()
    return serialised
