"""How many bytes pages of the KV cache take, and how many pages tokens take."""

from __future__ import annotations

from collections.abc import Sequence

from cleave.kvcache.spec import AttentionSpec

GPU_MEMORY_SHARE = 0.9
"""Of what weights and activations leave of a GPU, for pages. The rest is for graphs and for the attention
backend's own buffers."""


def page_bytes(specs: Sequence[AttentionSpec], page_size: int, item_bytes: int) -> int:
    """Bytes of one page in all layers: k and v of `page_size` tokens, `item_bytes` a value."""
    return sum(2 * spec.kv_size for spec in specs) * page_size * item_bytes


def pages_for(tokens: int, page_size: int) -> int:
    """Pages that `tokens` tokens of one sequence take."""
    return -(-tokens // page_size)


def most_pages(max_sequences: int, max_model_len: int, page_size: int) -> int:
    """Pages that so many sequences of that length take; more of them are never used."""
    return max_sequences * pages_for(max_model_len, page_size)


def mib(count: int) -> str:
    """Bytes for people: "12.3 MiB", from 10 GiB on "12.3 GiB"."""
    return f"{count / 2**30:.1f} GiB" if count >= 10 * 2**30 else f"{count / 2**20:.1f} MiB"
