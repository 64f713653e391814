"""The operator of the cut as torch sees it: `torch.ops.cleave.CleaveAttention(q, k, v, layer)`.

While tracing only its shape matters. Run for real, it hands its tensors to the attention server that
is bound in the calling context, and does nothing else.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any, Protocol

import torch

from cleave.errors import AttentionError


class Server(Protocol):
    """The part of the attention server that the operator needs."""

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        """See `cleave.kvcache.server.AttentionServer.run`."""


_bound: contextvars.ContextVar[Server | None] = contextvars.ContextVar(
    "cleave_attention_server", default=None
)


@contextlib.contextmanager
def bound(server: Server) -> Iterator[None]:
    """Hand the operators that run inside this context (of this thread or task) to `server`."""
    token = _bound.set(server)
    try:
        yield
    finally:
        _bound.reset(token)


@torch.library.custom_op("cleave::CleaveAttention", mutates_args=())
def cleave_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int) -> torch.Tensor:
    """RoPE and attention of one layer. q [tokens, heads * head_dim]; k, v [tokens, kv_heads * head_dim].

    Returns a tensor like q. Raises AttentionError where no attention server is bound.
    """
    server = _bound.get()
    if server is None:
        raise AttentionError(
            "CleaveAttention ran with no attention server bound; run it inside `with bound(server):`"
        )
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    server.run(layer, q.contiguous(), k.contiguous(), v.contiguous(), out)
    return out


@cleave_attention.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int) -> torch.Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)
