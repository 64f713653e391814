"""The attention spec and its RoPE numbers, for the rooms that may not import kvcache themselves."""

from cleave.kvcache.rope import attention_factor, inverse_frequencies
from cleave.kvcache.spec import ROPE_KINDS, AttentionSpec, RopeSpec

__all__ = ["ROPE_KINDS", "AttentionSpec", "RopeSpec", "attention_factor", "inverse_frequencies"]
