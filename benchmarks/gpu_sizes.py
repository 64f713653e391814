"""What a step of a model has to read and to compute at least."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cleave.export.artifact import Artifact
from cleave.kvcache.budget import page_bytes
from cleave.kvcache.memory_plan import ITEM_BYTES


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of an artifact whose weights are not quantised."""

    read: int
    """Bytes of weights that a decode step reads: all but the embedding."""
    token: int
    """Bytes of KV of one token, all layers."""
    parameters: int
    """Of the layers alone: the head sees one row of a prompt."""
    layers: int
    q_size: int

    @classmethod
    def of(cls, artifact: Artifact) -> Sizes:
        """Those of an artifact."""
        manifest, tensors = artifact.manifest, artifact.tensors
        embedding = tensors[manifest.embedding].nbytes
        head = math.prod((manifest.vocab_size, manifest.hidden_size))
        read = sum(tensor.nbytes for tensor in tensors.values()) - embedding
        return cls(
            read,
            page_bytes(manifest.layer_specs, 1, ITEM_BYTES[manifest.dtype]),
            read // (embedding // head) - head,
            manifest.num_layers,
            manifest.layer_specs[0].q_size,
        )

    def decode_bytes(self, batch: int, context: float) -> float:
        """Bytes that a decode step of `batch` requests with `context` tokens each reads."""
        return self.read + batch * context * self.token

    def prefill_flops(self, batch: int, prompt: int) -> int:
        """Multiplications and additions of `batch` prompts, under the causal mask."""
        tokens = batch * prompt
        return 2 * self.parameters * tokens + 2 * self.layers * self.q_size * prompt * tokens
