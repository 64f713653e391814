"""The memory plan: what a model takes of a given memory, and what is left for tokens and requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from cleave.errors import PlanError
from cleave.kvcache.budget import GPU_MEMORY_SHARE, mib, most_pages, page_bytes, pages_for
from cleave.kvcache.spec import AttentionSpec

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
STEP_TOKENS = {"cpu": 512, "cuda": 8192}
"""Device -> rows of the largest step, where nothing else is asked for."""
_LOGIT_BYTES = 4
SCORED_ROWS = 256
"""Rows of a step that score tokens of prompts, at most: the logits of each take memory."""


@dataclass(frozen=True, slots=True)
class StepSize:
    """Rows of the largest step."""

    max_tokens: int = STEP_TOKENS["cpu"]
    max_sequences: int = 64
    scored_rows: int = 0
    """Rows with logits besides one of each sequence."""

    @property
    def logit_rows(self) -> int:
        """Rows with logits, at most."""
        return min(self.max_tokens, self.max_sequences + self.scored_rows)

    @classmethod
    def on_gpu(cls, max_tokens: int, max_sequences: int, max_model_len: int) -> StepSize:
        """The largest step that a start on a GPU keeps room for, asked for steps of `max_tokens` rows."""
        return cls(min(max_tokens, max_sequences * max_model_len), max_sequences, SCORED_ROWS)


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
    share: float = 1.0
    """Of what weights and activations leave, for pages."""
    most_pages: int | None = None
    """Pages that are made at most, however many fit; None: as many as fit."""

    @property
    def left(self) -> int:
        """Bytes that weights and activations leave."""
        return max(0, self.memory - self.weights - self.activations)

    @property
    def reserved(self) -> int:
        """Bytes of these that are not for pages."""
        return self.left - int(self.left * self.share)

    @property
    def pages(self) -> int:
        """KV pages that fit beside weights and activations."""
        fit = (self.left - self.reserved) // self.page_bytes
        return fit if self.most_pages is None else min(fit, self.most_pages)

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
        lacking = self.weights + self.activations + ceil(request / self.share) - self.memory
        part = f" of KV cache, which is {self.share:.0%} of the rest" if self.share < 1 else ""
        needs = (
            f"weights need {mib(self.weights)}, activations {mib(self.activations)} and one request of "
            f"{self.max_model_len} tokens {mib(request)}{part}: {mib(lacking)} more than the "
            f"{mib(self.memory)} that there are"
        )
        if self.pages:
            raise PlanError(f"{needs}; lower max_model_len to {self.tokens}, or give more memory")
        if self.weights + ceil(self.page_bytes / self.share) < self.memory:
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
    device: str = "cpu",
) -> MemoryPlan:
    """The plan for a model whose weights, activations and KV cache are all kept in `dtype`.

    `quantized_bytes` is what the weights take instead where they are quantised; gate and up, as q, k and v,
    are then one product that is split. `memory` is in bytes, `parameters` and the widths in values;
    `specs` has one entry for each layer. `device` is "cpu", or "cuda" for what a start of `inductor` on a GPU
    makes of `memory`: that keeps a tenth of the rest free, and makes no pages that `step.max_sequences`
    cannot fill.
    """
    item = ITEM_BYTES[dtype]
    step = step or StepSize(STEP_TOKENS[device])
    is_gpu = device == "cuda"
    if is_gpu:
        step = StepSize.on_gpu(step.max_tokens, step.max_sequences, max_model_len)
    return MemoryPlan(
        memory=memory,
        weights=parameters * item if quantized_bytes is None else quantized_bytes,
        activations=_activations(
            specs, hidden, intermediate, vocab, item, step, is_joined=quantized_bytes is not None
        ),
        page_bytes=page_bytes(specs, page_size, item),
        page_size=page_size,
        max_model_len=max_model_len,
        share=GPU_MEMORY_SHARE if is_gpu else 1.0,
        most_pages=most_pages(step.max_sequences, max_model_len, page_size) if is_gpu else None,
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
    logits = step.logit_rows * (vocab * _LOGIT_BYTES + hidden * item)
    return step.max_tokens * row * item + logits
