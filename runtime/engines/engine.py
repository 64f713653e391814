"""The protocol that every engine follows, and how one is made."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy.typing as npt

from cleave.export.artifact import Artifact
from cleave.kvcache.backend import LayerJobs
from cleave.kvcache.memory_plan import SCORED_ROWS
from cleave.runtime.engine_cache.cache import EngineCache
from cleave.runtime.engines.builder import BuildProgress, EngineBuilder, get_engine
from cleave.runtime.engines.cuda import cuda_is_usable
from cleave.runtime.engines.kinds import EngineKind, engine_kind


class Attention(Protocol):
    """What an engine needs of the attention server."""

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        """See `cleave.kvcache.server.AttentionServer.run`."""


class CompiledAttention(Attention, Protocol):
    """An attention server that can be run by compiled code, without Python between two layers."""

    def jobs(self, q: Any, k: Any, v: Any, out: Any) -> LayerJobs | None:
        """See `cleave.kvcache.server.AttentionServer.jobs`."""


class Observer(Protocol):
    """Sees the residual stream of an engine, for comparisons; q, k, v and out pass the attention server."""

    def residual(self, layer: int, residual: Any) -> None:
        """The residual [tokens, hidden] after `layer`; -1 is the embedding, before the first layer.

        Called in the order of the layers. What is written into `residual` is what the next piece reads;
        after the last layer it is too late for that. Keep a copy of it: the next piece may overwrite it.
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
        Calls `attention.run` once for each layer, or has what `attention.jobs` gives run instead, where
        there is that; see `CompiledAttention`. Returns logits [rows, vocab] float32, in memory
        that the next call overwrites.
        """

    def observe(self, observer: Observer | None) -> None:
        """Show an observer the residual stream from the next `run` on; None ends that.

        Raises EngineError where more than the residual is carried from piece to piece.
        """

    def close(self) -> None:
        """Give back memory and threads; the engine is not used afterwards."""


@dataclass(frozen=True, slots=True)
class DeviceOutput:
    """What a step leaves on the device: torch tensors, valid until the next step is launched."""

    logits: Any
    """[rows, vocab] float32."""
    likeliest: Any
    """[rows] int64: the likeliest token of each row, the first of equals."""
    best: Any
    """[rows] float32: its logit, which is not finite where the row's logits are no numbers."""


class DeviceEngine(Engine, Protocol):
    """An engine whose tensors are torch's, on `device`. What it adds spares the way over the host."""

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The sizes that decode steps are padded to, to be replayed as graphs; empty where none are.

        Running a decode step of each, the largest one first, captures them before the first request.
        """

    def launch(
        self,
        token_ids: Any,
        logit_rows: npt.NDArray[Any],
        attention: Attention,
        sampled: Any = None,
    ) -> DeviceOutput:
        """As `run`, but returns without waiting for the device, where all that comes of the step stays.

        token_ids [tokens] may be a torch tensor on the device itself.
        sampled [n] int64, a torch tensor on the device: tokens that an earlier step samples, `likeliest` of
        it or others; a token id of -1 - r is its row r.
        """

    def free_memory(self) -> int | None:
        """Bytes of the device that are free beside the weights and the activations of the largest step.

        None where the device is the host.
        """


def device_engine(engine: Engine) -> DeviceEngine | None:
    """The engine as a DeviceEngine, where it is one."""
    return cast(DeviceEngine, engine) if hasattr(engine, "launch") else None


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What every engine kind is built with."""

    max_tokens: int
    """Rows of the largest step."""
    max_sequences: int = 64
    """Most tokens of a step in which every request decodes one."""
    threads: int | None = None
    """CPU threads; None: see `cleave.threads.physical_cores`."""
    device: str | None = None
    """Where to compute; None: what the kind is made for."""
    compute_capability: str | None = None
    """Of the GPUs to build for, by commas: "8.6,8.9". None: that of the GPU here."""
    cache: Path | None = None
    """A folder with what was built of this artifact, for this kind and machine; None: nothing was."""
    deterministic: bool = False
    """The logits of a row have the same bits whatever else is in the step."""

    @property
    def logit_rows(self) -> int:
        """Rows of a step whose logits are asked for, at most."""
        return min(self.max_tokens, self.max_sequences + SCORED_ROWS)


def best_engine_kind(artifact: Artifact | None = None) -> str:
    """The fastest kind that this machine can run: "inductor" where there is an NVIDIA GPU for it.

    A quantised `artifact` leaves only the kinds that run it.
    """
    is_quantized = artifact is not None and artifact.manifest.quantization is not None
    return "inductor" if cuda_is_usable() and not is_quantized else "onnxruntime"


def create_engine(
    kind: str | None,
    artifact: Artifact,
    options: EngineOptions,
    *,
    cache: EngineCache | None = None,
    allow_build: bool = True,
    progress: BuildProgress | None = None,
) -> Engine:
    """Make an engine; None takes the best kind that this machine can run.

    What the kind builds ahead of time comes out of `cache` (None: that of the user), and is built on first
    use where the engine cannot do without; with `options.cache` neither is done. Raises EngineError for an
    unknown kind or options that it cannot keep, MissingPackage where its package is not installed, CacheError
    where it would have to be built and `allow_build` is False.
    """
    found = _checked(kind or best_engine_kind(artifact), artifact, options)
    factory = found.load(found.factory)
    builder = None if options.cache is not None else _builder(found, artifact, options)
    built = None
    if builder is not None:
        cache = cache or EngineCache()
        if builder.is_optional:
            built = cache.find(builder.key, accept=builder.serves)
        else:
            label = engine_label(artifact)
            built = get_engine(builder, cache, label=label, allow_build=allow_build, progress=progress)
    if built is None:
        alone: Engine = factory(artifact, options)
        return alone
    try:
        engine: Engine = factory(artifact, replace(options, cache=built.folder))
    except BaseException:
        built.close()
        raise
    weakref.finalize(engine, built.close)  # some load their files when they are first needed
    return engine


def engine_builder(kind: str, artifact: Artifact, options: EngineOptions) -> EngineBuilder | None:
    """What builds engines of a kind ahead of time; None where there is nothing to build.

    Raises EngineError for an unknown kind or for options that it cannot build for, MissingPackage where its
    package is not installed.
    """
    return _builder(_checked(kind, artifact, options), artifact, options)


def _checked(kind: str, artifact: Artifact, options: EngineOptions) -> EngineKind:
    """A kind that can run the artifact with these options; raises EngineError where it cannot."""
    found = engine_kind(kind)
    found.check(artifact, device=options.device, deterministic=options.deterministic)
    return found


def _builder(kind: EngineKind, artifact: Artifact, options: EngineOptions) -> EngineBuilder | None:
    quantization = artifact.manifest.quantization
    # ONNX Runtime 1.31.1 computes other values with weights of MatMulNBits that it packed into a file.
    if kind.builder is None or (quantization is not None and quantization.method == "int4"):
        return None
    builder: EngineBuilder = kind.load(kind.builder)(artifact, options)
    return builder


def engine_label(artifact: Artifact) -> str:
    """What the engines of an artifact are called in lists: its checkpoint, and how that was quantised."""
    name = Path(artifact.manifest.source).name or artifact.folder.name
    quantization = artifact.manifest.quantization
    return name if quantization is None else f"{name}, {quantization.method}"
