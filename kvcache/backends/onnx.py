"""The onnx attention backend: the artifact's batchless graphs in ONNX Runtime, sequence by sequence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from cleave.errors import AttentionError
from cleave.kvcache.backend import CacheShape, check_specs
from cleave.kvcache.spec import AttentionSpec
from cleave.kvcache.step import StepPlan
from cleave.threads import session_options

Array = npt.NDArray[Any]
Graph = str | Path | bytes
"""An ONNX file, or its bytes."""

_FORMAT = "batchless-1"
_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
}

# A long chunk runs in parts of this many rows: the scores of a part stay in the CPU's cache, and keys
# that the causal mask would hide from a whole part are never multiplied.
_ROWS_PER_RUN = 128


class OnnxBackend:
    """The batchless graphs over pages that are updated in place.

    Takes numpy arrays, or tensors of the CPU that speak DLPack, in the dtype of the graphs (float32 or
    float16); they are read and written where they lie. The caches, [slots, kv_heads, head_dim] a
    layer, keep k after RoPE. Python runs for every sequence and layer: this is the backend to compare
    with, not the one to be fast.
    """

    def __init__(
        self, shape: CacheShape, *, graphs: Sequence[tuple[Graph, Graph]], threads: int | None = None
    ) -> None:
        """Load the (prefill, decode) graphs of every layer; layers with equal graphs share sessions.

        `threads` is for each session, where the process has no pool for all of them; None: one for each
        physical core. Raises AttentionError where a graph cannot be loaded, is not a batchless graph, or is
        not the one for its layer's spec.
        """
        specs = check_specs(shape.specs)
        if len(graphs) != len(specs):
            raise AttentionError(
                f"{len(graphs)} pairs of batchless graphs were given for {len(specs)} layers; "
                "give one pair for each layer, the same pair again where specs are equal"
            )
        if threads is not None and threads <= 0:
            raise AttentionError(f"threads is {threads}; it must be positive, or None for all physical cores")
        sessions = _Sessions(threads)
        num_slots = shape.num_pages * shape.page_size
        self._page_size = shape.page_size
        self._windows = {spec.window for spec in specs}
        self._layers = [
            _Layer(
                spec, sessions.get(prefill, "prefill", spec), sessions.get(decode, "decode", spec), num_slots
            )
            for spec, (prefill, decode) in zip(specs, graphs, strict=True)
        ]
        self._step: StepPlan | None = None
        self._runs: dict[int | None, list[_Run]] = {}

    def plan(self, step: StepPlan) -> None:
        """Find the slots of every run's context, once for each distinct window."""
        self._step = None
        self._runs = {window: _runs(step, window, self._page_size) for window in self._windows}
        self._step = step

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        """One layer of the planned step. Raises AttentionError where an array does not fit."""
        if self._step is None:
            raise AttentionError("no step is planned; call plan(step) before run(layer, ...)")
        here = self._layers[layer]
        rows, spec = self._step.tokens, here.spec
        arrays = (
            _checked("q", q, (rows, spec.q_size), here.dtype),
            _checked("k", k, (rows, spec.kv_size), here.dtype),
            _checked("v", v, (rows, spec.kv_size), here.dtype),
            _checked("out", out, (rows, spec.q_size), here.dtype),
        )
        for run in self._runs[spec.window]:
            here.run(run, *arrays)

    def close(self) -> None:
        """Give back the caches and the sessions' threads."""
        self._layers, self._runs, self._step = [], {}, None


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of a graph: rows of one chunk, and what is the same for all layers of one window."""

    rows: slice
    inputs: Mapping[str, Any]
    """positions, slots and context_slots, as OrtValues."""


def _runs(step: StepPlan, window: int | None, page_size: int) -> list[_Run]:
    return [
        _Run(
            slice(first, end),
            {
                "positions": _ort_value(step.positions[first:end]),
                "slots": _ort_value(step.slots[first:end]),
                "context_slots": _ort_value(
                    _context_slots(step.page_table[chunk], step.positions[first:end], window, page_size)
                ),
            },
        )
        for chunk in range(step.chunks)
        for first, end in _parts(int(step.offsets[chunk]), int(step.offsets[chunk + 1]))
    ]


def _parts(first: int, end: int) -> list[tuple[int, int]]:
    return [(row, min(row + _ROWS_PER_RUN, end)) for row in range(first, end, _ROWS_PER_RUN)]


def _context_slots(pages: Array, positions: Array, window: int | None, page_size: int) -> Array:
    """[context] int64: slots of all positions that a query at one of `positions` may see, in order."""
    start = 0 if window is None else max(0, int(positions[0]) - window + 1)
    end = int(positions[-1]) + 1
    first_page, end_page = start // page_size, -(-end // page_size)
    slots = pages[first_page:end_page, None].astype(np.int64) * page_size + np.arange(page_size)
    seen: Array = slots.reshape(-1)[start - first_page * page_size : end - first_page * page_size]
    return seen


class _Layer:
    """The caches of one layer, bound once as input and as output of its two graphs."""

    def __init__(self, spec: AttentionSpec, prefill: Any, decode: Any, num_slots: int) -> None:
        self.spec = spec
        self.dtype = _dtype(decode)
        if _dtype(prefill) != self.dtype:
            raise AttentionError(
                f"the prefill graph is {_dtype(prefill)} and the decode graph {self.dtype}; "
                "export both in one dtype"
            )
        shape = (num_slots, spec.kv_heads, spec.head_dim)
        caches = {name: _ort_value(np.zeros(shape, self.dtype)) for name in ("k_cache", "v_cache")}
        self._prefill = _bind(prefill, caches)
        self._decode = _bind(decode, caches)

    def run(self, run: _Run, q: Array, k: Array, v: Array, out: Array) -> None:
        rows = run.rows
        session, binding = self._decode if rows.stop - rows.start == 1 else self._prefill
        for name, array in (("q", q), ("k", k), ("v", v)):
            binding.bind_cpu_input(name, array[rows])
        for name, value in run.inputs.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output("out", _ort_value(out[rows]))
        session.run_with_iobinding(binding)


def _bind(session: Any, caches: Mapping[str, Any]) -> tuple[Any, Any]:
    """The session and a binding in which each cache is input and output: the graph writes in place."""
    binding = session.io_binding()
    for name, cache in caches.items():
        binding.bind_ortvalue_input(name, cache)
        binding.bind_ortvalue_output(f"{name}_out", cache)
    return session, binding


def _ort_value(array: Array) -> Any:
    """An OrtValue over the array's own memory, which it keeps alive."""
    return ort.OrtValue.ortvalue_from_numpy(array)


def _checked(name: str, given: Any, shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
    """The array as numpy sees it, without a copy; ONNX Runtime would copy what is not contiguous."""
    array: Array = given if isinstance(given, np.ndarray) else np.from_dlpack(given)
    if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
        order = "" if array.flags.c_contiguous else ", not contiguous"
        raise AttentionError(
            f"{name} is {list(array.shape)} {array.dtype}{order}; it must be contiguous, "
            f"{list(shape)} and {dtype} as the batchless graphs are"
        )
    return array


class _Sessions:
    """Sessions by graph: equal graphs are loaded once."""

    def __init__(self, threads: int | None) -> None:
        self._options = session_options(threads)
        # Memory patterns are kept for each context length, so they would never end.
        self._options.enable_mem_pattern = False
        self._sessions: dict[Graph, Any] = {}

    def get(self, graph: Graph, kind: str, spec: AttentionSpec) -> Any:
        """The session of a graph, checked to be the `kind` ("prefill", "decode") of this spec."""
        if graph not in self._sessions:
            self._sessions[graph] = self._load(graph, kind)
        session = self._sessions[graph]
        metadata = session.get_modelmeta().custom_metadata_map
        if metadata.get("cleave.format") != _FORMAT or metadata.get("cleave.graph") != kind:
            raise AttentionError(
                f"{_describe(graph, kind)} is a graph of format {metadata.get('cleave.format')!r} and kind "
                f"{metadata.get('cleave.graph')!r}; it must be {_FORMAT!r} and {kind!r}: export it anew"
            )
        found = AttentionSpec.from_dict(json.loads(metadata["cleave.attention_spec"]))
        if found != spec:
            raise AttentionError(
                f"{_describe(graph, kind)} does not fit its layer: it was made for {found}, "
                f"and the layer is {spec}; export it anew"
            )
        return session

    def _load(self, graph: Graph, kind: str) -> Any:
        source = str(graph) if isinstance(graph, Path) else graph
        try:
            return ort.InferenceSession(source, self._options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no base of their own
            raise AttentionError(f"{_describe(graph, kind)} cannot be loaded: {error}") from error


def _describe(graph: Graph, kind: str) -> str:
    return f"the {kind} graph" if isinstance(graph, bytes) else f"the {kind} graph {str(graph)!r}"


def _dtype(session: Any) -> np.dtype[Any]:
    element = next(node.type for node in session.get_inputs() if node.name == "k_cache")
    if element not in _DTYPES:
        raise AttentionError(
            f"the batchless graphs are {element}, which numpy arrays cannot be; this backend runs float32 "
            "and float16: export the batchless graphs in one of them"
        )
    return _DTYPES[element]
