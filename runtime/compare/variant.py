"""What is compared: an engine kind over an attention backend; and the comparison of several of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cleave.export.artifact import Artifact
from cleave.runtime.compare.difference import Comparison, compare_traces, tolerance_of
from cleave.runtime.compare.engine_run import trace_engine
from cleave.runtime.compare.trace import Trace
from cleave.runtime.compare.truth import trace_transformers
from cleave.runtime.model import Model
from cleave.runtime.model_options import ModelOptions


@dataclass(frozen=True, slots=True)
class Variant:
    """An engine kind over an attention backend."""

    folder: Path
    kind: str
    backend: str
    threads: int | None = None

    @property
    def name(self) -> str:
        """As the tables call it."""
        return f"{self.kind} + {self.backend}"

    def load(self, tokens: int) -> Model:
        """The digests were compared when the artifact was opened."""
        return Model(
            self.folder,
            ModelOptions(
                engine=self.kind,
                attention=self.backend,
                max_model_len=tokens,
                max_sequences=1,
                threads=self.threads,
                verify=False,
            ),
        )


def compare_all(
    artifact: Artifact,
    variants: Sequence[Variant],
    checkpoint: Path | None,
    tokens: Sequence[int],
    tolerance: float | None,
) -> Iterator[Comparison]:
    """Compare every variant with transformers, or without a checkpoint with the first variant.

    One model is in memory at a time. `tolerance` None: by the engine's dtype, or by how the artifact is
    quantised. Raises what loading raises, and what `trace_transformers` does.
    """
    layers, quantization = artifact.manifest.num_layers, artifact.manifest.quantization
    reference: tuple[str, Trace] | None = None
    if checkpoint is not None:
        reference = "transformers", trace_transformers(checkpoint, artifact, tokens)
    for variant in variants:
        model = variant.load(len(tokens))
        try:
            kind = quantization.method if quantization else model.engine.dtype
            allowed = tolerance_of(kind, tolerance)
            free = trace_engine(model, layers, tokens)
            if reference is None:
                reference = variant.name, free
                continue
            name, truth = reference
            forced = trace_engine(model, layers, tokens, truth)
            yield compare_traces(truth, forced, free, (variant.name, name), kind, allowed)
        finally:
            model.close()
