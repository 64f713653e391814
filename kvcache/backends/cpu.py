"""The fast attention backend for the CPU: compiled kernels over the whole batch, one call a layer."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cleave.crew.crew import Crew, make_crew
from cleave.errors import AttentionError
from cleave.kvcache.backend import CacheShape, LayerJobs
from cleave.kvcache.backends import cpu_kernel
from cleave.kvcache.backends.cpu_tiles import VECTORS
from cleave.kvcache.backends.cpu_work import Work, cut
from cleave.kvcache.rope import rope_tables
from cleave.kvcache.spec import AttentionSpec, RopeSpec
from cleave.kvcache.step import StepPlan
from cleave.lanes import LANES
from cleave.threads import physical_cores

Float32 = npt.NDArray[np.float32]

_UNLIMITED = 1 << 40
_PARTS = 2
_log = logging.getLogger("cleave")


@dataclass(frozen=True, slots=True)
class _Layer:
    """What run() needs of one layer, as the kernel takes it."""

    spec: AttentionSpec
    record: npt.NDArray[Any]
    """[1] of cpu_kernel.LAYER."""
    address: int
    """Of the record."""
    arrays: tuple[Float32, ...]
    """What the record has the addresses of."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """Layers of one shape, for which a step is cut in the same way."""

    spec: AttentionSpec
    layers: npt.NDArray[np.int64]
    """Which layers they are."""
    step: npt.NDArray[Any]
    """[1] of cpu_kernel.STEP: that of the planned step."""


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
            threads = physical_cores()
        if threads <= 0:
            raise AttentionError(f"threads is {threads}; it must be positive, or None for all physical cores")
        self._threads = threads
        self._kind_of = [_shape_of(spec) for spec in shape.specs]
        self._kinds = {
            key: _Kind(
                shape.specs[self._kind_of.index(key)],
                np.flatnonzero([kind == key for kind in self._kind_of]),
                np.zeros(1, cpu_kernel.STEP),
            )
            for key in dict.fromkeys(self._kind_of)
        }
        floats = max(cpu_kernel.scratch_floats(spec.head_dim) for spec in shape.specs)
        self._scratch = _aligned(threads * floats), np.zeros(threads * cpu_kernel.LOOK_UP, np.int64)
        tables = {spec.rope: _tables(spec.rope, shape.max_position) for spec in shape.specs}
        self._records = np.zeros(len(shape.specs), cpu_kernel.LAYER)
        self._layers = [
            _layer(shape, spec, self._kinds[_shape_of(spec)].step, tables[spec.rope], self._scratch, record)
            for spec, record in zip(shape.specs, np.split(self._records, len(shape.specs)), strict=True)
        ]
        self._jobs = np.array(
            [
                [
                    (cpu_kernel.append.address, layer.address, 0),
                    (cpu_kernel.attend.address, layer.address, 0),
                ]
                for layer in self._layers
            ],
            np.int64,
        )
        """See `LayerJobs.entries`: those of the planned step."""
        self._crew: Crew = make_crew(threads, "cleave-attention")
        _log.info("attention on %d threads, %s, with %s", threads, self._crew.means, VECTORS)
        self._work: list[Work] = []

    def plan(self, step: StepPlan) -> None:
        """Cut the step into items, and the items into parts of about equal cost, for each kind of layer."""
        self._work = []
        work = {
            key: cut(step, kind.spec, cpu_kernel.TILE, self._crew.threads)
            for key, kind in self._kinds.items()
        }
        for key, kind in self._kinds.items():
            _write_step(kind.step, work[key])
            self._jobs[kind.layers, :, _PARTS] = work[key].append_parts, work[key].parts
        self._work = [work[key] for key in self._kind_of]

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        """One layer of the planned step; arrays are C-contiguous, writeable float32 numpy arrays.

        Raises AttentionError, with nothing written, where one is not, or has the wrong shape.
        """
        if not self._work:
            raise AttentionError("no step is planned; call plan(step) before run(layer, ...)")
        own, work = self._layers[layer], self._work[layer]
        try:
            fits = cpu_kernel.begin(q, k, v, out, own.address)
        except TypeError:
            # The kernel takes one type of array only. Which one does not fit is looked up when it fails,
            # since looking each time costs as much as the kernel's own overhead.
            _explain(q, k, v, out, work.rows, own.spec)
            raise
        if not fits:
            _explain(q, k, v, out, work.rows, own.spec)
        if work.append_parts > 1:
            self._crew.run(cpu_kernel.append.address, own.address, work.append_parts)
        self._crew.run(cpu_kernel.attend.address, own.address, work.parts)

    def jobs(self, q: Any, k: Any, v: Any, out: Any) -> LayerJobs:
        """See `AttentionServer.jobs`; raises AttentionError as `run` does."""
        if not self._work:
            raise AttentionError("no step is planned; call plan(step) before jobs(q, k, v, out)")
        try:
            fits = cpu_kernel.place(q, k, v, out, self._layers[0].address, len(self._layers))
        except TypeError:
            self._explain_all(q, k, v, out)
            raise
        if not fits:
            self._explain_all(q, k, v, out)
        return LayerJobs(self._jobs, self._threads)

    def _explain_all(self, q: Any, k: Any, v: Any, out: Any) -> None:
        for kind in self._kinds.values():
            _explain(q, k, v, out, self._work[0].rows, kind.spec)

    def close(self) -> None:
        """Give the pages back and end the threads."""
        self._crew.close()
        self._layers, self._work = [], []


def _explain(q: Any, k: Any, v: Any, out: Any, rows: int, spec: AttentionSpec) -> None:
    """Raise AttentionError for the first array that the kernel does not take."""
    sizes = {"q": (q, spec.q_size), "k": (k, spec.kv_size), "v": (v, spec.kv_size), "out": (out, spec.q_size)}
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


def _shape_of(spec: AttentionSpec) -> tuple[int, int, int, int | None]:
    """What the division of a step depends on."""
    return (spec.heads, spec.kv_heads, spec.head_dim, spec.window)


def _layer(
    shape: CacheShape,
    spec: AttentionSpec,
    step: npt.NDArray[Any],
    tables: tuple[Float32, Float32],
    scratch: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    record: npt.NDArray[Any],
) -> _Layer:
    """Scores leave the kernel in base 2, so log2(e) is part of the scale; with a softcap, of the cap."""
    tokens = shape.num_pages * shape.page_size * spec.kv_heads
    keys = _aligned(tokens * spec.head_dim)
    values = _aligned(tokens * cpu_kernel.padded(spec.head_dim))
    to_base_2 = math.log2(math.e)
    fields: dict[str, float] = {
        "keys": keys.ctypes.data,
        "values": values.ctypes.data,
        "cos": tables[0].ctypes.data,
        "sin": tables[1].ctypes.data,
        "positions": tables[0].shape[0],
        "half": tables[0].shape[1],
        "step": step.ctypes.data,
        "scratch": scratch[0].ctypes.data,
        "groups": scratch[1].ctypes.data,
        "scratch_floats": len(scratch[0]) * cpu_kernel.LOOK_UP // len(scratch[1]),
        "heads": spec.heads,
        "kv_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "page_size": shape.page_size,
        "window": _UNLIMITED if spec.window is None else spec.window,
        "scale": spec.scale * to_base_2 if spec.softcap is None else spec.scale / spec.softcap,
        "cap": 0.0 if spec.softcap is None else spec.softcap * to_base_2,
    }
    for name, value in fields.items():
        record[name] = value
    return _Layer(spec, record, record.ctypes.data, (keys, values, *tables))


def _write_step(record: npt.NDArray[Any], work: Work) -> None:
    """Say where the arrays of a planned step are, and how large: all fields at once, in their order."""
    places = [array.__array_interface__["data"][0] for array in work.arrays.values()]
    chunks, pages = work.arrays["page_table"].shape
    record[0] = (*places, work.rows, chunks, pages, len(work.arrays["items"]), work.append_parts)


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
