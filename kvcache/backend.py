"""The protocol that every attention backend follows, and the registry that finds one by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cleave.errors import AttentionError
from cleave.kvcache.spec import AttentionSpec
from cleave.kvcache.step import StepPlan


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What a backend allocates once: `num_pages` pages of `page_size` tokens for each layer's spec.

    `max_position` bounds positions (exclusive), `max_tokens` the rows of one step.
    """

    specs: tuple[AttentionSpec, ...]
    num_pages: int
    page_size: int
    max_position: int
    max_tokens: int


class AttentionBackend(Protocol):
    """RoPE, the append to the pages, and attention, for all rows of a step at once.

    A backend owns the storage of the pages in the layout that suits it. It holds no state of its own
    besides: which page belongs to whom is in the StepPlan.

    One whose `run` can be captured in a CUDA graph also has the property `graph_key`; see
    `AttentionServer.graph_key`. One of compiled code has `jobs(q, k, v, out)`; see `AttentionServer.jobs`.
    One with `takes_padding` set takes tensors of more rows; see `AttentionServer.takes_padding`.
    """

    def plan(self, step: StepPlan) -> None:
        """All host work that does not depend on the layer. Called once a step.

        Where it raises, no step is planned: not the one before either.
        """

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        """Append k and v of every row to the pages, attend, and write out. Called once a layer.

        q, out: [tokens, heads * head_dim]; k, v: [tokens, kv_heads * head_dim], before RoPE;
        row-major, one dtype, on the backend's device. out is overwritten, never read.
        """

    def close(self) -> None:
        """Give back memory and threads; the backend is not used afterwards."""


BackendFactory = Callable[..., AttentionBackend]
"""Called with (CacheShape, **options)."""


@dataclass(frozen=True, slots=True)
class LayerJobs:
    """What runs every layer of the planned step: compiled functions, which threads of others may call."""

    entries: npt.NDArray[np.int64]
    """[layers, jobs, 3]: the address of a C function `void (int64 block, int64 part, int64 thread)`, its
    block, and how many parts it is to be called for, side by side. Those of a layer run one after another."""
    threads: int
    """`thread` has to be below that, and two calls with the same one must not overlap."""


@dataclass(frozen=True, slots=True)
class _Entry:
    module: str
    factory: str
    purpose: str


# Each module has a class that is called with (CacheShape, **options). They are imported when first
# asked for, so that a missing optional package costs nothing until then.
_BACKENDS = {
    "reference": _Entry(
        "cleave.kvcache.backends.reference", "ReferenceBackend", "torch, any device, readable"
    ),
    "onnx": _Entry(
        "cleave.kvcache.backends.onnx", "OnnxBackend", "the artifact's batchless graphs, one by one"
    ),
    "cpu": _Entry("cleave.kvcache.backends.cpu", "CpuBackend", "compiled kernels over the whole batch"),
    "triton": _Entry("cleave.kvcache.backends.triton", "TritonBackend", "kernels for NVIDIA GPUs"),
    "flashinfer": _Entry(
        "cleave.kvcache.backends.flashinfer",
        "FlashInferBackend",
        "those of triton, and FlashInfer's for long histories on Hopper GPUs",
    ),
}


def backend_names() -> tuple[str, ...]:
    """The names that `create_backend` takes."""
    return tuple(_BACKENDS)


def create_backend(name: str, shape: CacheShape, **options: Any) -> AttentionBackend:
    """Make the backend called `name`.

    Raises AttentionError for an unknown name, MissingPackage for an extra that is not installed.
    """
    entry = _BACKENDS.get(name)
    if entry is None:
        known = "; ".join(f"{key} ({value.purpose})" for key, value in _BACKENDS.items())
        raise AttentionError(f"there is no attention backend {name!r}; there are: {known}")
    factory = getattr(importlib.import_module(entry.module), entry.factory)
    backend: AttentionBackend = factory(shape, **options)
    return backend


def check_specs(specs: Sequence[AttentionSpec]) -> tuple[AttentionSpec, ...]:
    """The specs as a tuple; raises AttentionError where there is none."""
    if not specs:
        raise AttentionError("an attention server needs the attention spec of at least one layer")
    return tuple(specs)
