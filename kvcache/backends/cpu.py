"""The fast attention backend for the CPU: compiled kernels over the whole batch, one call a layer."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from cleave.errors import AttentionError
from cleave.kvcache.backend import CacheShape
from cleave.kvcache.backends import cpu_kernel
from cleave.kvcache.backends.cpu_work import Work, cut
from cleave.kvcache.rope import rope_tables
from cleave.kvcache.spec import AttentionSpec, RopeSpec
from cleave.kvcache.step import StepPlan
from cleave.lanes import LANES

Float32 = npt.NDArray[np.float32]

_UNLIMITED = 1 << 40


@dataclass(frozen=True, slots=True)
class _Layer:
    """What run() needs of one layer, in the form and order in which the kernel takes it."""

    spec: AttentionSpec
    q_size: int
    kv_size: int
    arrays: tuple[Float32, Float32, Float32, Float32]
    """keys, values, cos, sin"""
    numbers: tuple[int, int, int, int, int, float, float]
    """heads, kv_heads, head_dim, page_size, window, scale, cap"""


class CpuBackend:
    """float32 attention on numpy arrays.

    The bits of a row depend on its own sequence only: not on other rows, on how the prompt was cut
    into chunks, on threads, or on which pages it got. `threads` (None: one for each physical core)
    share a step that is large enough to be worth it.
    """

    def __init__(self, shape: CacheShape, *, threads: int | None = None) -> None:
        """Raises AttentionError where page_size is not a multiple of 16 or `threads` is not positive."""
        if shape.page_size % LANES:
            raise AttentionError(
                f"page_size is {shape.page_size}; the cpu attention backend needs a multiple of {LANES}"
            )
        if threads is None:
            threads = psutil.cpu_count(logical=False) or 1
        if threads <= 0:
            raise AttentionError(f"threads is {threads}; it must be positive, or None for all physical cores")
        self._threads = threads
        kinds = {(spec.heads, spec.kv_heads, spec.head_dim, spec.window): spec for spec in shape.specs}
        self._kinds = list(kinds.values())
        self._kind_of_layer = [
            list(kinds).index((spec.heads, spec.kv_heads, spec.head_dim, spec.window)) for spec in shape.specs
        ]
        tables = {spec.rope: _tables(spec.rope, shape.max_position) for spec in shape.specs}
        self._layers = [_layer(shape, spec, *tables[spec.rope]) for spec in shape.specs]
        floats = max(cpu_kernel.scratch_floats(spec.head_dim) for spec in shape.specs)
        self._scratch = [(_aligned(floats), np.zeros(cpu_kernel.LOOK_UP, np.int64)) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads - 1, "cleave-attention") if threads > 1 else None
        self._work: list[Work] = []

    def plan(self, step: StepPlan) -> None:
        """Cut the step into items, and the items into parts of about equal cost, for each kind of layer."""
        work = [cut(step, spec, cpu_kernel.TILE, self._threads) for spec in self._kinds]
        self._work = [work[kind] for kind in self._kind_of_layer]

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        """One layer of the planned step; arrays are C-contiguous, writeable float32 numpy arrays.

        Raises AttentionError, with nothing written, where one is not, or has the wrong shape.
        """
        if not self._work:
            raise AttentionError("no step is planned; call plan(step) before run(layer, ...)")
        own, work = self._layers[layer], self._work[layer]
        try:
            if not (
                q.shape == out.shape == (work.rows, own.q_size)
                and k.shape == v.shape == (work.rows, own.kv_size)
            ):
                raise TypeError
            if self._pool is None or work.parts == 1:
                self._attend(own, work, 0, True, 0, work.bounds[-1], q, k, v, out)
            else:
                self._share(self._pool, own, work, q, k, v, out)
        except (AttributeError, TypeError):
            # The kernel takes one type of array only. Which one does not fit is looked up when it fails,
            # since looking each time costs as much as the kernel's own overhead.
            _explain(q, k, v, out, work.rows, own)
            raise

    def close(self) -> None:
        """Give the pages back and end the threads."""
        if self._pool is not None:
            self._pool.shutdown()
        self._layers, self._work, self._pool = [], [], None

    def _share(self, pool: ThreadPoolExecutor, own: _Layer, work: Work, *tensors: Any) -> None:
        """Append first, since every part may read what any row appends; then one part a thread."""
        bounds = work.bounds
        self._attend(own, work, 0, True, 0, 0, *tensors)
        others = [
            pool.submit(self._attend, own, work, part, False, bounds[part], bounds[part + 1], *tensors)
            for part in range(1, work.parts)
        ]
        try:
            self._attend(own, work, 0, False, bounds[0], bounds[1], *tensors)
        finally:
            # Also when this thread is interrupted: nobody may write to `out` after run() has ended.
            wait(others)
        for other in others:
            other.result()

    def _attend(
        self, own: _Layer, work: Work, part: int, is_first: bool, begin: int, end: int, *tensors: Any
    ) -> None:
        cpu_kernel.attend(
            *tensors, *own.arrays, *work.arrays, *self._scratch[part], is_first, begin, end, *own.numbers
        )


def _explain(q: Any, k: Any, v: Any, out: Any, rows: int, own: _Layer) -> None:
    """Raise AttentionError for the first array that the kernel does not take."""
    sizes = {"q": (q, own.q_size), "k": (k, own.kv_size), "v": (v, own.kv_size), "out": (out, own.q_size)}
    for name, (array, columns) in sizes.items():
        if not isinstance(array, np.ndarray):
            raise AttentionError(
                f"{name} is a {type(array).__name__}; the cpu attention backend takes numpy arrays"
            )
        if array.shape != (rows, columns) or array.dtype != np.float32 or not array.flags.carray:
            raise AttentionError(
                f"{name} is {array.dtype} {list(array.shape)} with strides {list(array.strides)}; "
                f"it must be float32 [{rows}, {columns}], C-contiguous and writeable"
            )


def _layer(shape: CacheShape, spec: AttentionSpec, cos: Float32, sin: Float32) -> _Layer:
    """Scores leave the kernel in base 2, so log2(e) is part of the scale; with a softcap, of the cap."""
    tokens = shape.num_pages * shape.page_size * spec.kv_heads
    to_base_2 = math.log2(math.e)
    scale = spec.scale * to_base_2 if spec.softcap is None else spec.scale / spec.softcap
    cap = 0.0 if spec.softcap is None else spec.softcap * to_base_2
    window = _UNLIMITED if spec.window is None else spec.window
    return _Layer(
        spec,
        spec.q_size,
        spec.kv_size,
        (_aligned(tokens * spec.head_dim), _aligned(tokens * cpu_kernel.padded(spec.head_dim)), cos, sin),
        (spec.heads, spec.kv_heads, spec.head_dim, shape.page_size, window, scale, cap),
    )


def _tables(rope: RopeSpec | None, max_position: int) -> tuple[Float32, Float32]:
    if rope is None:
        return np.zeros((max_position, 0), np.float32), np.zeros((max_position, 0), np.float32)
    return rope_tables(rope, max_position)


def _aligned(count: int) -> Float32:
    """`count` zeros that begin at a cache line, so that no vector of a page straddles two."""
    line = 64
    block = np.zeros(count + line // 4, np.float32)
    skip = (-block.ctypes.data % line) // 4
    return block[skip : skip + count]
