"""The protocol that every engine follows, and the registry that finds a kind by name."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy.typing as npt

from cleave.errors import EngineError, MissingPackage
from cleave.export.artifact import Artifact
from cleave.runtime.engines.cuda import cuda_is_usable


class Attention(Protocol):
    """What an engine needs of the attention server."""

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        """See `cleave.kvcache.server.AttentionServer.run`."""


class Observer(Protocol):
    """Sees the residual stream of an engine, for comparisons; q, k, v and out pass the attention server."""

    def residual(self, layer: int, residual: Any) -> None:
        """The residual [tokens, hidden] after `layer`; -1 is the embedding, before the first layer.

        Called in the order of the layers. What is written into `residual` is what the next piece reads;
        after the last layer it is too late for that.
        """


class Engine(Protocol):
    """The batchful part of a model, compiled. It knows nothing of requests, positions or caches."""

    kind: str
    device: str
    """Where the tensors lie that the attention server gets: "cpu" or "cuda:0"."""
    dtype: str
    """What weights are held and multiplied in: "float32", "float16" or "bfloat16"."""
    notes: tuple[str, ...]
    """What a user should know of how this engine runs the artifact, a sentence each."""

    def run(
        self, token_ids: npt.NDArray[Any], logit_rows: npt.NDArray[Any], attention: Attention
    ) -> npt.NDArray[Any]:
        """One step over the tokens of all requests.

        token_ids [tokens] int64; logit_rows [rows] int64, rows of the step whose logits are wanted.
        Calls `attention.run` once for each layer. Returns logits [rows, vocab] float32, in memory
        that the next call overwrites.
        """

    def observe(self, observer: Observer | None) -> None:
        """Show an observer the residual stream from the next `run` on; None ends that.

        Raises EngineError where more than the residual is carried from piece to piece.
        """

    def close(self) -> None:
        """Give back memory and threads; the engine is not used afterwards."""


class DeviceEngine(Engine, Protocol):
    """An engine whose tensors are torch's, on `device`. What it adds spares the way over the host."""

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The sizes that decode steps are padded to, to be replayed as graphs; empty where none are.

        Running a decode step of each, the largest one first, captures them before the first request.
        """

    def run_on_device(self, token_ids: Any, logit_rows: npt.NDArray[Any], attention: Attention) -> Any:
        """As `run`, but the logits [rows, vocab] float32 stay where they are: a torch tensor.

        They are valid until the next call. token_ids [tokens] may be a torch tensor on the device, such
        as the tokens that the last step sampled. Returns without waiting for the device.
        """

    def free_memory(self) -> int | None:
        """Bytes of the device that are free beside the weights and the activations of the largest step.

        None where the device is the host.
        """


def device_engine(engine: Engine) -> DeviceEngine | None:
    """The engine as a DeviceEngine, where it is one."""
    return cast(DeviceEngine, engine) if hasattr(engine, "run_on_device") else None


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What every engine kind is built with."""

    max_tokens: int
    """Rows of the largest step."""
    max_sequences: int = 64
    """Most tokens of a step in which every request decodes one."""
    threads: int | None = None
    """CPU threads; None: one for each physical core."""
    device: str | None = None
    """Where to compute; None: what the kind is made for."""
    cache: Path | None = None
    """A folder with what was built of this artifact, for this kind and machine; None: nothing was."""


@dataclass(frozen=True, slots=True)
class _Kind:
    module: str
    factory: str
    package: str
    extra: str


# Each factory is called with (Artifact, EngineOptions).
_KINDS = {
    "onnxruntime": _Kind("cleave.runtime.engines.onnxruntime", "OnnxRuntimeEngine", "onnxruntime", "cpu"),
    "inductor": _Kind("cleave.runtime.engines.inductor.engine", "InductorEngine", "torch", "gpu"),
    "tensorrt_rtx": _Kind(
        "cleave.runtime.engines.tensorrt_rtx.engine", "TensorRtRtxEngine", "tensorrt_rtx_bindings", "rtx"
    ),
}


def engine_kinds() -> tuple[str, ...]:
    """The kinds that `create_engine` takes."""
    return tuple(_KINDS)


def check_engine_kind(kind: str | None) -> None:
    """Raises EngineError for a kind that is not there; None, the best one, is allowed."""
    if kind is not None and kind not in _KINDS:
        raise EngineError(f"there is no engine kind {kind!r}; kinds are: {', '.join(_KINDS)}")


def best_engine_kind() -> str:
    """The fastest kind that this machine can run: "inductor" where there is an NVIDIA GPU for it."""
    return "inductor" if cuda_is_usable() else "onnxruntime"


def create_engine(kind: str | None, artifact: Artifact, options: EngineOptions) -> Engine:
    """Build an engine; None takes the best kind that this machine can run.

    Raises EngineError for an unknown kind, MissingPackage where its package is not installed.
    """
    check_engine_kind(kind)
    kind = kind or best_engine_kind()
    entry = _KINDS[kind]
    if not _installed(entry):
        raise MissingPackage(entry.package, entry.extra, f"the engine {kind}")
    factory = getattr(importlib.import_module(entry.module), entry.factory)
    engine: Engine = factory(artifact, options)
    return engine


def _installed(entry: _Kind) -> bool:
    return importlib.util.find_spec(entry.package) is not None
