"""Bytes and operations of a step, counted from the model's shape.

A lower bound of what any program has to do: every weight is read once a step, every cached key and value
that a chunk may see is read once a layer, every new one is written once. Activations are not counted, since
they can stay in the processor's caches. Operations are the multiplies and adds of linear layers and of
attention; norms, rotary encoding, softmax and activation functions are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cleave.export.artifact import Artifact
from cleave.export.manifest import LM_HEAD, Manifest
from cleave.kvcache.spec import AttentionSpec
from cleave.kvcache.step import Chunk

_SCALE_BYTES = 4


@dataclass(frozen=True, slots=True)
class Work:
    """What a step has to do at least."""

    weight_bytes: int = 0
    """Weights read, the embedding's rows included."""
    kv_read_bytes: int = 0
    kv_written_bytes: int = 0
    operations: int = 0
    """Floating-point operations; a multiply and an add are two."""

    @property
    def bytes(self) -> int:
        """Bytes that have to come from memory or to go there."""
        return self.weight_bytes + self.kv_read_bytes + self.kv_written_bytes

    def __add__(self, other: Work) -> Work:
        return Work(
            self.weight_bytes + other.weight_bytes,
            self.kv_read_bytes + other.kv_read_bytes,
            self.kv_written_bytes + other.kv_written_bytes,
            self.operations + other.operations,
        )


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder-only model as the counts see it."""

    hidden: int
    vocab: int
    linear: int
    """Parameters of the matrices of all layers; lm_head and the embedding are apart."""
    vectors: int
    """Parameters of norms and biases."""
    specs: tuple[AttentionSpec, ...]
    """The attention spec of every layer."""
    quantized: int = 0
    """Of the parameters of linear layers and lm_head, those that are quantised."""
    quantized_bytes: int = 0
    """What these take, scales and zero points included."""
    embedding_row_bytes: int | None = None
    """Of one row of a quantised embedding; None: it is in floats as the other weights."""

    @classmethod
    def of(cls, artifact: Artifact) -> ModelShape:
        """The shape of an artifact, from the tensors it stores."""
        manifest = artifact.manifest
        quantization = manifest.quantization
        tensors = quantization.tensors if quantization else ()
        stored = set(quantization.stored_names) if quantization else set()
        apart = {manifest.embedding, LM_HEAD}
        sizes = {
            name: tensor.shape
            for name, tensor in artifact.tensors.items()
            if name not in stored and not name.startswith(tuple(apart))
        }
        return cls(
            hidden=manifest.hidden_size,
            vocab=manifest.vocab_size,
            linear=sum(shape[0] * shape[1] for shape in sizes.values() if len(shape) == 2)
            + sum(tensor.out * tensor.inputs for tensor in tensors if tensor.name not in apart),
            vectors=sum(shape[0] for shape in sizes.values() if len(shape) == 1),
            specs=manifest.layer_specs,
            quantized=sum(tensor.out * tensor.inputs for tensor in tensors),
            quantized_bytes=sum(artifact.tensors[name].nbytes for name in stored),
            embedding_row_bytes=_row_bytes(manifest),
        )

    @classmethod
    def llama(
        cls, *, hidden: int, intermediate: int, layers: int, vocab: int, spec: AttentionSpec
    ) -> ModelShape:
        """The shape of a Llama without biases, by its config."""
        linear = 2 * hidden * (spec.q_size + spec.kv_size) + 3 * hidden * intermediate
        return cls(hidden, vocab, layers * linear, (2 * layers + 1) * hidden, (spec,) * layers)

    @property
    def step_parameters(self) -> int:
        """Parameters that every step reads: all but the embedding, of which only rows are read."""
        return self.linear + self.vectors + self.vocab * self.hidden

    def step_weight_bytes(self, weight_item: int) -> int:
        """Bytes of what every step reads, those that are not quantised with `weight_item` each."""
        return self.quantized_bytes + (self.step_parameters - self.quantized) * weight_item

    def work(self, step: Sequence[Chunk], rows: int, *, weight_item: int, kv_item: int) -> Work:
        """The work of one step, with logits for `rows` of its tokens.

        `weight_item` and `kv_item` are the bytes of one weight that is not quantised and of one cached value.
        """
        tokens = sum(chunk.count for chunk in step)
        attention = sum(4 * spec.q_size * _pairs(chunk, spec.window) for spec in self.specs for chunk in step)
        history = sum(
            2 * spec.kv_size * _history(chunk, spec.window) for spec in self.specs for chunk in step
        )
        row = self.hidden * weight_item if self.embedding_row_bytes is None else self.embedding_row_bytes
        new = sum(2 * spec.kv_size for spec in self.specs) * tokens
        return Work(
            weight_bytes=self.step_weight_bytes(weight_item) + tokens * row,
            kv_read_bytes=history * kv_item,
            kv_written_bytes=new * kv_item,
            operations=2 * self.linear * tokens + 2 * self.vocab * self.hidden * rows + attention,
        )


def _row_bytes(manifest: Manifest) -> int | None:
    quantization = manifest.quantization
    return manifest.hidden_size + _SCALE_BYTES if quantization and quantization.embedding else None


def total(works: Iterable[Work]) -> Work:
    """The sum of the work of several steps."""
    return sum(works, Work())


def _pairs(chunk: Chunk, window: int | None) -> int:
    """(query, key) pairs of a chunk: the query at position p sees p + 1 keys, at most `window`."""
    seen = np.arange(chunk.start + 1, chunk.start + chunk.count + 1)
    return int(seen.sum() if window is None else np.minimum(seen, window).sum())


def _history(chunk: Chunk, window: int | None) -> int:
    """Tokens before the chunk that its first query sees, which is the one that sees most of them."""
    return chunk.start if window is None else min(chunk.start, window - 1)
