"""How a model is loaded, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

from cleave.errors import AttentionError, EngineError
from cleave.kvcache.backend import backend_names
from cleave.kvcache.memory_plan import STEP_TOKENS
from cleave.runtime.engines.engine import EngineOptions
from cleave.runtime.engines.kinds import check_engine_kind

_COUNTS = (
    "max_model_len",
    "kv_cache_bytes",
    "max_tokens_per_step",
    "max_sequences",
    "page_size",
    "threads",
    "max_unread_tokens",
)


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How a model is loaded. None means: what suits the artifact and this machine."""

    engine: str | None = None
    attention: str | None = None
    """Attention backend; None: the fastest that reads what the engine hands over."""
    device: str | None = None
    """Where the engine computes: "cpu" or "cuda", the current GPU. None: what the engine kind is made for."""
    max_model_len: int | None = None
    """Longest sequence, prompt and answer together; None: the model's context."""
    kv_cache_bytes: int | None = None
    """Memory for the KV cache; None: what `max_sequences` of the longest need, but at most a quarter of
    the free memory, and nine tenths of a GPU's."""
    max_tokens_per_step: int | None = None
    """Rows of the largest step; None: 512 with `onnxruntime`, else 8192."""
    max_sequences: int = 64
    """Most requests that run at once; more wait."""
    page_size: int = 16
    """Tokens of a page."""
    prefix_cache: bool = True
    """Keep full pages, and use them again for requests that begin alike."""
    ahead: bool = True
    """On a GPU, start a step before the tokens of the one before it are known; see docs/gpu.md. False: each
    step waits for them. They are chosen on the GPU either way."""
    threads: int | None = None
    max_unread_tokens: int = 4096
    """Tokens that the reader of a stream may leave unread before its request is called off."""
    verify: bool = True
    """Compare the artifact's files with their SHA-256 first."""
    cache: str | Path | None = None
    """Folder of the engine cache; None: CLEAVE_CACHE, else the user's cache directory."""
    allow_build: bool = True
    """Build an engine that the cache lacks; else that is an error, which says why it is not reused."""
    deterministic: bool = False
    """A request's answer has the same bits whatever else is in the batch. On a CPU it always has."""

    def __post_init__(self) -> None:
        """Raises EngineError for values that are not allowed, AttentionError for an unknown backend."""
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, Integral) or value < 1):
                raise EngineError(f"{name} is {value!r}; it must be a whole number, and at least 1")
        # Asked for by name before the files are compared with their digests, which takes a while.
        check_engine_kind(self.engine)
        if self.attention is not None and self.attention not in backend_names():
            known = ", ".join(backend_names())
            raise AttentionError(f"there is no attention backend {self.attention!r}; there are: {known}")


def engine_options(
    kind: str, options: ModelOptions, max_length: int, compute_capability: str | None = None
) -> EngineOptions:
    """What an engine is made with, or built ahead of time, for sequences of up to `max_length` tokens."""
    most = options.max_tokens_per_step or STEP_TOKENS["cpu" if kind == "onnxruntime" else "cuda"]
    most = min(most, options.max_sequences * max_length)
    return EngineOptions(
        max_tokens=most,
        max_sequences=min(options.max_sequences, most),
        threads=options.threads,
        device=options.device,
        compute_capability=compute_capability,
        deterministic=options.deterministic,
    )
