"""The memory plan: what a model takes of a given memory, and what is left for tokens and requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cleave.errors import PlanError
from cleave.kvcache.budget import mib, page_bytes, pages_for
from cleave.kvcache.spec import AttentionSpec

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_LOGIT_BYTES = 4


@dataclass(frozen=True, slots=True)
class StepSize:
    """Rows of the largest step."""

    max_tokens: int = 512
    max_sequences: int = 64


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of each part. Weights and KV cache are exact, but for the padding of a backend;
    activations are an estimate from above.
    """

    memory: int
    """Bytes that there are in all."""
    weights: int
    activations: int
    page_bytes: int
    """One page in all layers."""
    page_size: int
    """Tokens of a page."""
    max_model_len: int
    """Longest sequence, prompt and answer together."""

    @property
    def pages(self) -> int:
        """KV pages that fit beside weights and activations."""
        return max(0, self.memory - self.weights - self.activations) // self.page_bytes

    @property
    def kv_bytes(self) -> int:
        """Bytes of these pages; as `kv_cache_bytes` they make a model load just that many."""
        return self.pages * self.page_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of k and v of one token in all layers."""
        return self.page_bytes // self.page_size

    @property
    def tokens(self) -> int:
        """Tokens that fit at once, of all requests together."""
        return self.pages * self.page_size

    @property
    def requests(self) -> int:
        """Requests of `max_model_len` tokens that fit at once; of shorter ones, more do."""
        return self.pages // pages_for(self.max_model_len, self.page_size)

    def check(self) -> None:
        """Raise PlanError where not even one request of `max_model_len` tokens fits."""
        if self.requests:
            return
        request = pages_for(self.max_model_len, self.page_size) * self.page_bytes
        lacking = self.weights + self.activations + request - self.memory
        needs = (
            f"weights need {mib(self.weights)}, activations {mib(self.activations)} and one request of "
            f"{self.max_model_len} tokens {mib(request)}: {mib(lacking)} more than the {mib(self.memory)} "
            "that there are"
        )
        if self.pages:
            raise PlanError(f"{needs}; lower max_model_len to {self.tokens}, or give more memory")
        if self.weights + self.page_bytes < self.memory:
            raise PlanError(f"{needs}; lower max_tokens_per_step and max_model_len, or give more memory")
        raise PlanError(f"{needs}; take a narrower dtype or a smaller model, or give more memory")


def plan_memory(
    *,
    memory: int,
    parameters: int,
    specs: Sequence[AttentionSpec],
    hidden: int,
    intermediate: int,
    vocab: int,
    dtype: str,
    max_model_len: int,
    page_size: int = 16,
    step: StepSize | None = None,
    quantized_bytes: int | None = None,
) -> MemoryPlan:
    """The plan for a model whose weights, activations and KV cache are all kept in `dtype`.

    `quantized_bytes` is what the weights take instead where they are quantised; gate and up, as q, k and v,
    are then one product that is split. `memory` is in bytes, `parameters` and the widths in values;
    `specs` has one entry for each layer.
    """
    item = ITEM_BYTES[dtype]
    step = step or StepSize()
    return MemoryPlan(
        memory=memory,
        weights=parameters * item if quantized_bytes is None else quantized_bytes,
        activations=_activations(
            specs, hidden, intermediate, vocab, item, step, is_joined=quantized_bytes is not None
        ),
        page_bytes=page_bytes(specs, page_size, item),
        page_size=page_size,
        max_model_len=max_model_len,
    )


def _activations(
    specs: Sequence[AttentionSpec],
    hidden: int,
    intermediate: int,
    vocab: int,
    item: int,
    step: StepSize,
    *,
    is_joined: bool,
) -> int:
    """What a step keeps at most: buffers at the cut, the inside of one MLP, and the logits.

    At the cut: the embeddings, the residual stream twice (a piece reads one and writes the other), a
    normed copy, q, k, v and attention's output. In the MLP: gate, up and their product. Where layers that
    read one input are joined, also what is split into them, and the input as integers.
    """
    widest = max(spec.q_size + spec.kv_size for spec in specs)
    row = 4 * hidden + 2 * widest + 3 * intermediate
    if is_joined:
        row += 2 * hidden + 2 * widest + 2 * intermediate
    rows = min(step.max_tokens, step.max_sequences)
    return step.max_tokens * row * item + rows * (vocab * _LOGIT_BYTES + hidden * item)
