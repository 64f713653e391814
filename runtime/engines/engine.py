"""The protocol that every engine follows, and the registry that finds a kind by name."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from cleave.errors import EngineError, MissingPackage
from cleave.export.artifact import Artifact


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


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What every engine kind is built with."""

    max_tokens: int
    """Rows of the largest step."""
    threads: int | None = None
    """CPU threads; None: one for each physical core."""


@dataclass(frozen=True, slots=True)
class _Kind:
    module: str
    factory: str
    package: str
    extra: str


# In the order of preference for `engine=None`. Each factory is called with (Artifact, EngineOptions).
_KINDS = {
    "onnxruntime": _Kind("cleave.runtime.engines.onnxruntime", "OnnxRuntimeEngine", "onnxruntime", "cpu"),
}


def engine_kinds() -> tuple[str, ...]:
    """The kinds that `create_engine` takes."""
    return tuple(_KINDS)


def check_engine_kind(kind: str | None) -> None:
    """Raises EngineError for a kind that is not there; None, the best one, is allowed."""
    if kind is not None and kind not in _KINDS:
        raise EngineError(f"there is no engine kind {kind!r}; kinds are: {', '.join(_KINDS)}")


def create_engine(kind: str | None, artifact: Artifact, options: EngineOptions) -> Engine:
    """Build an engine; None takes the best kind that this machine can run.

    Raises EngineError for an unknown kind, MissingPackage where its package is not installed.
    """
    check_engine_kind(kind)
    if kind is None:
        kind = next((name for name, entry in _KINDS.items() if _installed(entry)), next(iter(_KINDS)))
    entry = _KINDS[kind]
    if not _installed(entry):
        raise MissingPackage(entry.package, entry.extra, f"the engine {kind}")
    factory = getattr(importlib.import_module(entry.module), entry.factory)
    engine: Engine = factory(artifact, options)
    return engine


def _installed(entry: _Kind) -> bool:
    return importlib.util.find_spec(entry.package) is not None
