"""Which attention backend suits an engine, and what it is made with."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cleave.errors import AttentionError
from cleave.export.artifact import Artifact, load_graph
from cleave.export.widening import widen
from cleave.kvcache.backend import backend_names
from cleave.kvcache.backends import flashinfer_fit
from cleave.kvcache.spec import AttentionSpec
from cleave.runtime.engines.engine import Engine, device_engine

_log = logging.getLogger("cleave")
_NUMPY = ("cpu", "onnx")
"""Backends that take arrays in host memory, from an engine that has them there."""
_CUDA = ("triton", "flashinfer")
"""Backends that take tensors in GPU memory."""
_DETERMINISTIC = ("cpu", "triton")
"""Backends that give a row the same bits in any batch, the first one always."""


def choose_backend(
    asked: str | None,
    engine: Engine,
    specs: Sequence[AttentionSpec],
    max_position: int,
    max_tokens: int,
    *,
    deterministic: bool = False,
) -> str:
    """The backend asked for, or the fastest one for this engine, layers of these specs, and such steps.

    Raises AttentionError where the backend cannot read what the engine hands over, or a row's bits depend
    on the batch there and must not.
    """
    on_gpu = device_engine(engine) is not None and engine.device != "cpu"
    if device_engine(engine) is None:
        suitable = [name for name in backend_names() if name not in _CUDA]
        best = "cpu"
    else:
        suitable = [name for name in backend_names() if name not in _NUMPY and (on_gpu or name not in _CUDA)]
        best = "triton" if "triton" in suitable else "reference"
        if (
            asked is None
            and on_gpu
            and not deterministic
            and _flashinfer_is_faster(engine, specs, max_position, max_tokens)
        ):
            best = "flashinfer"
    if asked is not None and asked not in suitable:
        raise AttentionError(
            f"attention {asked!r} cannot read what the engine {engine.kind} on {engine.device} hands over; "
            f"with that engine there are: {', '.join(suitable)}"
        )
    chosen = asked or best
    if deterministic and chosen not in _DETERMINISTIC:
        able = [name for name in suitable if name in _DETERMINISTIC]
        raise AttentionError(
            f"attention {chosen!r} gives a row other bits in other batches, so it cannot be deterministic; "
            + (f"take attention {able[0]}" if able else "take another engine")
            + ", or leave deterministic away"
        )
    return chosen


def _flashinfer_is_faster(
    engine: Engine, specs: Sequence[AttentionSpec], max_position: int, max_tokens: int
) -> bool:
    """Whether the backend `flashinfer` is, for some steps at least, and starts without compiling anything."""
    if (
        importlib.util.find_spec("flashinfer") is None
        or engine.dtype not in flashinfer_fit.DTYPES
        or flashinfer_fit.lacking(specs) is not None
        or flashinfer_fit.reach(specs, max_position) <= flashinfer_fit.LEAST_KEYS
        or max_tokens <= flashinfer_fit.MOST_SMALL
    ):
        return False
    from cleave.kvcache.backends.flashinfer_kernels import is_hopper, why_uncompiled

    if not is_hopper(engine.device):
        return False
    why = why_uncompiled(specs, engine.dtype)
    if why is not None:
        _log.info(
            "attention is 'triton', though FlashInfer is installed: %s; one start with attention "
            "'flashinfer' compiles its kernels for all later ones, and the package flashinfer-jit-cache has "
            "them compiled",
            why,
        )
    return why is None


def backend_options(
    backend: str,
    engine: Engine,
    artifact: Artifact,
    threads: int | None,
    max_sequences: int,
    deterministic: bool = False,
) -> dict[str, Any]:
    """What `create_backend` is given beside the shape of the cache."""
    if backend in _NUMPY:
        graphs = {"graphs": _wide_graphs(artifact)} if backend == "onnx" else {}
        return {"threads": threads} | graphs
    options: dict[str, Any] = {"device": engine.device, "dtype": engine.dtype}
    if backend in _CUDA:
        options["max_sequences"] = max_sequences
    if deterministic:
        options["deterministic"] = True
    return options


def _wide_graphs(artifact: Artifact) -> list[tuple[bytes, bytes]]:
    """The artifact's batchless graphs in float32, which is what the CPU engines hand over."""
    wide: dict[Path, bytes] = {}
    pairs = artifact.batchless_graphs()
    for path in {path for pair in pairs for path in pair}:
        wide[path] = widen(load_graph(path)).SerializeToString()
    return [(wide[prefill], wide[decode]) for prefill, decode in pairs]
